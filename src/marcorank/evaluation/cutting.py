"""Where to cut: what judged data says of `score_threshold`, `top_n` and `top_k`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marcorank.evaluation.measures import mean, parse_measures, per_query, reranked
from marcorank.evaluation.records import CutPoint, Cuts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """Candidates of all queries in one row, in the order of the queries and of the first stage.

    Attributes:
        queries: Position of the query of each in `Collection.queries`. Shape: (candidates,), int64.
        logits: Shape: (candidates,), float64.
        relevant: Whether the grade is at least the relevant one. Shape: (candidates,), bool.
        counted: Whether it counts as relevant or not relevant; False where it is left out because nobody judged it.
            Shape: (candidates,), bool.
        unjudged_as_irrelevant: Whether those that nobody judged count as not relevant.
    """

    queries: NDArray[np.int64]
    logits: NDArray[np.float64]
    relevant: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    unjudged_as_irrelevant: bool


def judged_candidates(collection: Collection, logits: Run, *, relevant_grade: int = 1) -> Candidates:
    """Return which candidates are relevant, which are not, and which of them count.

    Candidates that nobody judged are left out where the judges also wrote down what is not relevant: where at least
    a tenth of all judgements have grade 0 or less. Else they count as not relevant, for where judgements name little
    but relevant passages, what is left of the others without them would look far too good.

    Args:
        collection: Queries, judgements and first stage.
        logits: Of the candidates that were scored.
        relevant_grade: Minimum grade that counts as relevant.
    """
    query_indices: list[int] = []
    scores: list[float] = []
    grades: list[float] = []
    for index, query_id in enumerate(collection.queries):
        scored, judged = logits.get(query_id, {}), collection.qrels.get(query_id, {})
        for doc_id in collection.run.get(query_id, {}):
            if doc_id in scored:
                query_indices.append(index)
                scores.append(scored[doc_id])
                grades.append(judged.get(doc_id, math.nan))
    graded = np.array(grades)
    # NaN is below no number.
    relevant, irrelevant = graded >= relevant_grade, graded < relevant_grade
    all_grades = [grade for judged in collection.qrels.values() for grade in judged.values()]
    both_kinds = sum(grade <= 0 for grade in all_grades) >= 0.1 * len(all_grades)
    left_out = both_kinds or bool((relevant | irrelevant).all())
    return Candidates(
        queries=np.array(query_indices, dtype=np.int64),
        logits=np.array(scores),
        relevant=relevant,
        counted=relevant | irrelevant if left_out else np.ones(len(graded), dtype=np.bool_),
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
    """Return where to cut, or None if no candidate is relevant.

    Thresholds have four digits after the point, and the figures beside them are those of the threshold as it is
    printed. Recall and precision look at candidates that count (see `judged_candidates`); `kept_per_query` counts all
    that a user would get, over all queries. A precision holds from a threshold on if no higher one has a lower
    precision, as long as it keeps at least 5 candidates and 5 % as many as there are relevant ones: above that,
    single passages decide.

    `top_n` is the n after which no further result of a query adds 0.01 or more to the recall, within the first 50;
    `top_k_value` is of rankings that hold nothing but the `top_k` candidates.

    Args:
        collection: Queries, judgements and first stage.
        logits: Of the candidates that were scored.
        relevant_grade: Minimum grade that counts as relevant.
        measure: Shown by number of candidates reranked.
        recalls: Wanted shares of the relevant candidates.
        precisions: Wanted shares of relevant candidates among those that are kept.
    """
    candidates = judged_candidates(collection, logits, relevant_grade=relevant_grade)
    if not candidates.relevant.any():
        return None
    thresholds = _Thresholds.of(candidates, len(collection.queries))
    top_n_recall = _top_n_recall(candidates)
    top_k_value = _top_k_value(collection, logits, measure)
    highest = max(top_k_value.values())
    return Cuts(
        curve=thresholds.curve(),
        for_recall={recall: thresholds.for_recall(recall) for recall in recalls},
        for_precision={precision: thresholds.for_precision(precision) for precision in precisions},
        top_n_recall=top_n_recall,
        top_n=_last_gain(top_n_recall),
        top_k_value=top_k_value,
        top_k=min(top_k for top_k, value in top_k_value.items() if value >= highest - 0.005),
        unjudged_as_irrelevant=candidates.unjudged_as_irrelevant,
    )


@dataclass(frozen=True, slots=True)
class _Thresholds:
    """What each threshold keeps; ascending, the last keeps nothing.

    Attributes:
        values: With four digits after the point. Shape: (thresholds,), float64.
        relevant: Relevant candidates kept. Shape: (thresholds,), int64.
        counted: Candidates kept that count. Shape: (thresholds,), int64.
        kept: Candidates kept. Shape: (thresholds,), int64.
        queries: How many there are.
    """

    values: NDArray[np.float64]
    relevant: NDArray[np.int64]
    counted: NDArray[np.int64]
    kept: NDArray[np.int64]
    queries: int

    @classmethod
    def of(cls, candidates: Candidates, queries: int) -> _Thresholds:
        """Take each logit as a threshold, rounded down: what rounds to the same is kept together."""
        steps = _rounded_down(candidates.logits)
        distinct, index = np.unique(steps, return_inverse=True)
        size = len(distinct) + 1

        def kept(which: NDArray[np.bool_]) -> NDArray[np.int64]:
            return np.bincount(index[which], minlength=size)[::-1].cumsum()[::-1]

        return cls(
            values=np.append(distinct, distinct[-1] + 1) / 10**_DIGITS,
            relevant=kept(candidates.relevant),
            counted=kept(candidates.counted),
            kept=kept(np.ones_like(candidates.counted)),
            queries=queries,
        )

    def point(self, index: int) -> CutPoint:
        """Return the threshold at an index with what it keeps."""
        relevant, counted = int(self.relevant[index]), int(self.counted[index])
        return CutPoint(
            score_threshold=float(self.values[index]),
            recall=relevant / int(self.relevant[0]),
            precision=relevant / counted if counted else None,
            kept_per_query=int(self.kept[index]) / self.queries,
        )

    def for_recall(self, recall: float) -> CutPoint:
        """Return the highest threshold that keeps this share of the relevant candidates."""
        # A share such as 0.95 of 20 may come out above 19 by rounding.
        wanted = recall * self.relevant[0] - 1e-9
        return self.point(int(np.flatnonzero(self.relevant >= wanted)[-1]))

    def for_precision(self, precision: float) -> CutPoint | None:
        """Return the lowest threshold from which on this precision holds."""
        enough = np.flatnonzero(self.counted >= max(5, 0.05 * self.relevant[0]))
        if not enough.size:
            return None
        holds = self.relevant[enough] >= precision * self.counted[enough] - 1e-9
        broken = np.flatnonzero(~holds)
        first = int(broken[-1]) + 1 if broken.size else 0
        return self.point(int(enough[first])) if first < enough.size else None

    def curve(self) -> tuple[CutPoint, ...]:
        """Return at most 200 thresholds: half of them in even steps of the candidates, half in even steps of recall."""
        last = len(self.values) - 1
        if last < _CURVE_POINTS:
            return tuple(map(self.point, range(last + 1)))
        half = _CURVE_POINTS // 2
        by_kept = np.searchsorted(-self.kept, -np.linspace(self.kept[0], 0, half))
        # Of the thresholds with one recall the highest, which keeps least besides.
        by_recall = np.searchsorted(-self.relevant, -np.linspace(self.relevant[0], 0, half), side="right") - 1
        return tuple(self.point(int(index)) for index in np.unique(np.concatenate([by_kept, by_recall])))


def _rounded_down(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the greatest threshold that keeps each logit, in units of the last digit. Shape: (candidates,), int64."""
    unit = 10**_DIGITS
    steps = np.floor(logits * unit)
    # The product is rounded; what counts is how the threshold that is printed compares with the logit.
    steps -= steps / unit > logits
    steps += (steps + 1) / unit <= logits
    whole: NDArray[np.int64] = steps.astype(np.int64)
    return whole


