"""A row of input: a query with its passages. A row of output: the same, ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marcorank._files import extended
from marcorank._text import brief, is_blank
from marcorank.collections.jsonl import check_fields, text_of
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from marcorank.ranking import RankedPassage, Ranking

TEXT_FIELDS = ("text", "passage", "page_content", "content")


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage: its text, and all fields of its object, including the text."""

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
    """Return the passage in an object of JSON.

    Args:
        row: The object.
        location: File and line, for messages.
        text_field: Field with the text; None for the first of `TEXT_FIELDS` that the object has.

    Raises:
        InvalidInputError: The object has no text.
    """
    if text_field is not None:
        return Passage(text_of(row, (text_field,), location), row)
    hint = " Name the field that holds the text with --text-field"
    if "passages" in row:
        hint += "; a file of queries with their passages is read with --requests"
    return Passage(text_of(row, TEXT_FIELDS, location, hint=f"{hint}."), row)


def request_of(row: dict[str, Any], location: str, text_field: str | None) -> Request:
    """Return the query and the passages of a row.

    Args:
        row: The row.
        location: File and line, for messages.
        text_field: Field with the text of a passage; None for the first of `TEXT_FIELDS` that the passage has.

    Raises:
        InvalidInputError: The row has no query or no passages, or they are not texts.
    """
    check_fields(row, ("query", "passages"), location, example='{"query": "...", "passages": ["...", "..."]}')
    query, passages = row["query"], row["passages"]
    if not isinstance(query, str) or is_blank(query):
        raise InvalidInputError(f"{location}: 'query' is {brief(query)}; expected a text that is not blank.")
    if not isinstance(passages, list):
        raise InvalidInputError(f"{location}: 'passages' is {brief(passages)}; expected a list of texts or objects.")
    found = []
    for index, passage in enumerate(passages):
        here = f"{location}: passage {index}"
        if isinstance(passage, str):
            found.append(Passage(passage, {"text": passage}))
        elif isinstance(passage, dict):
            found.append(passage_of(passage, here, text_field))
        else:
            raise InvalidInputError(f"{here} is {brief(passage)}; expected a text or an object with a text field.")
    return Request(query, found, {name: value for name, value in row.items() if name != "passages"})


def answer_row(request: Request, ranking: Ranking) -> dict[str, Any]:
    """Return a row of output: the fields of the input, and the ranking of its passages."""
    rows = [result_row(request.passages[result.index], result) for result in ranking]
    added = {"model": ranking.model, "query_truncated": ranking.query_truncated, "results": rows}
    return extended(request.fields, added)


def result_row(passage: Passage, result: RankedPassage) -> dict[str, Any]:
    """Return one result: the fields of the passage, its index, and those scores and properties that are known."""
    found = result.to_dict()
    del found["text"]
    row = extended(passage.fields, found)
    for name in [name for name, value in found.items() if value is None]:
        del row[name]
    return row
