"""Ranks with a model, else with its fallback, else not at all, within a time limit."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marcorank._calls.failures import OPERATIONAL_ERRORS, TimeLimit, warnings
from marcorank._inference.scorer import PassageScores
from marcorank._selection.blending import order_after_skim
from marcorank._selection.selecting import Read, Selection, read_after_skim, select
from marcorank._text import quoted
from marcorank.errors import InvalidInputError, RerankTimeoutError
from marcorank.ranking import Logistic, RankedPassage, Ranking, RerankStatus, unranked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from marcorank._calls.model import LazyModel
    from marcorank._inference.scorer import Request
    from marcorank._steps import Steps
    from marcorank.ranking import Activation, ScoreKind
    from marcorank.settings import OnError


class RankRequest(NamedTuple):
    """A query with its candidates.

    Attributes:
        query: The query.
        passages: Their texts.
        retrieval_scores: Their first-stage scores. Shape: (passages,), float64; None if they are unknown.
    """

    query: str
    passages: Sequence[str]
    retrieval_scores: NDArray[np.float64] | None = None

    @property
    def pair(self) -> Request:
        """What a model is asked."""
        return self.query, self.passages


class Skim(NamedTuple):
    """The model that reads all passages first.

    Attributes:
        model: The model.
        keep: How many of its best passages the other model reads.
    """

    model: LazyModel
    keep: int


class _Skimmed(NamedTuple):
    """What the skimming model found in a request.

    Attributes:
        scores: Its scores.
        order: Positions of the passages, best first. Shape: (passages,), int64.
    """

    scores: PassageScores
    order: NDArray[np.int64]


class _Progress:
    """How far a call has come.

    Attributes:
        model: The model that is at work.
        skimmed: What was found in each request, once that is known; None for one with few passages.
    """

    def __init__(self, model: LazyModel) -> None:
        self.model = model
        self.skimmed: list[_Skimmed | None] = []


class Ranker(NamedTuple):
    """A model with the settings of a call.

    Attributes:
        model: The model.
        score_kind: Output of the model.
        activation: Turns logits into scores.
        on_error: What happens if no model can rank.
        timeout_s: Maximum number of seconds of a call; None for no limit.
        fallback: Ranks if the model fails.
        skim: Chooses the passages that the model reads; None if it reads all.
    """

    model: LazyModel
    score_kind: ScoreKind
    activation: Activation
    on_error: OnError
    timeout_s: float | None
    fallback: Ranker | None
    skim: Skim | None

    def check(self, selection: Selection) -> None:
        """Check a selection against the settings, also against those of the fallback.

        Raises:
            InvalidInputError: The threshold is on the scale of logits, but scores are from 0 to 1. Or there may be more
                results than a model reads, or a ranking would end at a drop of scores that are not calibrated.
        """
        score_threshold, top_n = selection.score_threshold, selection.top_n
        if self.skim is not None and top_n is not None and top_n > self.skim.keep:
            raise InvalidInputError(
                f"`top_n` is {top_n} and `skim_keep` {self.skim.keep}; expected at least as many passages for "
                f"{self.model.name} to read as results. Raise `skim_keep`, or pass a lower `top_n`."
            )
        if score_threshold is not None and self.score_kind == "probability" and self.activation == "identity":
            raise InvalidInputError(
                f"`score_threshold` is {score_threshold}, on the scale of logits; {self.model.name} gives "
                "probabilities only. Pass `activation='sigmoid'` and a threshold from 0 to 1."
            )
        if score_threshold is not None and self.activation != "identity" and not 0 <= score_threshold <= 1:
            advice = (
                " Pass `activation='identity'` for one on the scale of logits." if self.score_kind == "logit" else ""
            )
            raise InvalidInputError(
                f"`score_threshold` is {score_threshold}, but {self.model.name} has "
                f"`activation={quoted(self.activation)}`, whose scores are from 0 to 1; expected one in that "
                f"range.{advice}"
            )
        if selection.max_drop is not None and not isinstance(self.activation, Logistic):
            # The activation of a fallback; a reranker checks its own at once.
            raise InvalidInputError(
                f"`max_drop` is {selection.max_drop}, but the fallback {self.model.name} has "
                f"`activation={quoted(self.activation)}`, whose scores are not calibrated. Pass it with a Logistic."
            )
        if self.fallback is not None:
            self.fallback.check(selection)

    def rank(
        self,
        requests: Sequence[RankRequest],
        selection: Selection,
        *,
        limit: TimeLimit | None = None,
        may_block: bool = True,
    ) -> Steps[list[Ranking]]:
        """Rank the passages of each request.

        Args:
            requests: Checked queries with their passages.
            selection: Which results to keep.
            limit: What is left of the time of the model that failed, in addition to `timeout_s`.
            may_block: Whether the steps of a model may run in the calling thread.
        """
        limits = [] if limit is None else [limit]
        if self.timeout_s is not None:
            limits.append(TimeLimit(self.timeout_s, self.timeout_s))
        limit = min(limits, default=None)
        started = time.monotonic()
        failure: Exception | None = None
        progress = _Progress(self.model)
        timed_out = False
        try:
            try:
                own_limit = limit
                if limit is not None and self.fallback is not None:
                    own_limit = limit._replace(seconds=limit.seconds / 2)
                own = self._rank_with_model(requests, selection, progress)
                return (yield from self.model.run(own, own_limit, may_block=may_block, at_work=lambda: progress.model))
            except OPERATIONAL_ERRORS as error:
                failure, timed_out = error, isinstance(error, RerankTimeoutError)
            if self.fallback is not None:
                try:
                    if limit is not None:
                        left_s = limit.seconds - (time.monotonic() - started)
                        # A load that holds the interpreter may delay the end of the first half.
                        limit = limit._replace(seconds=max(left_s, limit.seconds / 2))
                    rankings = yield from self.fallback.rank(requests, selection, limit=limit, may_block=may_block)
                    return self._with_status(rankings, failure)
                except OPERATIONAL_ERRORS as error:
                    _add_cause(error, failure)
                    failure = error
            skimmed = progress.skimmed
            if skimmed and (self.on_error == "passthrough" or (timed_out and None not in skimmed)):
                return self._rank_by_skim(requests, selection, skimmed, failure)
            if self.on_error == "raise":
                raise failure
            status = RerankStatus.of("passthrough", failure)
            warnings.warn(self.model.name, status, "the order of the input was kept")
            return [self._unranked(request, selection, status) for request in requests]
        finally:
            # The error refers to this frame, which must not refer to the error.
            failure = None

    def _unranked(self, request: RankRequest, selection: Selection, status: RerankStatus) -> Ranking:
        return unranked(request.query, self.model.name, request.passages[: selection.top_n], status)

    def _rank_with_model(
        self, requests: Sequence[RankRequest], selection: Selection, progress: _Progress
    ) -> Steps[list[Ranking]]:
        """Rank with this model, after the skimming model if there is one."""
        skimmed: Sequence[_Skimmed | None] = [None] * len(requests)
        if self.skim is not None:
            skimmed = yield from self._skim(requests, self.skim, progress)
        pairs, parts = [], []
        for request, found in zip(requests, skimmed, strict=True):
            pair, part = request.pair, np.arange(len(request.passages))
            if found is not None and self.skim is not None:
                part = read_after_skim(
                    found.order, request.passages, self.skim.keep, max_similarity=selection.max_similarity
                )
                pair = (request.query, [request.passages[index] for index in part.tolist()])
            pairs.append(pair)
            parts.append(part)
        scored = yield from self.model.score(pairs)
        return [
            self._ranking(request, scores, Read(part, scores.logits), selection, found)
            for request, scores, part, found in zip(requests, scored, parts, skimmed, strict=True)
        ]

    def _skim(
        self, requests: Sequence[RankRequest], skim: Skim, progress: _Progress
    ) -> Steps[Sequence[_Skimmed | None]]:
        """Let the skimming model read the requests with more passages than this model is to read."""
        is_long = [len(set(request.passages)) > skim.keep for request in requests]
        if any(is_long):
            skim.model.check_open()
            progress.model = skim.model
            scored = iter(
                (yield from skim.model.score([one.pair for one, long in zip(requests, is_long, strict=True) if long]))
            )
            found: list[_Skimmed | None] = []
            for request, long in zip(requests, is_long, strict=True):
                if long:
                    scores = next(scored)
                    found.append(_Skimmed(scores, order_after_skim(scores.logits, request.retrieval_scores)))
                else:
                    found.append(None)
            progress.model, progress.skimmed = self.model, found
        return progress.skimmed or [None] * len(requests)

    def _ranking(
        self,
        request: RankRequest,
        scores: PassageScores,
        read: Read,
        selection: Selection,
        skimmed: _Skimmed | None,
    ) -> Ranking:
        """Return the ranking of a request, of which the model read a part."""
        is_logit = self.score_kind == "logit"
        selected = select(
            request.passages,
            read,
            selection,
            # A server that returns probabilities has applied its activation already.
            activation=self.activation if is_logit else "identity",
            retrieval_scores=request.retrieval_scores,
            unread=None if skimmed is None else skimmed.order[~np.isin(skimmed.order, read.indices)],
        )
        scored = selected.indices[: len(selected.scores)]
        places = np.searchsorted(read.indices, scored)
        results = [
            RankedPassage(
                index=index,
                rank=rank,
                score=score,
                logit=float(scores.logits[place]) if is_logit else None,
                text=request.passages[index],
                skim_logit=None if skimmed is None else float(skimmed.scores.logits[index]),
                blended_score=None if selected.blended is None else float(selected.blended[place]),
                **scores.details(place),
            )
            for rank, (index, place, score) in enumerate(
                zip(scored.tolist(), places.tolist(), selected.scores.tolist(), strict=True), 1
            )
        ]
        if skimmed is not None:
            results += self._skimmed_only(request, skimmed.scores, selected.indices[len(scored) :], len(scored))
        return Ranking(
            request.query,
            self.model.name,
            tuple(results),
            scores.query_truncated,
            self.score_kind,
            skipped=selected.skipped,
        )

    def _skimmed_only(
        self, request: RankRequest, skimmed: PassageScores, indices: NDArray[np.int64], above: int
    ) -> list[RankedPassage]:
        """Return the results that only the skimming model read, below a number of others."""
        return [
            RankedPassage(
                index=index,
                rank=rank,
                score=None,
                logit=None,
                text=request.passages[index],
                scored_by=None if self.skim is None else self.skim.model.name,
                skim_logit=float(skimmed.logits[index]),
                **skimmed.details(index),
            )
            for rank, index in enumerate(indices.tolist(), above + 1)
        ]

    def _rank_by_skim(
        self,
        requests: Sequence[RankRequest],
        selection: Selection,
        skimmed: Sequence[_Skimmed | None],
        failure: Exception,
    ) -> list[Ranking]:
        """Rank by the skimming model alone, because this one failed; the threshold is on the scale of this one."""
        status = RerankStatus.of("skim", failure)
        warnings.warn(self.model.name, status, "the order after the skim was kept")
        alone = Selection(top_n=selection.top_n, max_similarity=selection.max_similarity)
        nothing = PassageScores.empty()
        read = Read(np.empty(0, dtype=np.int64), nothing.logits)
        rankings = []
        for request, found in zip(requests, skimmed, strict=True):
            if found is None:
                rankings.append(self._unranked(request, selection, RerankStatus.of("passthrough", failure)))
            else:
                ranking = self._ranking(request, nothing, read, alone, found)
                rankings.append(replace(ranking, query_truncated=found.scores.query_truncated, status=status))
        return rankings

    def _with_status(self, rankings: Sequence[Ranking], failure: Exception) -> list[Ranking]:
        """Return the rankings of the fallback, with the failure of this model as their status."""
        status = RerankStatus.of("fallback", failure)
        if rankings and (rankings[0].status is None or rankings[0].status.outcome == "fallback"):
            warnings.warn(self.model.name, status, f"{rankings[0].model} ranked")
        return [replace(ranking, status=ranking.status or status) for ranking in rankings]


def _add_cause(error: BaseException, earlier: BaseException) -> None:
    """Let a traceback show the earlier failure beneath an error and its own cause."""
    last = error.__cause__ or error
    if last.__cause__ is None and last is not earlier:
        last.__cause__ = earlier
