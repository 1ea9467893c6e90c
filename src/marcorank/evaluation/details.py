"""The details of one model in a report: its queries, its scores and its thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank.evaluation import charts
from marcorank.evaluation.calibration import probabilities
from marcorank.evaluation.charts import Figure
from marcorank.evaluation.cutting import judged_candidates
from marcorank.evaluation.measures import identity, reranked
from marcorank.evaluation.wording import count, percent, signed, value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from marcorank.evaluation.records import Calibration, CutPoint, Cuts, EvaluationRecord, MeasureResult, ModelResult

# The recall whose cut the pictures mark.
_MARKED_RECALL = 0.95
_LOSSES, _GAINS, _SHOWN_PASSAGES = 10, 5, 5
_PREVIEW_CHARS, _WHOLE_CHARS, _QUERY_CHARS = 280, 2000, 500
_RANK_ENDS = (1, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
# Two values of a measure are the same within this.
_TIE = 1e-9
_BINS = 10


@dataclass(frozen=True, slots=True)
class _Orders:
    """The candidates of one query that were reranked, in both orders."""

    query_id: str
    before: list[str]
    after: list[str]


@dataclass(frozen=True, slots=True)
class _Logits:
    """Logits of the candidates that were reranked.

    Attributes:
        relevant: Of relevant passages. Shape: (passages,), float64.
        others: Of what counts as not relevant. Shape: (passages,), float64.
        left_out: Number of candidates without a judgement that are in neither.
        queries: Number of queries that the passages belong to.
    """

    relevant: NDArray[np.float64]
    others: NDArray[np.float64]
    left_out: int
    queries: int


def details(evaluation: EvaluationRecord, result: ModelResult) -> dict[str, Any]:
    """Return what the page's template shows of one model at its greatest depth, by name."""
    depth = result.depths[-1]
    found = depth.measures[0]
    orders = {order.query_id: order for order in _orders(evaluation, result, depth.top_k)}
    logits = _logits(evaluation, result)
    differences = {query: new - found.per_query_identity[query] for query, new in found.per_query.items()}
    losses = sorted((change, query) for query, change in differences.items() if change < -_TIE)[:_LOSSES]
    gains = sorted((-change, query) for query, change in differences.items() if change > _TIE)[:_GAINS]

    def views(chosen: list[tuple[float, str]]) -> list[dict[str, Any]]:
        return [_query_view(evaluation, result, found, orders[query]) for _, query in chosen if query in orders]

    return {
        "found": found,
        "top_k": depth.top_k,
        "gain_figure": _gain_figure(found, list(differences.values())),
        "move_figure": _move_figure(evaluation, orders, depth.top_k),
        "cuts": result.cuts,
        "cut_figures": list(_cut_figures(evaluation, result.cuts, logits)),
        "calibration": result.calibration,
        "calibration_figure": _calibration_figure(result.calibration, logits),
        "tested_on": _tested_on(logits),
        "probability": _probability(result.calibration),
        "losses": views(losses),
        "gains": views(gains),
    }


def _orders(evaluation: EvaluationRecord, result: ModelResult, top_k: int) -> Iterator[_Orders]:
    run = evaluation.collection.run
    candidates, ordered = identity(run, top_k), reranked(run, result.logits, top_k)
    for query_id in evaluation.collection.queries:
        yield _Orders(query_id, list(candidates.get(query_id, ())), list(ordered.get(query_id, ())))


def _logits(evaluation: EvaluationRecord, result: ModelResult) -> _Logits:
    found = judged_candidates(evaluation.collection, result.logits, relevant_grade=evaluation.relevant_grade)
    return _Logits(
        relevant=found.logits[found.relevant],
        others=found.logits[found.counted & ~found.relevant],
        left_out=int((~found.counted).sum()),
        queries=len(np.unique(found.queries[found.counted])),
    )


