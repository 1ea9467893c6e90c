"""Notices that a server returns scores of another kind than its API promises."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank._inference.scorer import PassageScores
    from marcorank.remote.address import Address

_log = logging.getLogger("marcorank")

_PROBABILITIES = (
    "%s returned only numbers from 0 to 1, although logits were requested: they seem to be probabilities. With "
    '`activation="sigmoid"` or a threshold for logits the results are wrong. vLLM returns logits from 0.11.1 on; if '
    "the server has none, name it jina+%s#model."
)
_LOGITS = (
    "%s returned numbers outside of 0 to 1, although %s servers return probabilities: a threshold from 0 to 1 does not "
    "fit. If they are logits, as from llama.cpp, name the server vllm+%s#model."
)


class ScaleCheck:
    """Logs once per scorer if the scores of a server are of another kind. Not for several threads."""

    def __init__(self) -> None:
        self._between = 0
        self._is_done = False

    def look_at(self, results: Sequence[PassageScores], address: Address) -> None:
        """Look at the scores of a call.

        A single number outside of 0 to 1 proves logits. Two numbers between, and none outside, suggest probabilities;
        zeros and ones alone may come from a server for tests.
        """
        if self._is_done:
            return
        scores = np.concatenate([result.logits for result in results])
        is_outside = bool(np.any((scores < 0) | (scores > 1)))
        self._between += int(np.count_nonzero((scores > 0) & (scores < 1)))
        if address.dialect.score_kind == "probability":
            self._is_done = is_outside
            if is_outside:
                _log.warning(_LOGITS, address.endpoint, address.dialect.name, address.url)
        elif is_outside or self._between > 1:
            self._is_done = True
            if not is_outside:
                _log.warning(_PROBABILITIES, address.endpoint, address.url)
