"""Read runs and qrels, and write runs."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from marcorank._files import written
from marcorank._text import quoted
from marcorank.collections.columns import read_columns
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from marcorank.collections.records import Qrels, Run

_RUN_FORMATS = {
    6: ("query_id", "Q0", "doc_id", "rank", "score", "tag"),
    4: ("query_id", "doc_id", "rank", "score"),
    3: ("query_id", "doc_id", "score"),
}
_QRELS_FORMATS = {
    4: ("query_id", "iteration", "doc_id", "grade"),
    3: ("query_id", "doc_id", "grade"),
}
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
# trec_eval reads scores in single precision.
_GREATEST = float(np.finfo(np.float32).max)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run: TREC's six columns, or query_id, doc_id, rank and score, or query_id, doc_id and score.

    Columns are separated by tabs or spaces. The file may have a header and be compressed. Results are sorted by score,
    ties by doc_id descending, as in trec_eval. Ranks are ignored, except in MS MARCO's files of query_id, doc_id and
    rank, which have no scores.

    Raises:
        InvalidInputError: The file cannot be read, or a line is not a result.
    """
    return run_and_notes(path)[0]


def read_qrels(path: str | os.PathLike[str]) -> Qrels:
    """Read qrels: TREC's four columns, or BEIR's query_id, doc_id and grade.

    Columns are separated by tabs or spaces. The file may have a header and be compressed.

    Raises:
        InvalidInputError: The file cannot be read, or a line is not a judgement.
    """
    return qrels_and_notes(path)[0]


