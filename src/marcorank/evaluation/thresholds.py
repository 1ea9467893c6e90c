"""Suggests `score_threshold`, `top_n` and `top_k` from judged data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marcorank.evaluation.measures import logit_of, mean, parse_measures, per_query, reranked
from marcorank.evaluation.records import CutPoint, Cuts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ir_measures import Measure
    from numpy.typing import NDArray

    from marcorank.collections.records import Collection, Run

RECALLS = (0.8, 0.9, 0.95, 0.99)
PRECISIONS = (0.5, 0.7, 0.8, 0.9)
SHOWN_RECALL = 0.9
"""The recall whose threshold stands in tables and figures."""

_DIGITS = 4
_CURVE_POINTS = 200
_MAX_TOP_N = 50
_DEPTHS = (1, 2, 3, 5, 10, 15, 20, 30, 50, 75)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The scored candidates of all queries, by query and in first-stage order.

    Attributes:
        queries: Index of the query in `Collection.queries`. Shape: (candidates,), int64.
        logits: Shape: (candidates,), float64.
        relevant: Whether the grade is at least the relevant one. Shape: (candidates,), bool.
        counted: False for candidates that are left out because they are not judged. Shape: (candidates,), bool.
        unjudged_as_irrelevant: Whether candidates without a judgement count as not relevant.
    """

    queries: NDArray[np.int64]
    logits: NDArray[np.float64]
    relevant: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    unjudged_as_irrelevant: bool


def judged_candidates(collection: Collection, logits: Run, *, relevant_grade: int = 1) -> Candidates:
    """Return which candidates are relevant, which are not, and which of them count.

    Candidates without a judgement are left out if the judgements also name passages that are not relevant: if at
    least a tenth of them have grade 0 or less. Else they count as not relevant, because the precision among judged
    candidates alone would be far too high.

    Raises:
        InvalidInputError: A logit is not a finite number.
    """
    rows = [
        (index, logit_of(logits[query_id], query_id, doc_id), collection.qrels.get(query_id, {}).get(doc_id, math.nan))
        for index, query_id in enumerate(collection.queries)
        for doc_id in collection.run.get(query_id, ())
        if doc_id in logits.get(query_id, ())
    ]
    queries, scores, grades = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    # NaN compares as False.
    relevant, irrelevant = grades >= relevant_grade, grades < relevant_grade
    all_grades = [grade for judged in collection.qrels.values() for grade in judged.values()]
    judged_both_ways = sum(grade <= 0 for grade in all_grades) >= 0.1 * len(all_grades)
    left_out = judged_both_ways or bool((relevant | irrelevant).all())
    return Candidates(
        queries=queries.astype(np.int64),
        logits=scores,
        relevant=relevant,
        counted=relevant | irrelevant if left_out else np.ones(len(grades), dtype=np.bool_),
        unjudged_as_irrelevant=not left_out,
    )


def cuts(
    collection: Collection,
    logits: Run,
    *,
    relevant_grade: int = 1,
    measure: str | Measure = "nDCG@10",
    recalls: Sequence[float] = RECALLS,
    precisions: Sequence[float] = PRECISIONS,
) -> Cuts | None:
    """Suggest thresholds, or return None if no candidate is relevant.

    Thresholds have four decimals, and the figures beside them are those of the printed threshold. Candidates without
    a judgement are left out of recall and precision if at least a tenth of all judgements have grade 0 or less, else
    they count as not relevant; `kept_per_query` counts all candidates, over all queries. A precision holds from a
    threshold on if no higher threshold has a lower precision. Thresholds that keep fewer than 5 candidates, or less
    than 5 % of the number of relevant ones, are ignored here: single passages would decide.

    `top_n` is at most 50. `top_k_value` is the measure of rankings that hold only the `top_k` candidates.

    Args:
        collection: Queries, judgements and first stage.
        logits: Logits of the candidates that were scored.
        relevant_grade: Minimum grade that counts as relevant.
        measure: Measure for `top_k`.
        recalls: Shares of the relevant candidates to keep.
        precisions: Shares of relevant candidates among the kept ones to reach.
    """
    candidates = judged_candidates(collection, logits, relevant_grade=relevant_grade)
    if not candidates.relevant.any():
        return None
    thresholds = _Thresholds(candidates, len(collection.queries))
    top_n_recall = _top_n_recall(candidates)
    gains = {n: recall - top_n_recall[n - 1] for n, recall in top_n_recall.items() if n > 1}
    top_k_value = _top_k_value(collection, logits, measure)
    highest = max(top_k_value.values())
    return Cuts(
        curve=thresholds.curve(),
        for_recall={recall: thresholds.for_recall(recall) for recall in recalls},
        for_precision={precision: thresholds.for_precision(precision) for precision in precisions},
        top_n_recall=top_n_recall,
        # Rounding must not make a gain of 0.01 smaller.
        top_n=max((n for n, gain in gains.items() if gain >= 0.01 - 1e-9), default=1),
        top_k_value=top_k_value,
        top_k=min(top_k for top_k, value in top_k_value.items() if value >= highest - 0.005),
        unjudged_as_irrelevant=candidates.unjudged_as_irrelevant,
    )


