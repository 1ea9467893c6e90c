"""A collection in one file: rows of a query, its passages, and which of them are relevant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from marcorank._arguments import finite_number
from marcorank._files import json_object, numbered_lines
from marcorank._text import brief
from marcorank.collections.records import Collection
from marcorank.collections.texts import id_of, text_of
from marcorank.collections.trec import ID_RULE, is_id
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SHAPE = '{"query": "...", "passages": ["...", "..."], "relevant": [0]}'
_WHAT_IS_COUNTED = {
    "equal": "Passages equal to another one of their query, taken for it: {}.",
    "order": "Queries whose passages are in another order than their scores: {}; the order of the list counts.",
    "missed": "Relevant passages not among the candidates of their query, counted as not found: {}.",
}


@dataclass(slots=True)
class _Candidates:
    """The different passages of a row, in their order.

    Attributes:
        texts: By doc_id.
        scores: By doc_id; what is given.
        doc_ids: Of each passage of the row, by its index.
        of_id: doc_id by the id that the row gives.
        of_text: doc_id by text.
        numeric_ids: Whether an id that is given is a number.
        equal: How many passages are equal to an earlier one.
    """

    texts: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    doc_ids: list[str] = field(default_factory=list)
    of_id: dict[str, str] = field(default_factory=dict)
    of_text: dict[str, str] = field(default_factory=dict)
    numeric_ids: bool = False
    equal: int = 0


def read_rows(path: Path, name: str) -> Collection:
    """Read a collection from JSONL; see `read_collection` for what a row holds.

    Raises:
        InvalidInputError: The file cannot be read, is empty, or a line of it is not such a row.
    """
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    counts: Counter[str] = Counter()
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        location = f"{str(path)!r}, line {number}"
        row = json_object(line, location, expected=f"an object such as {_SHAPE}")
        query_id, query = _query(row, number, location)
        if query_id in queries:
            raise InvalidInputError(f"{location}: query_id {query_id!r} stands in an earlier line already.")
        candidates = _candidates(row["passages"], query_id, location)
        run[query_id], in_order = _scores(candidates)
        grades, missed = _grades(row["relevant"], candidates, query_id, location)
        for doc_id, text in {**candidates.texts, **missed}.items():
            if passages.setdefault(doc_id, text) != text:
                raise InvalidInputError(f"{location}: doc_id {doc_id!r} has another text in an earlier line.")
        queries[query_id], qrels[query_id] = query, grades
        counts["equal"] += candidates.equal
        counts["order"] += not in_order
        counts["missed"] += sum(grade > 0 for doc_id, grade in grades.items() if doc_id not in candidates.texts)
    if not queries:
        raise InvalidInputError(f"{str(path)!r} is empty; expected rows such as {_SHAPE}.")
    notes = tuple(text.format(counts[key]) for key, text in _WHAT_IS_COUNTED.items() if counts[key])
    return Collection(name, queries, passages, qrels, {query: found for query, found in run.items() if found}, notes)


def _query(row: dict[str, Any], number: int, location: str) -> tuple[str, str]:
    missing = [name for name in ("query", "passages", "relevant") if name not in row]
    if missing:
        raise InvalidInputError(
            f"{location} has no field {' and no field '.join(map(repr, missing))}; expected a row such as {_SHAPE}."
        )
    query = text_of(row, "query", location)
    if not query.strip():
        raise InvalidInputError(f"{location}: 'query' is {brief(query)}; expected a text that is not blank.")
    return id_of(row, ("query_id", "id", "_id"), location) or str(number), query


def _candidates(passages: object, query_id: str, location: str) -> _Candidates:
    if not isinstance(passages, list):
        raise InvalidInputError(f"{location}: 'passages' is {brief(passages)}; expected a list of texts or objects.")
    found = _Candidates()
    for index, passage in enumerate(passages):
        here = f"{location}: passage {index}"
        if not isinstance(passage, (str, dict)):
            raise InvalidInputError(f"{here} is {brief(passage)}; expected a text or an object with a text.")
        fields = {"text": passage} if isinstance(passage, str) else passage
        text, given = text_of(fields, "text", here), id_of(fields, ("id", "_id", "doc_id"), here)
        is_new = text not in found.of_text
        doc_id = found.of_text.setdefault(text, given or f"{query_id}:{index}")
        if found.texts.setdefault(doc_id, text) != text or found.of_id.get(given or "", doc_id) != doc_id:
            raise InvalidInputError(
                f"{here}: the id {given or doc_id!r} stands in this row already, with another text."
            )
        score = _given_score(fields, here)
        if is_new and score is not None:
            found.scores[doc_id] = score
        found.equal += not is_new
        found.doc_ids.append(doc_id)
        if given:
            found.of_id[given] = doc_id
            found.numeric_ids |= given.isdecimal()
    return found


def _given_score(fields: Mapping[str, Any], location: str) -> float | None:
    score = fields.get("score")
    if score is None:
        return None
    number = finite_number(score)
    if number is None:
        raise InvalidInputError(f"{location}: 'score' is {brief(score)}; expected a finite number.")
    return number


def _scores(candidates: _Candidates) -> tuple[dict[str, float], bool]:
    """Return the scores of the candidates, and whether those that are given fall as the list does."""
    count = len(candidates.texts)
    scores = list(candidates.scores.values())
    falls = all(first >= second for first, second in pairwise(scores))
    if falls and len(scores) == count:
        return dict(candidates.scores), True
    return {doc_id: float(count - index) for index, doc_id in enumerate(candidates.texts)}, falls


def _grades(
    relevant: object, candidates: _Candidates, query_id: str, location: str
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the grades by doc_id, and the texts of relevant passages that are not candidates."""
    if isinstance(relevant, dict):
        judged = list(relevant.items())
    elif isinstance(relevant, list):
        judged = [(entry, 1) for entry in relevant]
    else:
        raise InvalidInputError(
            f"{location}: 'relevant' is {brief(relevant)}; expected a list of indexes, ids or texts, or an object of "
            "grades by id."
        )
    grades: dict[str, int] = {}
    missed: dict[str, str] = {}
    for entry, grade in judged:
        if isinstance(grade, bool) or not isinstance(grade, int):
            raise InvalidInputError(
                f"{location}: 'relevant' gives {entry!r} the grade {brief(grade)}; expected a whole number."
            )
        doc_id = _doc_id(entry, candidates, location)
        if doc_id is None:
            doc_id = missed.setdefault(entry, f"{query_id}:relevant:{len(missed)}")
        # Equal passages may be named more than once.
        grades[doc_id] = max(grade, grades.get(doc_id, grade))
    return dict.fromkeys(candidates.texts, 0) | grades, {doc_id: text for text, doc_id in missed.items()}


def _doc_id(entry: object, candidates: _Candidates, location: str) -> str | None:
    """Return the doc_id that an entry of `relevant` names; None where it is a text of no candidate."""
    if isinstance(entry, bool) or not isinstance(entry, (int, str)):
        raise InvalidInputError(
            f"{location}: 'relevant' holds {brief(entry)}; expected an index, an id or a text of a passage."
        )
    name = str(entry)
    of_index = isinstance(entry, int) and not candidates.numeric_ids
    if not of_index and (name in candidates.of_id or name in candidates.of_text):
        return candidates.of_id.get(name) or candidates.of_text[name]
    if of_index or (not candidates.of_id and name.isdecimal() and len(name) < 10):
        if not 0 <= int(name) < len(candidates.doc_ids):
            raise InvalidInputError(
                f"{location}: 'relevant' holds the index {name}; there are {len(candidates.doc_ids)} passages, counted "
                "from 0."
            )
        return candidates.doc_ids[int(name)]
    if not candidates.of_id:
        return None
    if not is_id(name):
        raise InvalidInputError(f"{location}: 'relevant' holds {brief(entry)}; expected an id: {ID_RULE}.")
    return name
