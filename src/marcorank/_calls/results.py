"""From requests to rankings: scores by one model, in the order and on the scale that the caller wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from marcorank.ranking import RankedPassage, Ranking, order_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank._calls.model import LazyModel
    from marcorank._inference.scorer import Request
    from marcorank._steps import Steps
    from marcorank.ranking import Activation, ScoreKind


class RankOptions(NamedTuple):
    """Which results a ranking keeps.

    Attributes:
        top_n: Maximum number of results; None for all.
        score_threshold: Minimum score, on the scale of the activation; None for no threshold.
    """

    top_n: int | None = None
    score_threshold: float | None = None


def rank_steps(
    model: LazyModel,
    requests: Sequence[Request],
    options: RankOptions,
    *,
    activation: Activation,
    score_kind: ScoreKind,
) -> Steps[list[Ranking]]:
    """Rank the passages of each request with one model, best first."""
    is_logit = score_kind == "logit"
    # A server that returns probabilities has applied its activation already.
    activation = activation if is_logit else "identity"
    rankings = []
    for (query, passages), scores in zip(requests, (yield from model.score(requests)), strict=True):
        order = order_logits(
            scores.logits, activation=activation, score_threshold=options.score_threshold, top_n=options.top_n
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
            )
            for rank, (index, score) in enumerate(zip(order.indices, order.scores, strict=True), 1)
        )
        rankings.append(Ranking(query, model.name, results, scores.query_truncated, score_kind))
    return rankings
