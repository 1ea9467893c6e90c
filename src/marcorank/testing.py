"""Fakes for other people's tests: a scorer that needs no model and always answers the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORD = re.compile(r"\w+")


class WordOverlapScorer:
    """Scores a passage by the share of the query's words that it holds.

    Usable wherever a model is: `Reranker(WordOverlapScorer())`. Logits run from -5 (no word) to 5 (all words),
    so that a sigmoid spreads them over 0 to 1.

    Attributes:
        name: Shown as the model's name in rankings and traces.
        calls: Number of times that `score` was called.
    """

    name = "word-overlap"

    def __init__(self) -> None:
        self.calls = 0

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """Return one logit a passage, in input order."""
        self.calls += 1
        wanted = set(_WORD.findall(query.casefold()))
        return [10.0 * _share(wanted, passage) - 5.0 for passage in passages]


def _share(wanted: set[str], passage: str) -> float:
    if not wanted:
        return 0.0
    return len(wanted.intersection(_WORD.findall(passage.casefold()))) / len(wanted)
