"""From the scores of one request to its ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from marcorank.ranking import RankedPassage, Ranking, order_logits

if TYPE_CHECKING:
    from marcorank._inference.scorer import PassageScores, Request
    from marcorank.ranking import Activation, ScoreKind


class RankOptions(NamedTuple):
    """Which results a ranking keeps.

    Attributes:
        top_n: Maximum number of results; None for all.
        score_threshold: Minimum score, on the scale of the activation; None for no threshold.
    """

    top_n: int | None = None
    score_threshold: float | None = None


def make_ranking(
    request: Request,
    scores: PassageScores,
    options: RankOptions,
    *,
    model: str,
    activation: Activation,
    score_kind: ScoreKind,
) -> Ranking:
    """Return the passages of a request, best first."""
    query, passages = request
    is_logit = score_kind == "logit"
    order = order_logits(
        scores.logits,
        # A server that returns probabilities has applied its activation already.
        activation=activation if is_logit else "identity",
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
        )
        for rank, (index, score) in enumerate(zip(order.indices, order.scores, strict=True), 1)
    )
    return Ranking(query, model, results, scores.query_truncated, score_kind)
