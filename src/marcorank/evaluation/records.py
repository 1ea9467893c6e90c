"""The results of an evaluation as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from marcorank._text import html_table
from marcorank.evaluation.wording import percent
from marcorank.ranking import Logistic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from marcorank.collections.records import Run

# A difference with a smaller p-value is not taken for chance.
_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two rankings differ in one measure, over all judged queries.

    Attributes:
        difference: Difference of the means.
        interval: Bootstrap 95 % interval of the difference.
        p_value: Two-sided p-value of the paired randomisation test.
        wins: Number of queries that got better.
        ties: Number of queries that stayed the same.
        losses: Number of queries that got worse.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> str:
        """`"helps"`, `"hurts"`, `"changes nothing"`, or that the difference may be chance."""
        low, high = self.interval
        if not self.wins and not self.losses:
            return "changes nothing"
        if low <= 0 <= high or self.p_value >= _ALPHA:
            return "makes no difference that can be distinguished from chance"
        return "helps" if self.difference > 0 else "hurts"

    def row(self) -> dict[str, Any]:
        """Return the fields as columns of a table."""
        return {
            "difference": self.difference,
            "interval_low": self.interval[0],
            "interval_high": self.interval[1],
            "p_value": self.p_value,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
        }


@dataclass(frozen=True, slots=True)
class MeasureResult(Comparison):
    """One measure of reranked candidates, compared with the same candidates in first-stage order ("identity").

    Means are over all judged queries.

    Attributes:
        measure: Name in the spelling of ir_measures, such as `"nDCG@10"`.
        value: Value of the reranked candidates.
        first_stage: Value of the whole first-stage run.
        identity: Value of the same candidates in first-stage order.
        best: Value of the same candidates in the best possible order.
        per_query: Value by query_id.
        per_query_identity: Value of identity by query_id.
    """

    measure: str
    value: float
    first_stage: float
    identity: float
    best: float
    per_query: Mapping[str, float] = field(repr=False)
    per_query_identity: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class DepthResult:
    """The result of reranking the first `top_k` candidates of each query.

    Attributes:
        top_k: Number of candidates that were reranked.
        measures: A result for each measure, in the order of the argument.
        latency_p50_ms: Median time to rerank the candidates of one query, one query at a time; None if not timed.
        latency_p95_ms: 95th percentile of that time; None if not timed.
    """

    top_k: int
    measures: tuple[MeasureResult, ...]
    latency_p50_ms: float | None
    latency_p95_ms: float | None


@dataclass(frozen=True, slots=True)
class CutPoint:
    """What a `score_threshold` on logits keeps of the candidates of all queries.

    Attributes:
        score_threshold: Minimum logit.
        recall: Share of the relevant candidates that is kept.
        precision: Share of the kept candidates that is relevant; None if none is kept.
        kept_per_query: Mean number of candidates that are kept.
    """

    score_threshold: float
    recall: float
    precision: float | None
    kept_per_query: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted map from logits to probabilities of relevance, `1 / (1 + exp(-(a * logit + b)))`.

    Attributes:
        a: Slope, above 0.
        b: Intercept.
        judged: Number of pairs in the fit.
        relevant: Number of relevant pairs in the fit.
        log_loss: Mean negative log-likelihood in nats, on queries that were left out of the fit.
        log_loss_sigmoid: The same for the plain sigmoid.
        expected_error: Expected calibration error over ten bins, on queries that were left out of the fit.
        expected_error_sigmoid: The same for the plain sigmoid.
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
        """The map as an activation: `Reranker(..., activation=calibration.activation)`."""
        return Logistic(self.a, self.b)


@dataclass(frozen=True, slots=True)
class Cuts:
    """Values of `score_threshold`, `top_n` and `top_k` that judged data suggests.

    Attributes:
        curve: Thresholds from everything kept to nothing kept, at most 200.
        for_recall: The highest threshold that keeps each recall.
        for_precision: The lowest threshold from which on each precision holds; None if there is none.
        top_n_recall: Share of the relevant candidates among the first n results, by n.
        top_n: The n after which no result adds 1 % or more of the relevant candidates.
        top_k_value: The first measure by number of candidates reranked.
        top_k: The smallest number of candidates whose value is within 0.005 of the best.
        unjudged_as_irrelevant: Whether candidates without a judgement count as not relevant; else they are left out.
    """

    curve: tuple[CutPoint, ...] = field(repr=False)
    for_recall: Mapping[float, CutPoint]
    for_precision: Mapping[float, CutPoint | None]
    top_n_recall: Mapping[int, float]
    top_n: int
    top_k_value: Mapping[int, float]
    top_k: int
    unjudged_as_irrelevant: bool

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        wanted = [("recall", share, point) for share, point in self.for_recall.items()]
        wanted += [("precision", share, point) for share, point in self.for_precision.items() if point is not None]
        rows = [
            (
                f"{name} {percent(share)}",
                f"{point.score_threshold:.4f}",
                percent(point.recall),
                "-" if point.precision is None else percent(point.precision),
                f"{point.kept_per_query:.3g}",
            )
            for name, share, point in wanted
        ]
        header = ("for a", "score_threshold (logit)", "recall", "precision", "passages per query")
        return html_table(f"suggested: top_k {self.top_k}, top_n {self.top_n}", header, rows, left=header[:1])


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One setting that was tried on all queries.

    Attributes:
        top_k: Number of candidates.
        skim_keep: Number of those that the model reads after the skimming model; None if it reads all.
        blend: Weight of the first stage.
        value: Mean of the first measure.
        latency_p50_ms: Median time of a query; None if it is not known. That of a cascade is not measured: it is the
            median time of the skimming model for all candidates, plus that of the model for `skim_keep` of them.
    """

    top_k: int
    skim_keep: int | None
    blend: float
    value: float
    latency_p50_ms: float | None


