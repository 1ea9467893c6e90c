"""Runs and qrels: what a line of them says, and how a run is written."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from marcorank._files import written
from marcorank.collections.columns import read_table
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os

    from marcorank.collections.columns import Row, Table
    from marcorank.collections.records import Qrels, Run

_RUN_COLUMNS = {
    6: ("query_id", "Q0", "doc_id", "rank", "score", "tag"),
    4: ("query_id", "doc_id", "rank", "score"),
    3: ("query_id", "doc_id", "score"),
}
_QRELS_COLUMNS = {
    4: ("query_id", "iteration", "doc_id", "grade"),
    3: ("query_id", "doc_id", "grade"),
}
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
# Beyond it, trec_eval, which reads scores in single precision, knows only infinity.
_GREATEST = float(np.finfo(np.float32).max)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run: TREC's six columns, or query_id, doc_id, rank and score, or query_id, doc_id and score.

    Columns are separated by tabs or spaces; the file may have a header, and is unpacked if it is named .gz. The order
    is that of the scores, ties by doc_id descending, as in trec_eval; the column of ranks counts only where it stands
    instead of scores, as in MS MARCO's files of query_id, doc_id and rank.

    Raises:
        InvalidInputError: The file cannot be read, or a line of it is not a result.
    """
    return run_and_notes(path)[0]


def read_qrels(path: str | os.PathLike[str]) -> Qrels:
    """Read qrels: TREC's four columns, or BEIR's query_id, doc_id and grade.

    Columns are separated by tabs or spaces; the file may have a header, and is unpacked if it is named .gz.

    Raises:
        InvalidInputError: The file cannot be read, or a line of it is not a judgement.
    """
    return qrels_and_notes(path)[0]