def _gain_figure(found: MeasureResult, differences: Sequence[float]) -> Figure:
    title = f"Gain of each query in {found.measure}"
    most, least = max(differences, default=0.0), min(differences, default=0.0)
    said = (
        "Each query is one step: above the line reranking made it better, below worse. "
        f"{count(found.wins, 'query', 'queries')} better, {found.ties:,} the same, {found.losses:,} worse"
    )
    if most > _TIE:
        said += f"; the largest gain is {signed(most)}"
    if least < -_TIE:
        said += f"; the largest loss is {signed(least)}"
    return Figure(title, charts.gains(title, differences, measure=found.measure), f"{said}.")


def _move_figure(evaluation: EvaluationRecord, orders: Mapping[str, _Orders], top_k: int) -> Figure:
    title = "Where relevant passages moved"
    old: list[int] = []
    new: list[int] = []
    for order in orders.values():
        rank_of = {doc_id: rank for rank, doc_id in enumerate(order.after, 1)}
        ranks = _relevant_ranks(evaluation, order.query_id, order.before)
        old += ranks
        new += [rank_of[order.before[rank - 1]] for rank in ranks]
    if not old:
        return Figure(title, "", "No relevant passage is among the candidates that were reranked.")
    deepest = max(*old, *new)
    ends = [*(end for end in _RANK_ENDS if end < deepest), deepest]
    starts = [1, *(end + 1 for end in ends[:-1])]
    labels = [f"{low}" if low == high else f"{low}-{high}" for low, high in zip(starts, ends, strict=True)]
    moved = np.zeros((len(ends), len(ends)), dtype=np.int64)
    np.add.at(moved, (np.searchsorted(ends, old), np.searchsorted(ends, new)), 1)
    up, down = np.less(new, old).sum(), np.greater(new, old).sum()
    said = (
        "A number counts the relevant passages that went from the ranks of its row to those of its column: left of the "
        f"framed cells they moved up, right of them down. {up:,} of {count(len(old), 'relevant candidate')} moved up, "
        f"{down:,} down; their median rank went from {median(old):g} to {median(new):g}."
    )
    missed = _relevant_passages(evaluation) - len(old)
    if missed:
        said += (
            f" {count(missed, 'more relevant passage')} {'is' if missed == 1 else 'are'} not among the first "
            f"{count(top_k, 'candidate')} of {'its query' if missed == 1 else 'their queries'}: no reranker can bring "
            f"{'it' if missed == 1 else 'them'} back."
        )
    return Figure(title, charts.moves(title, moved, labels), said)


def _cut_figures(evaluation: EvaluationRecord, cuts: Cuts | None, logits: _Logits) -> Iterator[Figure]:
    if not len(logits.relevant) and not len(logits.others):
        return
    marked = _marked(cuts)
    yield _score_figure(logits, marked)
    if cuts is None:
        return
    curve = [point for point in cuts.curve if np.isfinite(point.score_threshold)]
    if curve:
        yield from _curve_figures(curve, marked)
    yield from _step_figures(evaluation.measures[0], cuts)


def _marked(cuts: Cuts | None) -> CutPoint | None:
    """Return the cut that the pictures mark: the one that keeps 95 % of what is relevant, or what is nearest to it."""
    if cuts is None or not cuts.for_recall:
        return None
    return cuts.for_recall[min(cuts.for_recall, key=lambda recall: abs(recall - _MARKED_RECALL))]


def _score_figure(logits: _Logits, marked: CutPoint | None) -> Figure:
    title = "Scores of relevant and other passages"
    if not len(logits.relevant) or not len(logits.others):
        said = f"How the logits are spread; there are only {'relevant' if len(logits.relevant) else 'other'} passages."
    else:
        said = (
            "The less the two shapes overlap, the better one threshold separates them. The median logit is "
            f"{np.median(logits.relevant):.2f} of relevant passages and "
            f"{np.median(logits.others):.2f} of others."
        )
    if marked:
        said += f" The cut at {marked.score_threshold:.4f} keeps {percent(marked.recall)} of the relevant ones."
    if logits.left_out:
        verb = "is" if logits.left_out == 1 else "are"
        said += f" {count(logits.left_out, 'candidate')} without a judgement {verb} left out."
    cut = marked.score_threshold if marked else None
    return Figure(title, charts.scores(title, logits.relevant, logits.others, cut=cut), said)


