"""Measures of rankings through ir_measures, and the rankings with which a reranked one is compared."""

from __future__ import annotations

import math
import warnings
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING

from marcorank._arguments import finite_number, whole_number
from marcorank._text import message_of, quoted
from marcorank.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import ModuleType

    from ir_measures import Measure

    from marcorank.collections.records import Qrels, Run

# The quality of the top ten by grade, the rank of the first relevant passage, and the share of the relevant passages in
# the top ten, from which an LLM would answer.
DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@10")

# Measures of exponential gains, which gdeval computes, are defined up to this grade.
_MAX_EXPONENTIAL_GRADE = 4
_PROBE = {"query": {"passage": 1}}
_EXAMPLES = "such as nDCG@10, RR@10, RR(rel=2)@10, R@100, P@5, AP, Success@5 or Judged@10"


def parse_measures(names: Iterable[str | Measure], *, relevant_grade: int = 1) -> tuple[Measure, ...]:
    """Return the measures of ir_measures with these names, without duplicates.

    Each is tried on one passage, so that errors show before anything is scored. A measure that could name a minimum
    grade and does not gets the relevant grade: with 2, `RR@10` becomes `RR(rel=2)@10`.
    """
    if isinstance(names, str):
        raise InvalidInputError(f"`measures` is {quoted(names)}; expected a list of names, {_EXAMPLES}.")
    found = tuple(dict.fromkeys(_measure(name, relevant_grade) for name in names))
    if not found:
        raise InvalidInputError(f"`measures` is empty; expected at least one, {_EXAMPLES}.")
    return found


def per_query(measures: Sequence[Measure], qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Return the value of each measure, by its name, for each judged query.

    The order of a run's passages counts, not their scores. A query without results has the value 0, queries without
    judgements are left out, and grades below 0 count as 0.
    """
    values: dict[str, dict[str, float]] = {
        str(measure): dict.fromkeys(qrels, float(measure.DEFAULT)) for measure in measures
    }
    _check_grades(measures, qrels)
    plain_qrels: dict[str, dict[str, int]] = {}
    plain_run: dict[str, dict[str, int]] = {}
    # Numbers in place of all ids: one of the providers takes no other query_id and no doc_id with a space.
    query_ids = {str(number): query_id for number, query_id in enumerate(qrels, 1)}
    for number, query_id in query_ids.items():
        grades, results = qrels[query_id], run.get(query_id, {})
        doc_ids = {doc_id: str(index) for index, doc_id in enumerate(dict.fromkeys((*grades, *results)), 1)}
        if grades:
            # pytrec_eval, which ir_measures calls, crashes or hangs on grades below 0.
            plain_qrels[number] = {doc_ids[doc_id]: max(grade, 0) for doc_id, grade in grades.items()}
        if results:
            # Whole numbers, because providers break ties in different ways, and one stores scores in 32 bits.
            plain_run[number] = {doc_ids[doc_id]: len(results) - rank for rank, doc_id in enumerate(results)}
    for metric in _ir_measures().iter_calc(measures, plain_qrels, plain_run):
        values[str(metric.measure)][query_ids[metric.query_id]] = float(metric.value)
    return values


def mean(values: Mapping[str, float]) -> float:
    """Return the mean over queries."""
    return math.fsum(values.values()) / len(values)


def identity(run: Run, top_k: int) -> dict[str, dict[str, float]]:
    """Return the first `top_k` candidates of each query in first-stage order."""
    return {query_id: dict(islice(results.items(), top_k)) for query_id, results in run.items()}


def best(run: Run, qrels: Qrels, top_k: int) -> dict[str, dict[str, float]]:
    """Return the first `top_k` candidates of each query in the best possible order: by grade, unjudged ones last."""
    ordered: dict[str, dict[str, float]] = {}
    for query_id, candidates in identity(run, top_k).items():
        grades = qrels.get(query_id, {})
        graded = {doc_id: grades.get(doc_id, -math.inf) for doc_id in candidates}
        ordered[query_id] = dict(sorted(graded.items(), key=itemgetter(1), reverse=True))
    return ordered


def reranked(run: Run, logits: Run, top_k: int) -> dict[str, dict[str, float]]:
    """Return the first `top_k` candidates of each query by logit; ties keep first-stage order."""
    ordered: dict[str, dict[str, float]] = {}
    for query_id, candidates in identity(run, top_k).items():
        given = logits.get(query_id, {})
        scored = [(doc_id, logit_of(given, query_id, doc_id)) for doc_id in candidates]
        ordered[query_id] = dict(sorted(scored, key=itemgetter(1), reverse=True))
    return ordered


def logit_of(given: Mapping[str, float], query_id: str, doc_id: str) -> float:
    """Return the logit of a passage.

    Raises:
        InvalidInputError: There is none, or it is not a finite number.
    """
    logit = given.get(doc_id)
    if logit is None or finite_number(logit) is None:
        raise InvalidInputError(
            f"The logit of passage {quoted(doc_id)} for query {quoted(query_id)} is {quoted(logit)}; expected a "
            "finite number for each candidate. Score the candidates at least down to `top_k`."
        )
    return logit


def _measure(name: object, relevant_grade: int) -> Measure:
    ir_measures = _ir_measures()
    if not isinstance(name, (str, ir_measures.Measure)):
        raise InvalidInputError(f"A measure is {quoted(name)}; expected a name, {_EXAMPLES}.")
    try:
        with warnings.catch_warnings():
            # ir_measures reads names with parts of `ast` that Python 3.12 deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            measure: Measure = ir_measures.parse_measure(name)
        _check_parameters(measure)
        if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
            measure = measure(rel=relevant_grade)
        per_query([measure], _PROBE, _PROBE)
    except Exception as error:
        reason = " ".join(message_of(error).split()) or type(error).__name__
        raise InvalidInputError(
            f"Measure {quoted(name)} cannot be computed: {reason.rstrip('.')}. Expected a name of ir_measures, "
            f"{_EXAMPLES}."
        ) from error
    if not isinstance(measure.aggregator(), ir_measures.measures.MeanAgg):
        raise InvalidInputError(f"Measure {quoted(name)} is a count over all queries; expected a mean, {_EXAMPLES}.")
    return measure


def _check_parameters(measure: Measure) -> None:
    """Check what ir_measures does not: some of its providers abort the process on an invalid cutoff."""
    for name in ("cutoff", "rel"):
        if name in measure.params:
            whole_number(name, measure.params[name], 1)
        elif name in measure.SUPPORTED_PARAMS and measure.SUPPORTED_PARAMS[name].required:
            raise ValueError(f"`{name}` is missing")
    gains = measure.params.get("gains", {})
    if min(gains.values(), default=0) < 0:
        raise ValueError(f"`gains` are {quoted(gains)}; expected none below 0")


def _check_grades(measures: Sequence[Measure], qrels: Qrels) -> None:
    exponential = [measure for measure in measures if measure.NAME == "ERR" or measure.params.get("dcg") == "exp-log2"]
    greatest = max((grade for grades in qrels.values() for grade in grades.values()), default=0)
    if exponential and greatest > _MAX_EXPONENTIAL_GRADE:
        raise InvalidInputError(
            f"The greatest grade of the qrels is {greatest}, and {exponential[0]} is defined for grades of at most "
            f"{_MAX_EXPONENTIAL_GRADE}. Map the grades to 0 to {_MAX_EXPONENTIAL_GRADE}, or leave the measure out."
        )


def _ir_measures() -> ModuleType:
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError('Measures need the package ir-measures: pip install "marcorank[evaluation]"') from error
    return ir_measures
