"""One request of a call: distinct passages, without those whose scores are cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marcorank._calls.cache import join, split
from marcorank.ranking import check_finite

if TYPE_CHECKING:
    from marcorank._calls.cache import ScoreCache
    from marcorank._inference.scorer import PassageScores, Request


class DeduplicatedRequest:
    """The distinct passages of one request, and their cached scores.

    Attributes:
        query: The query.
        uncached: The passages that have to be scored.
    """

    def __init__(self, request: Request, cache: ScoreCache | None, *, is_server: bool) -> None:
        self.query, self._passages = request
        self._cache = cache
        distinct = list(dict.fromkeys(self._passages))
        self._is_server = is_server
        self._known = {} if cache is None else cache.find(self.query, distinct)
        self.uncached = [passage for passage in distinct if passage not in self._known]

    def merge(self, scored: PassageScores, model: str, *, is_custom: bool) -> PassageScores:
        """Return the scores of all passages, in input order, from those of the uncached ones.

        Raises:
            ScoreError: A logit is not finite.
        """
        if self._known:
            known = self._known | dict(zip(self.uncached, split(scored), strict=True))
            scores = join([known[passage] for passage in self._passages])
            if self._is_server:
                # The passages come from several requests, in each of which a blank one was below the others.
                scores = scores.with_blanks_last(self._passages)
        elif len(self.uncached) == len(self._passages):
            scores = scored
        else:
            position = {passage: index for index, passage in enumerate(self.uncached)}
            scores = scored.take([position[passage] for passage in self._passages])
        check_finite(scores.logits, model=model, is_custom=is_custom)
        if self._cache is not None:
            self._cache.keep(self.query, self.uncached, split(scored))
        return scores