def threshold_for_recall(candidates: Candidates, recall: float) -> float:
    """Return the highest threshold that keeps this share of the relevant candidates, of which there must be one."""
    return _Thresholds(candidates, 1).for_recall(recall).score_threshold


class _Thresholds:
    """Each logit, rounded down, as a threshold; in ascending order, and a last one that keeps nothing."""

    def __init__(self, candidates: Candidates, queries: int) -> None:
        distinct, index = np.unique(_rounded_down(candidates.logits), return_inverse=True)

        def kept(which: NDArray[np.bool_]) -> NDArray[np.int64]:
            return np.bincount(index[which], minlength=len(distinct) + 1)[::-1].cumsum()[::-1]

        self._values = np.append(distinct, distinct[-1] + 1) / 10**_DIGITS
        self._relevant = kept(candidates.relevant)
        self._counted = kept(candidates.counted)
        self._kept = kept(np.ones_like(candidates.counted))
        self._queries = queries

    def point(self, index: int) -> CutPoint:
        """Return a threshold with what it keeps."""
        relevant, counted = int(self._relevant[index]), int(self._counted[index])
        return CutPoint(
            score_threshold=float(self._values[index]),
            recall=relevant / int(self._relevant[0]),
            precision=relevant / counted if counted else None,
            kept_per_query=int(self._kept[index]) / self._queries,
        )

    def for_recall(self, recall: float) -> CutPoint:
        """Return the highest threshold that keeps this share of the relevant candidates."""
        # 0.95 of 20 may be above 19 by rounding.
        return self.point(int(np.flatnonzero(self._relevant >= recall * self._relevant[0] - 1e-9)[-1]))

    def for_precision(self, precision: float) -> CutPoint | None:
        """Return the lowest threshold from which on this precision holds."""
        enough = np.flatnonzero(self._counted >= max(5, 0.05 * self._relevant[0]))
        lower = np.flatnonzero(self._relevant[enough] < precision * self._counted[enough] - 1e-9)
        holds = enough[lower[-1] + 1 :] if lower.size else enough
        return self.point(int(holds[0])) if holds.size else None

    def curve(self) -> tuple[CutPoint, ...]:
        """Return at most 200 thresholds: half at even steps of the candidates, half at even steps of the recall."""
        if len(self._values) <= _CURVE_POINTS:
            return tuple(map(self.point, range(len(self._values))))
        half = _CURVE_POINTS // 2
        by_kept = np.searchsorted(-self._kept, -np.linspace(self._kept[0], 0, half))
        # The highest threshold of each recall.
        by_recall = np.searchsorted(-self._relevant, -np.linspace(self._relevant[0], 0, half), side="right") - 1
        return tuple(map(self.point, np.unique(np.concatenate([by_kept, by_recall])).tolist()))


def _rounded_down(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the greatest threshold that keeps each logit, in units of the last digit. Shape: (candidates,), int64."""
    unit = 10**_DIGITS
    steps = np.floor(logits * unit)
    # The product is rounded, but the printed threshold has to compare exactly with the logit.
    steps -= steps / unit > logits
    steps += (steps + 1) / unit <= logits
    whole: NDArray[np.int64] = steps.astype(np.int64)
    return whole


def _top_n_recall(candidates: Candidates) -> dict[int, float]:
    # By query, then by logit; the sort is stable, so that ties keep first-stage order.
    order = np.lexsort((-candidates.logits, candidates.queries))
    queries = candidates.queries[order]
    ranks = np.arange(len(order)) - np.searchsorted(queries, queries) + 1
    found = np.bincount(ranks[candidates.relevant[order]], minlength=int(ranks.max()) + 1).cumsum()
    return {n: float(found[n] / found[-1]) for n in range(1, min(_MAX_TOP_N, int(ranks.max())) + 1)}


def _top_k_value(collection: Collection, logits: Run, measure: str | Measure) -> dict[int, float]:
    (parsed,) = parse_measures([measure])
    run = {
        query_id: {doc_id: score for doc_id, score in results.items() if doc_id in logits.get(query_id, {})}
        for query_id, results in collection.run.items()
    }
    deepest = max(map(len, run.values()))
    depths = sorted(depth for depth in {*_DEPTHS, *range(100, deepest, 50), deepest} if depth <= deepest)
    values = {top_k: per_query([parsed], collection.qrels, reranked(run, logits, top_k)) for top_k in depths}
    return {top_k: mean(found[str(parsed)]) for top_k, found in values.items()}
