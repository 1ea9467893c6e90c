"""The pairs that a call hands to the scheduler at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from marcorank._inference.pairs import Window

    Pair: TypeAlias = tuple[NDArray[np.int32], Window]

JobT = TypeVar("JobT")


class Part(Generic[JobT]):
    """Pairs of a job that were added together.

    A round takes pairs from only one part of a job. So the batches of a job that runs alone are always the same,
    whether or not its next part has been added yet.

    Attributes:
        job: The job.
        pairs: The pairs; released once all are scored.
        lengths: Number of tokens in each sequence. Shape: (pairs,), int64.
        logits: Shape: (pairs,), float32.
        waiting_tokens: Number of tokens of the pairs that are in no round yet.
        unscored: Number of pairs without a logit.
    """

    def __init__(self, job: JobT, pairs: Sequence[Pair], lengths: NDArray[np.int64]) -> None:
        self.job = job
        self.pairs = pairs
        self.lengths = lengths
        self.logits = np.empty(len(pairs), dtype=np.float32)
        self.unscored = len(pairs)
        self._order = np.argsort(-lengths, kind="stable")
        self._ends = np.cumsum(lengths[self._order])
        self._taken = 0
        self.waiting_tokens = int(lengths.sum())

    def take(self, tokens: int) -> NDArray[np.int64]:
        """Return the indices of the longest waiting pairs, as many as fit into `tokens`, but at least one."""
        before = int(self._ends[-1]) - self.waiting_tokens
        start = self._taken
        self._taken = max(int(np.searchsorted(self._ends, before + tokens, side="right")), start + 1)
        self.waiting_tokens = int(self._ends[-1] - self._ends[self._taken - 1])
        return self._order[start : self._taken]