def _curve_figures(curve: Sequence[CutPoint], marked: CutPoint | None) -> Iterator[Figure]:
    thresholds = [point.score_threshold for point in curve]
    recall, precision = [point.recall for point in curve], [point.precision for point in curve]
    title = "Recall and precision by threshold"
    said = "Read up from a threshold: how much of what is relevant it keeps, and how much of what it keeps is relevant."
    if marked:
        pure = "unknown" if marked.precision is None else percent(marked.precision)
        said += (
            f" At {marked.score_threshold:.4f} recall is {percent(marked.recall)} and precision {pure}, with "
            f"{marked.kept_per_query:.3g} passages a query."
        )
    cut = marked.score_threshold if marked else None
    yield Figure(title, charts.thresholds(title, thresholds, recall, precision, cut=cut), said)
    title = "Precision against recall"
    said = "Each point of the line is a threshold: to the right more is kept, up it is purer."
    if precision[0] is not None:
        said += f" Keeping every candidate gives a precision of {percent(precision[0])}."
    yield Figure(title, charts.trade(title, recall, precision), said)


def _step_figures(measure: str, cuts: Cuts) -> Iterator[Figure]:
    if cuts.top_n_recall:
        title = "Recall by number of results (top_n)"
        said = "How much of the relevant candidates is among the first n results."
        if cuts.top_n is not None and cuts.top_n in cuts.top_n_recall:
            share = percent(cuts.top_n_recall[cuts.top_n])
            said += f" top_n = {cuts.top_n} holds {share}; no result after it adds 1 % or more."
        picture = charts.steps(
            ("top_n", cuts.top_n),
            title,
            cuts.top_n_recall,
            xlabel="results returned (top_n)",
            ylabel="recall of relevant candidates",
            whole=True,
        )
        yield Figure(title, picture, said)
    if cuts.top_k_value:
        title = f"{measure} by candidates reranked (top_k)"
        said = "What reranking more candidates brings."
        if cuts.top_k is not None and cuts.top_k in cuts.top_k_value:
            found, most = value(cuts.top_k_value[cuts.top_k]), value(max(cuts.top_k_value.values()))
            said += f" top_k = {cuts.top_k} gives {found}, within 0.005 of the best, {most}."
        picture = charts.steps(
            ("top_k", cuts.top_k),
            title,
            cuts.top_k_value,
            xlabel="candidates reranked (top_k)",
            ylabel=measure,
            whole=False,
        )
        yield Figure(title, picture, said)


def _probability(calibration: Calibration | None) -> Callable[[float], float] | None:
    if calibration is None:
        return None
    a, b = calibration.a, calibration.b
    return lambda logit: float(probabilities(np.asarray(a * logit + b)))


def _tested_on(logits: _Logits) -> str:
    """Say which pairs the errors of the calibration are of."""
    return "queries left out of the fit" if logits.queries > 1 else "the one query of the fit"


def _calibration_figure(calibration: Calibration | None, logits: _Logits) -> Figure | None:
    if calibration is None or not len(logits.relevant):
        return None
    every = np.concatenate([logits.relevant, logits.others])
    is_relevant = np.arange(len(every)) < len(logits.relevant)
    series = []
    for name, a, b in (("fitted", calibration.a, calibration.b), ("sigmoid", 1.0, 0.0)):
        said = probabilities(a * every + b)
        bin_index = np.minimum((_BINS * said).astype(int), _BINS - 1)
        filled = [bin_index == n for n in range(_BINS) if (bin_index == n).any()]
        series.append(
            (name, [float(said[own].mean()) for own in filled], [float(is_relevant[own].mean()) for own in filled])
        )
    title = "Probability said and share relevant"
    caption = (
        "On the dotted line, passages that are said to be relevant with 30 % are relevant in 30 of 100 cases; below "
        f"it the scores promise too much. On {_tested_on(logits)} the expected calibration error is "
        f"{value(calibration.expected_error)} with the fitted map and {value(calibration.expected_error_sigmoid)} with "
        "the plain sigmoid; the picture shows all queries."
    )
    return Figure(title, charts.reliability(title, series), caption)


