"""Measures of rankings through ir_measures, and the rankings that a reranked one is compared with."""

from __future__ import annotations

import math
import warnings
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING

from marcorank.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    from ir_measures import Measure

    from marcorank.collections.records import Qrels, Run

# How good the visible top is by grade, where the first hit stands, and what share of the relevant passages a reader
# of ten results gets, which is what an LLM can answer from.
DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@10")

_NO_CUTOFF = "no usable cutoff"
_EXAMPLES = "such as nDCG@10, RR@10, RR(rel=2)@10, R@100, P@5, AP, Success@5 or Judged@10"


def parse_measures(names: Iterable[str | Measure], *, relevant_grade: int = 1) -> tuple[Measure, ...]:
    """Return the measures of ir_measures that names stand for, each once, in their order.

    Each is tried on one passage, so that what cannot be computed here shows before anything is scored.

    Args:
        names: As ir_measures spells them.
        relevant_grade: Minimum grade that counts as relevant, for measures that have a minimum grade and do not name
            it themselves: with 2, `RR@10` becomes `RR(rel=2)@10`.

    Raises:
        InvalidInputError: There are none, or one is unknown, lacks its cutoff, cannot be computed here or has no
            value for a single query.
        MissingExtraError: ir_measures is not installed.
    """
    if isinstance(names, str):
        raise InvalidInputError(f"`measures` is {names!r}; expected a list of names, {_EXAMPLES}.")
    found = tuple(dict.fromkeys(_measure(name, relevant_grade) for name in names))
    if not found:
        raise InvalidInputError(f"`measures` is empty; expected at least one, {_EXAMPLES}.")
    return found


def per_query(measures: Iterable[Measure], qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Return the value of each measure, by its name, for each judged query.

    What counts of a run is the order of its passages, not their scores. A query without results is 0, queries that
    are not judged are left out. The mean over the queries is what `ir_measures.calc_aggregate` gives. Grades below 0
    count as 0.

    Args:
        measures: As `parse_measures` returns them.
        qrels: What is judged.
        run: Passages by query, best first.
    """
    wanted = list(measures)
    values: dict[str, dict[str, float]] = {
        str(measure): dict.fromkeys(qrels, float(measure.DEFAULT)) for measure in wanted
    }
    # pytrec_eval, which ir_measures calls, crashes or never ends where a grade is below 0.
    plain_qrels = {
        query_id: {doc_id: max(grade, 0) for doc_id, grade in grades.items()}
        for query_id, grades in qrels.items()
        if grades
    }
    # Whole numbers, since providers break ties in ways of their own, and one of them keeps scores in 32 bits.
    plain_run = {
        query_id: dict(zip(results, range(len(results), 0, -1), strict=True))
        for query_id, results in run.items()
        if results and query_id in qrels
    }
    for metric in _ir_measures().iter_calc(wanted, plain_qrels, plain_run):
        values[str(metric.measure)][metric.query_id] = float(metric.value)
    return values


def mean(values: Mapping[str, float]) -> float:
    """Return the mean over queries."""
    return math.fsum(values.values()) / len(values)


def identity(run: Run, top_k: int) -> dict[str, dict[str, float]]:
    """Return the first `top_k` candidates of each query as the first stage ordered them."""
    return {query_id: dict(islice(results.items(), top_k)) for query_id, results in run.items()}


def best(run: Run, qrels: Qrels, top_k: int) -> dict[str, dict[str, float]]:
    """Return the first `top_k` candidates of each query in the best order that a reranker could give them.

    By grade, unjudged ones last; the scores are positions counted from the end.
    """
    ordered: dict[str, dict[str, float]] = {}
    for query_id, candidates in identity(run, top_k).items():
        grades = qrels.get(query_id, {})
        by_grade = sorted(candidates, key=partial(_grade, grades), reverse=True)
        ordered[query_id] = {doc_id: float(len(by_grade) - index) for index, doc_id in enumerate(by_grade)}
    return ordered


def reranked(run: Run, logits: Run, top_k: int) -> dict[str, dict[str, float]]:
    """Return the first `top_k` candidates of each query by logit; ties keep the order of the first stage.

    Args:
        run: The first stage, best first.
        logits: At least those of these candidates, by query_id and doc_id.
        top_k: Candidates of each query.

    Raises:
        InvalidInputError: A candidate has no logit, or one that is not finite.
    """
    ordered: dict[str, dict[str, float]] = {}
    for query_id, candidates in identity(run, top_k).items():
        given = logits.get(query_id, {})
        scored = [(doc_id, _logit(given, query_id, doc_id)) for doc_id in candidates]
        ordered[query_id] = dict(sorted(scored, key=itemgetter(1), reverse=True))
    return ordered


def _grade(grades: Mapping[str, int], doc_id: str) -> float:
    return grades.get(doc_id, -math.inf)


def _logit(given: Mapping[str, float], query_id: str, doc_id: str) -> float:
    logit = given.get(doc_id)
    if logit is None or not math.isfinite(logit):
        raise InvalidInputError(
            f"The logit of passage {doc_id!r} for query {query_id!r} is {logit!r}; expected a finite number for each "
            "candidate. Score the candidates at least down to this depth."
        )
    return logit


def _measure(name: object, relevant_grade: int) -> Measure:
    ir_measures = _ir_measures()
    if not isinstance(name, (str, ir_measures.Measure)):
        raise InvalidInputError(f"A measure is {name!r}; expected a name, {_EXAMPLES}.")
    try:
        with warnings.catch_warnings():
            # ir_measures reads names with parts of `ast` that Python 3.12 deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            measure: Measure = ir_measures.parse_measure(name)
        _check_parameters(measure)
        if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
            measure = measure(rel=relevant_grade)
        ir_measures.calc_aggregate([measure], {"query": {"passage": 1}}, {"query": {"passage": 1.0}})
    except Exception as error:
        raise InvalidInputError(_complaint(name, error)) from error
    if not isinstance(measure.aggregator(), ir_measures.measures.MeanAgg):
        raise InvalidInputError(f"Measure {name!r} is a count over all queries; expected a mean, {_EXAMPLES}.")
    return measure


def _check_parameters(measure: Measure) -> None:
    # ir_measures itself takes True and 0 for a cutoff, and gives values for them.
    if not _counts(measure.params.get("cutoff", 1)):
        raise ValueError(_NO_CUTOFF)
    least = measure.params.get("rel", 1)
    if not _counts(least):
        raise ValueError(f"`rel` is {least!r}, not a whole number from 1")
    gains = measure.params.get("gains", {})
    if min(gains.values(), default=0) < 0:
        raise ValueError(f"`gains` are {gains!r}, some below 0")


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _complaint(name: object, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    # The second is what ir_measures says where a cutoff is missing.
    if reason == _NO_CUTOFF or reason.startswith("invalid param cutoff"):
        return f"Measure {name!r} has no usable cutoff; expected a whole number from 1 after an @, {_EXAMPLES}."
    return f"Measure {name!r} cannot be computed ({reason}); expected one as ir_measures spells it, {_EXAMPLES}."


def _ir_measures() -> ModuleType:
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError('Measures need the package ir-measures: pip install "marcorank[evaluation]"') from error
    return ir_measures
