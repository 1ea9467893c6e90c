"""A row of input: a query with its passages. A row of output: the same, ranked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from marcorank._arguments import finite_number
from marcorank._files import extended
from marcorank._text import brief, is_blank
from marcorank.collections.jsonl import check_fields, text_of
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank.ranking import RankedPassage, Ranking

TEXT_FIELDS = ("text", "passage", "page_content", "content")
_SCORE_FIELDS = ("retrieval_score", "score")


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
    def parts(self) -> tuple[str, list[str], list[float] | None]:
        """The query, its passages and their first-stage scores, as `Reranker.rank_many` takes them."""
        return self.query, [passage.text for passage in self.passages], _first_stage_scores(self.passages)


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


def _first_stage_scores(passages: Sequence[Passage]) -> list[float] | None:
    """Return the scores of a field that all passages have; None if there is no such field."""
    for name in _SCORE_FIELDS:
        scores = [_score(passage.fields.get(name)) for passage in passages]
        known = [score for score in scores if score is not None]
        if len(known) == len(scores):
            return known
    return None


def _score(value: object) -> float | None:
    """Return a finite number; a table has it as a text, and Parquet may have it as a decimal."""
    if isinstance(value, (str, Decimal)):
        try:
            value = float(value)
        except ValueError:
            return None
    return finite_number(value)


def answer_row(request: Request, ranking: Ranking) -> dict[str, Any]:
    """Return a row of output: the fields of the input, and the ranking of its passages."""
    rows = [result_row(request.passages[result.index], result) for result in ranking]
    added = {"model": ranking.model, "query_truncated": ranking.query_truncated, "results": rows}
    return extended(request.fields, added)


def result_row(passage: Passage, result: RankedPassage) -> dict[str, Any]:
    """Return one result: the fields of the passage, its index, and those scores and properties that are known."""
    # With the fields that `to_dict` leaves out: those of the input must not pass for values of this ranking.
    found = {**asdict(result), **result.to_dict()}
    del found["text"]
    row = extended(passage.fields, found)
    for name in [name for name, value in found.items() if value is None]:
        del row[name]
    return row
