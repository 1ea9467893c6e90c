"""The results of an evaluation as plain records. Nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from marcorank.errors import InvalidInputError
from marcorank.ranking import Logistic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from marcorank.collections.records import Collection, Run


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """One measure of one ranking, beside those that it has to be compared with; means over all judged queries.

    Attributes:
        measure: As ir_measures spells it, such as `"nDCG@10"`.
        value: Of the reranked candidates.
        first_stage: Of the whole first-stage run.
        identity: Of the same candidates in the order of the first stage.
        best: Of the same candidates in the best order there is.
        difference: `value - identity`.
        interval: Bootstrap 95 % interval of the difference.
        p_value: Of the paired randomisation test that the difference is chance, two-sided.
        wins: Queries that got better than identity.
        ties: Queries that stayed as they were.
        losses: Queries that got worse.
        per_query: Value by query_id.
        per_query_identity: The same of identity.
    """

    measure: str
    value: float
    first_stage: float
    identity: float
    best: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    wins: int
    ties: int
    losses: int
    per_query: Mapping[str, float]
    per_query_identity: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DepthResult:
    """What reranking the first `top_k` candidates of the first stage gives.

    Attributes:
        top_k: Candidates that the reranker saw of each query.
        measures: One for each measure that was asked for, in that order.
        latency_p50_ms: Median time to rerank one query's candidates, one query at a time; None if not timed.
        latency_p95_ms: The time that 95 % of queries stayed under; None if not timed.
    """

    top_k: int
    measures: tuple[MeasureResult, ...]
    latency_p50_ms: float | None
    latency_p95_ms: float | None


@dataclass(frozen=True, slots=True)
class CutPoint:
    """What a `score_threshold` on logits keeps of the candidates; means over all queries together.

    Attributes:
        score_threshold: Least logit that is kept.
        recall: Share of the relevant candidates that is kept.
        precision: Share of what is kept that is relevant; None where nothing is kept.
        kept_per_query: How many candidates are kept, on average.
    """

    score_threshold: float
    recall: float
    precision: float | None
    kept_per_query: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The map from logits to probabilities of relevance, `1 / (1 + exp(-(a * logit + b)))`, fitted on the data.

    Attributes:
        a: Slope, above 0.
        b: Intercept.
        judged: Pairs that it was fitted on.
        relevant: How many of them are relevant.
        log_loss: Mean negative log-likelihood of pairs of queries that were left out of the fit, in nats.
        log_loss_sigmoid: The same of the plain sigmoid.
        expected_error: Mean distance between probability and share of relevant passages, over ten bins, of pairs of
            queries that were left out of the fit.
        expected_error_sigmoid: The same of the plain sigmoid.
    """

    a: float
    b: float
    judged: int
    relevant: int
    log_loss: float
    log_loss_sigmoid: float
    expected_error: float
    expected_error_sigmoid: float

    @property
    def activation(self) -> Logistic:
        """The map as a `Reranker` takes it: `Reranker(..., activation=calibration.activation)`."""
        return Logistic(self.a, self.b)


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where to cut: what judged data says of `score_threshold`, `top_n` and `top_k`.

    Attributes:
        curve: From everything kept to nothing kept, at most 200 points.
        for_recall: The highest threshold that keeps each wanted recall.
        for_precision: The lowest threshold from which on each wanted precision holds; None where none does.
        top_n_recall: Share of the relevant candidates among the first n results, by n.
        top_n: The n beyond which less than 1 % of the relevant candidates' share is gained.
        top_k_value: The first measure by number of candidates reranked.
        top_k: The least number of candidates whose value is within 0.005 of the best.
        unjudged_as_irrelevant: Whether candidates without a judgement were counted as not relevant, or left out.
    """

    curve: tuple[CutPoint, ...]
    for_recall: Mapping[float, CutPoint]
    for_precision: Mapping[float, CutPoint | None]
    top_n_recall: Mapping[int, float]
    top_n: int
    top_k_value: Mapping[int, float]
    top_k: int
    unjudged_as_irrelevant: bool


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What one model reached.

    Attributes:
        label: Name of the model, with backend and precision where several were compared.
        settings: Of the reranker, JSON-ready.
        depths: One for each `top_k` that was asked for, ascending.
        logits: By query_id and doc_id, of every candidate down to the greatest `top_k`.
        cuts: Where to cut its scores; None without a relevant candidate.
        calibration: None where it cannot be fitted: no relevant candidate, or no other.
    """

    label: str
    settings: Mapping[str, Any]
    depths: tuple[DepthResult, ...]
    logits: Run = field(repr=False)
    cuts: Cuts | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """The fields of an `Evaluation`, which documents them."""

    collection: Collection = field(repr=False)
    measures: tuple[str, ...]
    models: tuple[ModelResult, ...] = field(repr=False)
    relevant_grade: int = 1
    notes: tuple[str, ...] = ()

    def model(self, label: str) -> ModelResult:
        """Return what one model reached.

        Raises:
            InvalidInputError: No model has this label.
        """
        for result in self.models:
            if result.label == label:
                return result
        labels = ", ".join(repr(result.label) for result in self.models)
        raise InvalidInputError(f"No model has the label {label!r}; expected one of {labels}.")
