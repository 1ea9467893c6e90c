"""A collection in one file: rows of a query, its passages, and which of them are relevant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from marcorank._arguments import finite_number
from marcorank._text import brief, quoted
from marcorank.collections.jsonl import check_fields, id_of, read_objects
from marcorank.collections.records import Collection
from marcorank.collections.requests import request_of
from marcorank.collections.trec import ID_RULE, is_id
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from marcorank.collections.requests import Passage

_EXAMPLE = '{"query": "...", "passages": ["...", "..."], "relevant": [0]}'
_NOTES = {
    "equal": "Passages equal to another one of their query, merged with it: {}.",
    "order": "Queries whose passages are in another order than their scores: {}; the order of the list counts.",
    "missed": "Relevant passages not among the candidates of their query, counted as not found: {}.",
}


@dataclass(slots=True)
class _Candidates:
    """The distinct passages of a row, in their order.

    Attributes:
        texts: Text by doc_id.
        scores: First-stage score by doc_id, if given.
        doc_ids: doc_id of each passage of the row, by its index.
        of_id: doc_id by the id in the row.
        of_text: doc_id by text.
    """

    texts: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    doc_ids: list[str] = field(default_factory=list)
    of_id: dict[str, str] = field(default_factory=dict)
    of_text: dict[str, str] = field(default_factory=dict)

    @property
    def has_numeric_ids(self) -> bool:
        """Whether numbers name passages by id, not by index."""
        return any(map(str.isdecimal, self.of_id))

    def key(self, index: int) -> str:
        """Return what names a passage in an object of grades: its id, in a row without ids its index, or its text."""
        doc_id = self.doc_ids[index]
        if not self.of_id:
            return str(index)
        return doc_id if doc_id in self.of_id else self.texts[doc_id]


def read_rows(path: Path, name: str) -> Collection:
    """Read a collection from JSONL; see `read_collection` for the fields of a row.

    Raises:
        InvalidInputError: The file cannot be read, is empty, or a line is not such a row.
    """
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    counts: Counter[str] = Counter()
    for number, location, row in read_objects(path, expected=f"an object such as {_EXAMPLE}"):
        check_fields(row, ("query", "passages", "relevant"), location, example=_EXAMPLE)
        request = request_of(row, location, "text")
        query_id = id_of(row, ("query_id", "id", "_id"), location) or str(number)
        if query_id in queries:
            raise InvalidInputError(f"{location}: query_id {quoted(query_id)} is in an earlier row already.")
        candidates = _candidates(request.passages, query_id, location)
        grades, missed = _grades(row["relevant"], candidates, query_id, location)
        for doc_id, text in {**candidates.texts, **missed}.items():
            if passages.setdefault(doc_id, text) != text:
                raise InvalidInputError(f"{location}: doc_id {quoted(doc_id)} has another text in an earlier row.")
        given = list(candidates.scores.values())
        in_order = all(first >= second for first, second in pairwise(given))
        count = len(candidates.texts)
        run[query_id] = (
            candidates.scores
            if in_order and len(given) == count
            else {doc_id: float(count - index) for index, doc_id in enumerate(candidates.texts)}
        )
        queries[query_id], qrels[query_id] = request.query, grades
        counts["equal"] += len(candidates.doc_ids) - count
        counts["order"] += not in_order
        counts["missed"] += sum(grade > 0 for doc_id, grade in grades.items() if doc_id not in candidates.texts)
    if not queries:
        raise InvalidInputError(f"{str(path)!r} is empty; expected rows such as {_EXAMPLE}.")
    notes = tuple(text.format(counts[key]) for key, text in _NOTES.items() if counts[key])
    return Collection(name, queries, passages, qrels, {query: found for query, found in run.items() if found}, notes)


def _candidates(passages: list[Passage], query_id: str, location: str) -> _Candidates:
    found = _Candidates()
    for index, passage in enumerate(passages):
        here = f"{location}: passage {index}"
        given = id_of(passage.fields, ("id", "_id", "doc_id"), here)
        is_new = passage.text not in found.of_text
        doc_id = found.of_text.setdefault(passage.text, given or f"{query_id}:{index}")
        if (
            found.texts.setdefault(doc_id, passage.text) != passage.text
            or found.of_id.get(given or "", doc_id) != doc_id
        ):
            raise InvalidInputError(
                f"{here}: the id {quoted(given or doc_id)} is in this row already, with another text."
            )
        score = passage.fields.get("score")
        number = finite_number(score)
        if score is not None and number is None:
            raise InvalidInputError(f"{here}: 'score' is {brief(score)}; expected a finite number.")
        if is_new and number is not None:
            found.scores[doc_id] = number
        found.doc_ids.append(doc_id)
        if given:
            found.of_id[given] = doc_id
    return found


def _grades(
    relevant: object, candidates: _Candidates, query_id: str, location: str
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the grades by doc_id, and the texts of relevant passages that are not candidates."""
    if not isinstance(relevant, (dict, list)):
        raise InvalidInputError(
            f"{location}: 'relevant' is {brief(relevant)}; expected a list of indexes, ids or texts, or an object of "
            "grades by id."
        )
    if isinstance(relevant, list):
        _check_unambiguous(relevant, candidates, location)
    named: dict[str, int] = {}
    missed: dict[str, str] = {}
    for entry, grade in relevant.items() if isinstance(relevant, dict) else [(entry, 1) for entry in relevant]:
        if isinstance(grade, bool) or not isinstance(grade, int):
            raise InvalidInputError(
                f"{location}: 'relevant' gives {quoted(entry)} the grade {brief(grade)}; expected a whole number."
            )
        doc_id = _doc_id(entry, candidates, location)
        if doc_id is None:
            doc_id = missed.setdefault(entry, f"{query_id}:relevant:{len(missed)}")
        # Equal passages may be named more than once.
        named[doc_id] = max(grade, named.get(doc_id, grade))
    return dict.fromkeys(candidates.texts, 0) | named, {doc_id: text for text, doc_id in missed.items()}


