"""A row of input: a query with its passages. A row of output: the same, ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marcorank._text import brief
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from marcorank.ranking import RankedPassage, Ranking

TEXT_FIELDS = ("text", "passage", "page_content", "content")


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage and the fields that came with it, its text among them."""

    text: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A query with its passages, and the other fields of its row."""

    query: str
    passages: list[Passage]
    fields: dict[str, Any]

    @property
    def texts(self) -> tuple[str, list[str]]:
        """The query and its passages, as `Reranker.rank_many` takes them."""
        return self.query, [passage.text for passage in self.passages]


def passage_of(row: dict[str, Any], location: str, text_field: str | None) -> Passage:
    """Return the passage that an object of JSON is.

    Args:
        row: The object.
        location: File and line, for messages.
        text_field: Field that holds the text; None for the first of `TEXT_FIELDS` that it has.

    Raises:
        InvalidInputError: There is no text in it.
    """
    names = TEXT_FIELDS if text_field is None else (text_field,)
    name = next((name for name in names if name in row), None)
    if name is None:
        hint = "; a file of queries with their passages is read with --requests" if "passages" in row else ""
        found = f"the fields {', '.join(map(repr, row))}" if row else "no fields"
        raise InvalidInputError(
            f"{location} has {found}; expected {' or '.join(map(repr, names))}. Name the field that holds the text "
            f"with --text-field{hint}."
        )
    text = row[name]
    if not isinstance(text, str):
        raise InvalidInputError(f"{location}: {name!r} is {brief(text)}; expected a text.")
    return Passage(text, row)


def request_of(row: dict[str, Any], location: str, text_field: str | None) -> Request:
    """Return the query with its passages that a row is.

    Args:
        row: The row.
        location: File and line, for messages.
        text_field: Field that holds the text of a passage; None for the first of `TEXT_FIELDS` that it has.

    Raises:
        InvalidInputError: It has no query or no passages, or they are not texts.
    """
    missing = [name for name in ("query", "passages") if name not in row]
    if missing:
        raise InvalidInputError(
            f"{location} has no field {' and no field '.join(map(repr, missing))}; expected a row such as "
            '{"query": "...", "passages": ["...", "..."]}.'
        )
    query, passages = row["query"], row["passages"]
    if not isinstance(query, str) or not query.strip():
        raise InvalidInputError(f"{location}: 'query' is {brief(query)}; expected a text that is not blank.")
    if not isinstance(passages, list):
        raise InvalidInputError(f"{location}: 'passages' is {brief(passages)}; expected a list of texts or objects.")
    return Request(
        query,
        [
            _passage_of_request(passage, f"{location}: passage {index}", text_field)
            for index, passage in enumerate(passages)
        ],
        {name: value for name, value in row.items() if name != "passages"},
    )


def answer_row(request: Request, ranking: Ranking, *, every_field: bool = False) -> dict[str, Any]:
    """Return a row of output: the fields of the input, and what the ranking adds.

    Args:
        request: What was asked.
        ranking: What came of it.
        every_field: Whether results have the fields whose value is None too, as the columns of a table do.
    """
    rows = [result_row(request.passages[result.index], result, every_field=every_field) for result in ranking]
    added = {"model": ranking.model, "query_truncated": ranking.query_truncated, "results": rows}
    return extended(request.fields, added)


def result_row(passage: Passage, result: RankedPassage, *, every_field: bool = False) -> dict[str, Any]:
    """Return one result: the fields of the passage, and its index and scores; see `answer_row`."""
    found = result.to_dict()
    del found["text"]
    return extended(passage.fields, {name: value for name, value in found.items() if every_field or value is not None})


def extended(fields: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the fields of the input; those that have the name of an added one are kept under another."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        free = name
        while free in added or (free != name and free in fields):
            free = f"input_{free}"
        kept[free] = value
    return {**kept, **added}


def _passage_of_request(passage: object, location: str, text_field: str | None) -> Passage:
    if isinstance(passage, str):
        return Passage(passage, {"text": passage})
    if isinstance(passage, dict):
        return passage_of(passage, location, text_field)
    raise InvalidInputError(f"{location} is {brief(passage)}; expected a text or an object with a text field.")