def _query_view(
    evaluation: EvaluationRecord, result: ModelResult, found: MeasureResult, order: _Orders
) -> dict[str, Any]:
    query_id = order.query_id
    query = evaluation.collection.queries[query_id]
    old = _relevant_ranks(evaluation, query_id, order.before)
    new = _relevant_ranks(evaluation, query_id, order.after)
    before, after = order.before[:_SHOWN_PASSAGES], order.after[:_SHOWN_PASSAGES]
    said = (
        f"Relevant among the first {_SHOWN_PASSAGES}: {sum(rank <= _SHOWN_PASSAGES for rank in old)} before, "
        f"{sum(rank <= _SHOWN_PASSAGES for rank in new)} now."
    )
    if old:
        said += f" First relevant passage: rank {old[0]} before, {new[0]} now."
    grades = evaluation.collection.qrels.get(query_id, {})
    unjudged = sum(doc_id not in grades for doc_id in after)
    if unjudged:
        said += f" Not judged among the first {_SHOWN_PASSAGES} now: {unjudged}."
    return {
        "query_id": query_id,
        "query": query[:_QUERY_CHARS],
        "query_chars": len(query),
        "query_shown_chars": min(len(query), _QUERY_CHARS),
        "value": found.per_query[query_id],
        "identity": found.per_query_identity[query_id],
        "difference": found.per_query[query_id] - found.per_query_identity[query_id],
        "said": said,
        "before": [_passage_view(evaluation, result, order, doc_id) for doc_id in before],
        "after": [_passage_view(evaluation, result, order, doc_id) for doc_id in after],
    }


def _passage_view(evaluation: EvaluationRecord, result: ModelResult, order: _Orders, doc_id: str) -> dict[str, Any]:
    text = evaluation.collection.passages[doc_id]
    head = text[:_PREVIEW_CHARS]
    if len(text) > len(head):
        # Rather between two words than within one, unless the last one is no word but a wall of letters.
        last = max(head.rfind(" "), head.rfind("\n"))
        head = head[:last] if last > _PREVIEW_CHARS // 2 else head
    return {
        "doc_id": doc_id,
        "grade": evaluation.collection.qrels.get(order.query_id, {}).get(doc_id),
        "relevant": _is_relevant(evaluation, order.query_id, doc_id),
        "logit": result.logits[order.query_id][doc_id],
        "old": order.before.index(doc_id) + 1,
        "new": order.after.index(doc_id) + 1,
        "head": head,
        "rest": text[len(head) : _WHOLE_CHARS],
        "chars": len(text),
        "shown_chars": min(len(text), _WHOLE_CHARS),
    }


def _is_relevant(evaluation: EvaluationRecord, query_id: str, doc_id: str) -> bool:
    grade = evaluation.collection.qrels.get(query_id, {}).get(doc_id)
    return grade is not None and grade >= evaluation.relevant_grade


def _relevant_ranks(evaluation: EvaluationRecord, query_id: str, doc_ids: Sequence[str]) -> list[int]:
    return [rank for rank, doc_id in enumerate(doc_ids, 1) if _is_relevant(evaluation, query_id, doc_id)]


def _relevant_passages(evaluation: EvaluationRecord) -> int:
    least = evaluation.relevant_grade
    return sum(grade >= least for grades in evaluation.collection.qrels.values() for grade in grades.values())