def run_and_notes(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Read a run as `read_run` does, and return notes about ranks and ties.

    Raises:
        InvalidInputError: The file cannot be read, or a line is not a result.
    """
    rows, notes = read_columns(path, _RUN_FORMATS, what="a run")
    found: dict[str, dict[str, float]] = {}
    maybe_ranks = True
    for location, cells in rows:
        query_id, doc_id, score = cells["query_id"], cells["doc_id"], cells["score"]
        results = found.setdefault(query_id, {})
        if doc_id in results:
            raise _repeated(location, query_id, doc_id, "A run has each result once.")
        results[doc_id] = _score(score, location)
        maybe_ranks = maybe_ranks and len(cells) == 3 and score.isdigit()
        if len(cells) == 4 and not _WHOLE.fullmatch(cells["rank"]):
            raise InvalidInputError(
                f"{location}: the rank is {quoted(cells['rank'])}; expected a whole number in the third of four "
                "columns (query_id doc_id rank score). Are these qrels?"
            )
    if maybe_ranks and _count_from_one(found):
        notes.append(f"{str(path)!r}: the third column counts 1, 2, 3 for each query and was read as ranks.")
        found = {query: {doc: -rank for doc, rank in results.items()} for query, results in found.items()}
    tied = sum(len(results) - len(set(results.values())) for results in found.values())
    if tied:
        notes.append(
            f"{str(path)!r}: results with the score of another result of their query: {tied} of "
            f"{sum(map(len, found.values()))}; ties are ordered by doc_id, descending, as in trec_eval."
        )
    return {query: best_first(results) for query, results in found.items()}, notes


def qrels_and_notes(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Read qrels as `read_qrels` does, and return a note about repeated judgements.

    Raises:
        InvalidInputError: The file cannot be read, or a line is not a judgement.
    """
    rows, notes = read_columns(path, _QRELS_FORMATS, what="qrels")
    found: dict[str, dict[str, int]] = {}
    repeated = 0
    for location, cells in rows:
        query_id, doc_id, text = cells["query_id"], cells["doc_id"], cells["grade"]
        if not _WHOLE.fullmatch(text):
            raise InvalidInputError(
                f"{location}: the grade is {quoted(text)}; expected a whole number, such as 0, 1 or 2."
            )
        grade = int(text.partition(".")[0])
        grades = found.setdefault(query_id, {})
        if grades.get(doc_id, grade) != grade:
            hint = f"Its grade is {grades[doc_id]} there and {grade} here; keep one of the lines."
            raise _repeated(location, query_id, doc_id, hint)
        repeated += doc_id in grades
        grades[doc_id] = grade
    if repeated:
        notes.append(f"{str(path)!r}: judgements repeated with the same grade, counted once: {repeated}.")
    return found, notes


def best_first(results: dict[str, float]) -> dict[str, float]:
    """Return the results of a query sorted by score, ties by doc_id descending."""
    return dict(sorted(results.items(), key=lambda item: (item[1], item[0]), reverse=True))


def write_run(run: Run, path: str | os.PathLike[str], *, tag: str) -> None:
    """Write a run in TREC's six columns, in the order of the mappings; the file appears complete or not at all.

    Scores that do not decrease are lowered slightly, so that every tool that sorts by score, in single precision like
    trec_eval too, finds the same order. Columns are separated by spaces, or by tabs if an id contains a space. A file
    named .gz, .bz2 or .xz is compressed.

    Args:
        run: Scores by query_id and doc_id, best first.
        path: The file.
        tag: Name of the system that made the run, for the last column.

    Raises:
        InvalidInputError: The path cannot be written, or an id, a score or the tag is not allowed in a run.
    """
    if not isinstance(tag, str) or not tag or re.search(r"\s", tag):
        raise InvalidInputError(f"`tag` is {quoted(tag)}; expected a text without spaces that is not empty.")
    ids = [identifier for query_id, results in run.items() for identifier in (query_id, *results)]
    unwritable = next((identifier for identifier in ids if not is_id(identifier)), None)
    if unwritable is not None:
        raise InvalidInputError(f"{quoted(unwritable)} is not a valid id; expected {ID_RULE}.")
    separator = "\t" if any(" " in identifier for identifier in ids) else " "
    with written(path) as file:
        for query_id, results in run.items():
            scores = _falling(results.values(), f"`run[{quoted(query_id)}]`")
            for rank, (doc_id, score) in enumerate(zip(results, scores, strict=True), 1):
                file.write(separator.join((query_id, "Q0", doc_id, str(rank), repr(score), tag)) + "\n")


ID_RULE = "a text that is not empty, without tabs, line breaks and surrounding spaces"


def is_id(value: object) -> bool:
    """Whether a value can be a query_id or doc_id in every file format."""
    if not isinstance(value, str) or not value or value != value.strip():
        return False
    # Half a surrogate pair cannot be written as UTF-8.
    return not re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]", value)


def _falling(scores: Iterable[float], shown: str) -> list[float]:
    """Return strictly decreasing scores, also in single precision; those that decrease already stay as they are."""
    kept: list[float] = []
    last = np.float32(np.inf)
    for given in scores:
        try:
            score = float(given)
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if not abs(score) <= _GREATEST:
            raise InvalidInputError(f"{shown} has the score {quoted(given)}; expected a finite number.")
        if np.float32(score) < last:
            kept.append(score)
            last = np.float32(score)
        else:
            last = np.nextafter(last, np.float32(-np.inf))
            kept.append(float(last))
    return kept


def _score(text: str, location: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score) or "_" in text:
        raise InvalidInputError(f"{location}: the score is {quoted(text)}; expected a finite number.")
    return score


def _count_from_one(run: Run) -> bool:
    """Whether the values are ranks, as in MS MARCO's files: in the order of the file, each query counts from 1."""
    if max(map(len, run.values())) < 5:
        return False
    return all(list(results.values()) == list(range(1, len(results) + 1)) for results in run.values())


def _repeated(location: str, query_id: str, doc_id: str, hint: str) -> InvalidInputError:
    return InvalidInputError(
        f"{location}: doc_id {quoted(doc_id)} of query_id {quoted(query_id)} is in an earlier line already. {hint}"
    )