@dataclass(frozen=True, slots=True)
class HalfResult:
    """What was chosen on one half of the queries, measured on the other half.

    Attributes:
        chosen: The value of the option; None for off.
        queries: Number of queries on which it was measured.
        value: Mean of the first measure on them.
        off: The same without the option.
    """

    chosen: float | None
    queries: int
    value: float
    off: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether an option is worth turning on.

    Attributes:
        option: `"blend"`, `"top_k"` or `"skim_keep"`.
        recommended: Its value; None to leave it off.
        reason: Why, as a sentence.
        halves: What each half of the queries chose.
        held_out: The chosen settings compared with off, each query under what the other half chose.
    """

    option: str
    recommended: float | None
    reason: str
    halves: tuple[HalfResult, HalfResult]
    held_out: Comparison

    @property
    def is_off(self) -> bool:
        """Whether neither half chose anything."""
        return all(half.chosen is None for half in self.halves)


@dataclass(frozen=True, slots=True)
class HeldOutThreshold:
    """What a `score_threshold` keeps that was chosen on the other half of the queries.

    Attributes:
        aim: Share of the relevant candidates that it was chosen to keep.
        recall: Share of the relevant candidates that it kept.
        kept_per_query: Mean number of candidates that it kept.
    """

    aim: float
    recall: float
    kept_per_query: float


@dataclass(frozen=True, slots=True)
class Choices:
    """Which settings the queries recommend, each chosen on one half of them and measured on the other.

    Attributes:
        measure: Name of the measure that decides.
        top_k: Number of candidates that the model reads if everything is off.
        skim: Name of the skimming model; None without one.
        options: The options.
        threshold: What a `score_threshold` keeps; None if it cannot be chosen.
        sweep: All settings that were tried.
        note: Why nothing could be chosen, if so.
        first_stage_suffices: Whether the first stage alone ranks at least as well, in the mean of all queries, as the
            model does, with and without what is recommended. Then leave reranking off, whatever the options say. None
            if there are too few queries.
        code: Code with all that is recommended, for `"core"`, `"langchain"` and `"llama_index"`; empty if nothing is,
            or if the first stage suffices.
    """

    measure: str
    top_k: int
    skim: str | None
    options: tuple[Choice, ...]
    threshold: HeldOutThreshold | None
    sweep: tuple[SweepPoint, ...]
    note: str | None = None
    first_stage_suffices: bool | None = None
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelResult:
    """The results of one model.

    Attributes:
        label: Name of the model, with the settings in which it differs from others of the same name.
        settings: The settings that decide the logits, JSON-serialisable.
        depths: A result for each `top_k`, ascending.
        logits: Logits by query_id and doc_id, of each candidate down to the greatest `top_k`.
        cuts: Suggested thresholds; None without a relevant candidate.
        calibration: A map from logits to probabilities; None if it cannot be fitted.
        choices: The settings that are recommended.
    """

    label: str
    settings: Mapping[str, Any]
    depths: tuple[DepthResult, ...]
    logits: Run = field(repr=False)
    cuts: Cuts | None = None
    calibration: Calibration | None = None
    choices: Choices | None = None