def _check_unambiguous(relevant: list[object], candidates: _Candidates, location: str) -> None:
    """Check that the numbers of a list are either indexes or ids, and not a label for each passage."""
    given = [(entry, _number(entry, candidates)) for entry in relevant]
    numbers = [number for _, number in given if number is not None]
    count = len(candidates.doc_ids)
    indexes = [number for number in numbers if 0 <= number < count]
    repeated = len(set(numbers)) < len(numbers) and not candidates.has_numeric_ids
    as_indexes = brief({candidates.key(number) if number in indexes else str(entry): 1 for entry, number in given})
    # A single passage with [0] is the documented way to say that it is relevant.
    if len(numbers) == len(relevant) == count > 1 and (repeated or {*numbers} <= {0, 1}):
        grades = {candidates.key(index): number for index, number in enumerate(numbers) if number}
        kinds, as_ids = "labels or indexes", ""
        if candidates.has_numeric_ids:
            kinds, as_ids = "labels, indexes or ids", f"; for ids, {brief(dict.fromkeys(map(str, numbers), 1))}"
        raise InvalidInputError(
            f"{location}: 'relevant' is {brief(relevant)}, as many numbers as there are passages: {kinds}? For labels, "
            f"write {brief(grades)}; for indexes, {as_indexes}{as_ids}."
        )
    if repeated:
        once = [entry for index, entry in enumerate(relevant) if entry not in relevant[:index]]
        raise InvalidInputError(
            f"{location}: 'relevant' is {brief(relevant)}, which repeats an index. For indexes, write each once, as in "
            f"{brief(once)}; for grades, write an object such as {as_indexes}."
        )
    if candidates.has_numeric_ids:
        unclear = [number for number in indexes if str(number) not in candidates.of_id]
    else:
        texts = {entry for entry in relevant if isinstance(entry, str)}
        unclear = indexes if candidates.of_id and texts - candidates.of_text.keys() else []
    if unclear:
        as_ids = brief(dict.fromkeys(map(str, relevant), 1))
        raise InvalidInputError(
            f"{location}: 'relevant' is {brief(relevant)}, where {unclear[0]} is not the id of a passage of its row, "
            f"but may be an index. For ids, write {as_ids}; for indexes, {as_indexes}."
        )


def _number(entry: object, candidates: _Candidates) -> int | None:
    """Return an entry of a list as a number; None for a text that names a passage, and for anything else."""
    if isinstance(entry, str):
        is_index = not candidates.of_id and entry not in candidates.of_text and entry.isdecimal() and len(entry) < 10
        return int(entry) if is_index else None
    return int(entry) if isinstance(entry, (int, float)) and entry == entry // 1 else None


def _doc_id(entry: object, candidates: _Candidates, location: str) -> str | None:
    """Return the doc_id that an entry of `relevant` names; None if it is the text of a passage that was not found."""
    if isinstance(entry, bool) or not isinstance(entry, (int, str)):
        raise InvalidInputError(
            f"{location}: 'relevant' has {brief(entry)}; expected an index, an id or a text of a passage."
        )
    name = str(entry)
    is_index = isinstance(entry, int) and not candidates.has_numeric_ids
    if not is_index and (name in candidates.of_id or name in candidates.of_text):
        return candidates.of_id.get(name) or candidates.of_text[name]
    if is_index or (not candidates.of_id and name.isdecimal() and len(name) < 10):
        if not 0 <= int(name) < len(candidates.doc_ids):
            raise InvalidInputError(
                f"{location}: 'relevant' has the index {name}; expected the index of a passage, from 0 to "
                f"{len(candidates.doc_ids) - 1}."
            )
        return candidates.doc_ids[int(name)]
    if not candidates.of_id:
        return None
    if not is_id(name):
        raise InvalidInputError(f"{location}: 'relevant' has {brief(entry)}; expected an id: {ID_RULE}.")
    return name