def _top_n_recall(candidates: Candidates) -> dict[int, float]:
    # By query, then by logit; the sort is stable, so that ties keep the order of the first stage.
    order = np.lexsort((-candidates.logits, candidates.queries))
    queries = candidates.queries[order]
    ranks = np.arange(len(order)) - np.searchsorted(queries, queries) + 1
    found = np.bincount(ranks[candidates.relevant[order]], minlength=int(ranks.max()) + 1).cumsum()
    return {n: float(found[n] / found[-1]) for n in range(1, min(_MAX_TOP_N, int(ranks.max())) + 1)}


def _last_gain(top_n_recall: Mapping[int, float]) -> int:
    # In the order of n; rounding must not make a gain of 0.01 smaller than it is.
    gains = [n for n in list(top_n_recall)[1:] if top_n_recall[n] - top_n_recall[n - 1] >= 0.01 - 1e-9]
    return max(gains, default=1)


def _top_k_value(collection: Collection, logits: Run, measure: str | Measure) -> dict[int, float]:
    (parsed,) = parse_measures([measure])
    run = {
        query_id: {doc_id: score for doc_id, score in results.items() if doc_id in logits.get(query_id, {})}
        for query_id, results in collection.run.items()
    }
    deepest = max(map(len, run.values()))
    depths = {*_DEPTHS, *range(100, deepest, 50), deepest}
    values: dict[int, float] = {}
    for top_k in sorted(depth for depth in depths if depth <= deepest):
        found = per_query([parsed], collection.qrels, reranked(run, logits, top_k))
        values[top_k] = mean(found[str(parsed)])
    return values
