"""Which results a ranking keeps, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marcorank._selection.blending import blend_scores, scores_of_ranks
from marcorank._selection.near_duplicates import without_near_duplicates
from marcorank.errors import InvalidInputError
from marcorank.ranking import SkippedPassage, order_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from marcorank.ranking import Activation


class Selection(NamedTuple):
    """What decides which results a ranking keeps, and their order; see the settings of the same names.

    Attributes:
        top_n: Maximum number of results; None for all.
        score_threshold: Minimum score, on the scale of the activation; None for no threshold.
        blend: Weight of the first stage, from 0 to 1.
        max_similarity: Similarity above which a passage is a near-duplicate of a better one; None for no limit.
        max_drop: Greatest difference between the scores of two neighbours; None for no limit.
        min_n: Number of results that `max_drop` keeps.
    """

    top_n: int | None = None
    score_threshold: float | None = None
    blend: float = 0.0
    max_similarity: float | None = None
    max_drop: float | None = None
    min_n: int = 1

    def check(self) -> None:
        """Check the limits against each other.

        Raises:
            InvalidInputError: `min_n` is greater than `top_n`.
        """
        if self.max_drop is not None and self.top_n is not None and self.min_n > self.top_n:
            raise InvalidInputError(
                f"`min_n` is {self.min_n} and `top_n` {self.top_n}; expected a minimum number of results that is not "
                "above the maximum."
            )


class Read(NamedTuple):
    """The passages of a request that the model read, with their logits.

    Attributes:
        indices: Positions of the passages, ascending. Shape: (read,), int64.
        logits: Finite. Shape: (read,), float32.
    """

    indices: NDArray[np.int64]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Selected:
    """The results of a ranking, best first.

    Attributes:
        indices: Positions of the passages. Shape: (results,), int64.
        scores: Scores after the activation, of the first results, which the model read. Shape: (scored,), float64.
        blended: What the passages that were read are ranked by; None without `blend`. Shape: (read,), float64.
        skipped: Near-duplicates of better passages.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float64]
    blended: NDArray[np.float64] | None
    skipped: tuple[SkippedPassage, ...]


def read_after_skim(
    order: NDArray[np.int64], passages: Sequence[str], keep: int, *, max_similarity: float | None
) -> NDArray[np.int64]:
    """Return the positions of what a model reads of the passages that were skimmed, ascending. Shape: (read,), int64.

    Copies do not count: of a text that is read all copies are, and no near-duplicate takes the place of another text.

    Args:
        order: Positions of all passages, best first. Shape: (passages,), int64.
        passages: Their texts.
        keep: How many to read.
        max_similarity: Similarity above which a passage is a near-duplicate of a better one; None for no limit.
    """
    best_first = order.tolist()
    texts = list(dict.fromkeys(passages[index] for index in best_first))
    if max_similarity is not None:
        kept, _ = without_near_duplicates(texts, max_similarity=max_similarity, limit=keep)
        texts = [texts[position] for position in kept]
    read = set(texts[:keep])
    return np.array(sorted(index for index in best_first if passages[index] in read), dtype=np.int64)


def select(
    passages: Sequence[str],
    read: Read,
    selection: Selection,
    *,
    activation: Activation,
    retrieval_scores: NDArray[np.float64] | None = None,
    unread: NDArray[np.int64] | None = None,
) -> Selected:
    """Order the passages of a request, and keep the results.

    Args:
        passages: All texts.
        read: What the model read.
        selection: Which results to keep.
        activation: Turns logits into scores.
        retrieval_scores: First-stage scores for `blend`. Shape: (passages,), float64; None if they are unknown.
        unread: Positions of the passages that the model did not read, best first. They follow the others, unless
            results need a score. Shape: (unread,), int64.
    """
    blended = None
    if selection.blend:
        first_stage = scores_of_ranks(len(passages)) if retrieval_scores is None else retrieval_scores
        blended = blend_scores(read.logits, first_stage[read.indices], selection.blend)
    order = order_logits(
        read.logits, activation=activation, score_threshold=selection.score_threshold, top_n=None, order_by=blended
    )
    indices, scores = read.indices[order.indices], order.scores
    skipped: tuple[SkippedPassage, ...] = ()
    if unread is not None and selection.score_threshold is None and selection.max_drop is None:
        indices = np.concatenate([indices, unread])
    if selection.max_similarity is not None:
        kept, near = without_near_duplicates(
            [passages[index] for index in indices], max_similarity=selection.max_similarity, limit=selection.top_n
        )
        skipped = tuple(
            SkippedPassage(int(indices[one.position]), int(indices[one.similar_to]), one.similarity) for one in near
        )
        scores = scores[[position for position in kept if position < len(scores)]]
        indices = indices[kept]
    end = selection.top_n
    if selection.max_drop is not None:
        # With a blend, scores may rise again further down.
        best_below = np.maximum.accumulate(scores[::-1])[::-1][1:]
        drops = np.flatnonzero(scores[:-1] - best_below > selection.max_drop) + 1
        end = min([*drops[drops >= selection.min_n], len(indices) if end is None else end])
    return Selected(indices[:end], scores[:end], blended, skipped)
