"""An LRU cache of scores, which keeps no text."""

from __future__ import annotations

import threading
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marcorank._inference.scorer import PassageScores

if TYPE_CHECKING:
    from collections.abc import Sequence


class KnownPassage(NamedTuple):
    """The part of `PassageScores` that concerns one passage."""

    logit: float
    truncated: bool | None
    span: tuple[int, int] | None
    query_truncated: bool | None
    unknown_tokens: int | None


class ScoreCache:
    """The scores of the pairs of query and passage that were used last, by one model with its settings.

    Safe to share between threads.
    """

    def __init__(self, size: int) -> None:
        """Create an empty cache.

        Args:
            size: Maximum number of passages to keep.
        """
        self._size = size
        self._known: OrderedDict[bytes, KnownPassage] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, query: str, passages: Sequence[str]) -> dict[str, KnownPassage]:
        """Return the scores of the passages that are cached."""
        found = {}
        keys = _keys(query, passages)
        with self._lock:
            for passage, key in zip(passages, keys, strict=True):
                known = self._known.get(key)
                if known is not None:
                    self._known.move_to_end(key)
                    found[passage] = known
        return found

    def keep(self, query: str, passages: Sequence[str], known: Sequence[KnownPassage]) -> None:
        """Store scores."""
        keys = _keys(query, passages)
        with self._lock:
            for key, new in zip(keys, known, strict=True):
                self._known[key] = new
                self._known.move_to_end(key)
            while len(self._known) > self._size:
                self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


def split(scores: PassageScores) -> list[KnownPassage]:
    """Return the scores of a request passage by passage; the reverse of `join`."""
    nothing = [None] * len(scores.logits)
    return [
        KnownPassage(logit, truncated, span, scores.query_truncated, unknown_tokens)
        for logit, truncated, span, unknown_tokens in zip(
            scores.logits.tolist(),
            nothing if scores.truncated is None else scores.truncated.tolist(),
            nothing if scores.spans is None else scores.spans,
            nothing if scores.unknown_tokens is None else scores.unknown_tokens.tolist(),
            strict=True,
        )
    ]


def join(known: Sequence[KnownPassage]) -> PassageScores:
    """Return the scores of the passages of one request, of which there is at least one."""
    logits, truncated, spans, query_truncated, unknown_tokens = zip(*known, strict=True)
    return PassageScores(
        np.array(logits, dtype=np.float32),
        truncated=None if None in truncated else np.array(truncated, dtype=np.bool_),
        spans=None if None in spans else spans,
        query_truncated=query_truncated[0],
        unknown_tokens=None if None in unknown_tokens else np.array(unknown_tokens, dtype=np.int64),
    )


def _keys(query: str, passages: Sequence[str]) -> list[bytes]:
    text = query.encode("utf-8", "surrogatepass")
    # The length says where the query ends.
    of_query = blake2b(b"%d:" % len(text) + text, digest_size=16)
    keys = []
    for passage in passages:
        digest = of_query.copy()
        digest.update(passage.encode("utf-8", "surrogatepass"))
        keys.append(digest.digest())
    return keys
