"""Ranks with a model, else with its fallback, else not at all, within a time limit."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from marcorank._calls.failures import OPERATIONAL_ERRORS, TimeLimit, warnings
from marcorank.errors import InvalidInputError
from marcorank.ranking import RankedPassage, Ranking, RerankStatus, order_logits, unranked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank._calls.model import LazyModel
    from marcorank._inference.scorer import Request
    from marcorank._steps import Steps
    from marcorank.ranking import Activation, ScoreKind
    from marcorank.settings import OnError


class RankOptions(NamedTuple):
    """Which results a ranking keeps.

    Attributes:
        top_n: Maximum number of results; None for all.
        score_threshold: Minimum score, on the scale of the activation; None for no threshold.
    """

    top_n: int | None = None
    score_threshold: float | None = None


class Ranker(NamedTuple):
    """A model with the settings of a call.

    Attributes:
        model: The model.
        score_kind: Output of the model.
        activation: Turns logits into scores.
        on_error: What happens if no model can rank.
        timeout_s: Maximum number of seconds of a call; None for no limit.
        fallback: Ranks if the model fails.
    """

    model: LazyModel
    score_kind: ScoreKind
    activation: Activation
    on_error: OnError
    timeout_s: float | None
    fallback: Ranker | None

    def check_scale(self, score_threshold: float) -> None:
        """Check that the threshold is on the scale of the scores, also on that of the fallback.

        Raises:
            InvalidInputError: The threshold is on the scale of logits, but a model returns only probabilities.
        """
        if self.score_kind == "probability" and self.activation == "identity":
            raise InvalidInputError(
                f"`score_threshold` is {score_threshold}, on the scale of logits; {self.model.name} gives "
                "probabilities only. Pass `activation='sigmoid'` and a threshold from 0 to 1."
            )
        if self.fallback is not None:
            self.fallback.check_scale(score_threshold)

    def rank(
        self,
        requests: Sequence[Request],
        options: RankOptions,
        *,
        limit: TimeLimit | None = None,
        may_block: bool = True,
    ) -> Steps[list[Ranking]]:
        """Rank the passages of each request.

        Args:
            requests: Checked queries with their passages.
            options: Which results to keep.
            limit: What is left of the time of the model that failed, in addition to `timeout_s`.
            may_block: Whether the steps of a model may run in the calling thread.
        """
        limits = [] if limit is None else [limit]
        if self.timeout_s is not None:
            limits.append(TimeLimit(self.timeout_s, self.timeout_s))
        limit = min(limits, default=None)
        started = time.monotonic()
        failure: Exception | None = None
        try:
            try:
                own_limit = limit
                if limit is not None and self.fallback is not None:
                    own_limit = limit._replace(seconds=limit.seconds / 2)
                own = self._rank_with_model(requests, options)
                return (yield from self.model.run(own, own_limit, may_block=may_block))
            except OPERATIONAL_ERRORS as error:
                failure = error
            if self.fallback is not None:
                try:
                    if limit is not None:
                        left_s = limit.seconds - (time.monotonic() - started)
                        # A load that holds the interpreter may delay the end of the first half.
                        limit = limit._replace(seconds=max(left_s, limit.seconds / 2))
                    rankings = yield from self.fallback.rank(requests, options, limit=limit, may_block=may_block)
                    return self._with_status(rankings, failure)
                except OPERATIONAL_ERRORS as error:
                    _add_cause(error, failure)
                    failure = error
            if self.on_error == "raise":
                raise failure
            status = RerankStatus.of("passthrough", failure)
            warnings.warn(self.model.name, status, "the order of the input was kept")
            return [unranked(query, self.model.name, passages[: options.top_n], status) for query, passages in requests]
        finally:
            # The error refers to this frame, which must not refer to the error.
            failure = None

    def _rank_with_model(self, requests: Sequence[Request], options: RankOptions) -> Steps[list[Ranking]]:
        is_logit = self.score_kind == "logit"
        rankings = []
        for (query, passages), scores in zip(requests, (yield from self.model.score(requests)), strict=True):
            order = order_logits(
                scores.logits,
                # A server that returns probabilities has applied its activation already.
                activation=self.activation if is_logit else "identity",
                score_threshold=options.score_threshold,
                top_n=options.top_n,
            )
            results = tuple(
                RankedPassage(
                    index=int(index),
                    rank=rank,
                    score=float(score),
                    logit=float(scores.logits[index]) if is_logit else None,
                    text=passages[index],
                    truncated=None if scores.truncated is None else bool(scores.truncated[index]),
                    span=None if scores.spans is None else scores.spans[index],
                    unknown_tokens=None if scores.unknown_tokens is None else int(scores.unknown_tokens[index]),
                )
                for rank, (index, score) in enumerate(zip(order.indices, order.scores, strict=True), 1)
            )
            rankings.append(Ranking(query, self.model.name, results, scores.query_truncated, self.score_kind))
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
