"""A fake scorer for your tests: deterministic, and needs no model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WordOverlapScorer"]

_WORD = re.compile(r"\w+")


class WordOverlapScorer:
    """Scores a passage by the share of the query words that it contains.

    Use it in place of a model: `Reranker(WordOverlapScorer())`. Logits range from -5 (no word) to 5 (all words),
    so a sigmoid maps them to nearly the whole range from 0 to 1.

    Attributes:
        name: Model name in rankings and traces.
        calls: Number of times that `score` was called.
    """

    name = "word-overlap"

    def __init__(self) -> None:
        self.calls = 0

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """Return one logit per passage, in input order."""
        self.calls += 1
        words = set(_WORD.findall(query.casefold()))
        return [10.0 * _share(words, passage) - 5.0 for passage in passages]


def _share(words: set[str], passage: str) -> float:
    if not words:
        return 0.0
    return len(words.intersection(_WORD.findall(passage.casefold()))) / len(words)