def run_and_notes(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Read a run as `read_run` does, and say what was odd in it.

    Raises:
        InvalidInputError: The file cannot be read, or a line of it is not a result.
    """
    table = read_table(path, _RUN_COLUMNS, what="a run")
    notes = list(table.notes)
    found: dict[str, dict[str, float]] = {}
    for row in table:
        results = found.setdefault(row.cell("query_id"), {})
        if row.cell("doc_id") in results:
            raise _twice(row, table, "A run holds each once.")
        results[row.cell("doc_id")] = _score(row)
        if len(row.names) == 4 and not _WHOLE.fullmatch(row.cell("rank")):
            raise InvalidInputError(
                f"{row.location}: the rank is {row.cell('rank')!r}; expected a whole number in the third of four "
                "columns (query_id doc_id rank score). Are these qrels?"
            )
    if _are_ranks(table, found):
        notes.append(f"{_shown(path)}: the third column counts 1, 2, 3 for each query and was read as ranks.")
        found = {query: {doc: -rank for doc, rank in results.items()} for query, results in found.items()}
    tied = sum(len(results) - len(set(results.values())) for results in found.values())
    if tied:
        notes.append(
            f"{_shown(path)}: results with the score of another one of their query: {tied} of {len(table)}; such ties "
            "are ordered by doc_id, descending, as in trec_eval."
        )
    return {query: best_first(results) for query, results in found.items()}, notes


def qrels_and_notes(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Read qrels as `read_qrels` does, and say what was odd in them.

    Raises:
        InvalidInputError: The file cannot be read, or a line of it is not a judgement.
    """
    table = read_table(path, _QRELS_COLUMNS, what="qrels")
    notes = list(table.notes)
    found: dict[str, dict[str, int]] = {}
    repeated = 0
    for row in table:
        grades, doc_id, grade = found.setdefault(row.cell("query_id"), {}), row.cell("doc_id"), _grade(row)
        if grades.get(doc_id, grade) != grade:
            raise _twice(row, table, f"Its grade is {grades[doc_id]} there and {grade} here; leave one.")
        repeated += doc_id in grades
        grades[doc_id] = grade
    if repeated:
        notes.append(f"{_shown(path)}: judgements repeated with the same grade, counted once: {repeated}.")
    return found, notes


def best_first(results: dict[str, float]) -> dict[str, float]:
    """Return the results of a query in the order of their scores, ties by doc_id descending."""
    return dict(sorted(results.items(), key=lambda item: (item[1], item[0]), reverse=True))


def write_run(run: Run, path: str | os.PathLike[str], *, tag: str) -> None:
    """Write a run in TREC's six columns, in its own order; the file appears whole or not at all.

    Scores are those of the run, lowered a little where they do not fall: every tool that orders by score, also in
    single precision as trec_eval does, then finds the order of the run. Columns are separated by spaces; by tabs where
    an id holds a blank. A file named .gz is packed.

    Args:
        run: What to write; its mappings give the order.
        path: Of the file.
        tag: Name of what made the run; it stands in every line.

    Raises:
        InvalidInputError: The path cannot be written, or an id, a score or the tag cannot stand in such a file.
    """
    if not isinstance(tag, str) or not tag or re.search(r"\s", tag):
        raise InvalidInputError(f"`tag` is {tag!r}; expected a text without blanks that is not empty.")
    ids = [identifier for query_id, results in run.items() for identifier in (query_id, *results)]
    unwritable = next((identifier for identifier in ids if not is_id(identifier)), None)
    if unwritable is not None:
        raise InvalidInputError(f"{unwritable!r} cannot stand in a run; expected {ID_RULE}.")
    separator = "\t" if any(" " in identifier for identifier in ids) else " "
    with written(path) as file:
        for query_id, results in run.items():
            scores = falling(list(results.values()), f"`run[{query_id!r}]`")
            for rank, (doc_id, score) in enumerate(zip(results, scores, strict=True), 1):
                file.write(separator.join((query_id, "Q0", doc_id, str(rank), repr(score), tag)) + "\n")


def falling(scores: list[float], shown: str) -> list[float]:
    """Return scores of which each is below the one before it, also in single precision; those that are, stay.

    Raises:
        InvalidInputError: A score is not finite, or beyond single precision.
    """
    kept: list[float] = []
    last = np.float32(np.inf)
    for score in map(float, scores):
        if not abs(score) <= _GREATEST:
            raise InvalidInputError(f"{shown} holds the score {score!r}; expected a finite number.")
        if np.float32(score) < last:
            kept.append(score)
            last = np.float32(score)
        else:
            last = np.nextafter(last, np.float32(-np.inf))
            kept.append(float(last))
    return kept


ID_RULE = "a text that is not empty, without tabs, line ends and blanks around it"


def is_id(value: object) -> bool:
    """Say whether a value can be a query_id or doc_id in every file."""
    if not isinstance(value, str) or not value or value != value.strip():
        return False
    # Half a surrogate pair cannot be written as UTF-8.
    return not re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]", value)


def _score(row: Row) -> float:
    text = row.cell("score")
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score) or "_" in text:
        raise InvalidInputError(f"{row.location}: the score is {text!r}; expected a finite number.")
    return score


def _grade(row: Row) -> int:
    text = row.cell("grade")
    if not _WHOLE.fullmatch(text):
        raise InvalidInputError(f"{row.location}: the grade is {text!r}; expected a whole number, such as 0, 1 or 2.")
    return int(text.partition(".")[0])


def _are_ranks(table: Table, run: Run) -> bool:
    """Say whether MS MARCO's columns were found: in the order of the file, each query counts from 1."""
    if len(table.names) != 3 or max(map(len, run.values())) < 5:
        return False
    if any(list(results.values()) != list(range(1, len(results) + 1)) for results in run.values()):
        return False
    return all(row.cell("score").isdigit() for row in table)


def _twice(row: Row, table: Table, hint: str) -> InvalidInputError:
    query_id, doc_id = row.cell("query_id"), row.cell("doc_id")
    first = next(other for other in table if (other.cell("query_id"), other.cell("doc_id")) == (query_id, doc_id))
    return InvalidInputError(
        f"{row.location}: doc_id {doc_id!r} of query_id {query_id!r} stands in line {first.number} already. {hint}"
    )


def _shown(path: str | os.PathLike[str]) -> str:
    return repr(str(path))
