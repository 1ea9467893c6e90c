"""Reads queries and passages from files and standard input. Every error names the file and the line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from marcorank._files import decoded_lines, errors_named, json_object, numbered_lines
from marcorank._text import quoted_path
from marcorank.collections.requests import Passage, passage_of, request_of
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from marcorank.collections.requests import Request

STANDARD_INPUT = "-"
_PASSAGE, _REQUEST = "an object with a text field", "an object with `query` and `passages`"
_JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class PassageList:
    """All passages of a source, and the number of blank lines of text that were left out."""

    passages: list[Passage]
    blank_lines: int


def read_passages(source: str, *, input_format: str, text_field: str | None) -> PassageList:
    """Read the passages of one query.

    Args:
        source: Path of a file, or `-` for standard input.
        input_format: `"lines"`, `"jsonl"`, or `"auto"`: by the file extension, or without one by the first character.
        text_field: Field of a JSONL row that contains the text; None for the first of `TEXT_FIELDS` that it has.

    Raises:
        InvalidInputError: The source cannot be read, or a line of it is not a passage.
    """
    lines = list(_lines(source))
    filled = [(number, line) for number, line in lines if line.strip()]
    if _is_jsonl(source, input_format, filled):
        passages = []
        for number, line in filled:
            location = _location(source, number)
            passages.append(passage_of(json_object(line, location, expected=_PASSAGE), location, text_field))
        return PassageList(passages, 0)
    return PassageList([Passage(line, {"text": line}) for _, line in filled], len(lines) - len(filled))


def read_requests(source: str, *, text_field: str | None) -> Iterator[Request]:
    """Read rows of JSONL, each with a `query` and its `passages`, one after the other.

    Takes `source` and `text_field` as `read_passages` does.

    Raises:
        InvalidInputError: The source cannot be read, or a line of it is not a request.
    """
    for number, line in _lines(source):
        if line.strip():
            location = _location(source, number)
            yield request_of(json_object(line, location, expected=_REQUEST), location, text_field)


def _location(source: str, number: int) -> str:
    return f"{_shown(source)}, line {number}"


def _shown(source: str) -> str:
    return "Standard input" if source == STANDARD_INPUT else quoted_path(source)


def _lines(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, from 1, without line endings."""
    if source != STANDARD_INPUT:
        yield from numbered_lines(source)
        return
    with errors_named(_shown(source)):
        yield from decoded_lines(sys.stdin.buffer, _shown(source))


def _is_jsonl(source: str, input_format: str, filled: list[tuple[int, str]]) -> bool:
    if input_format != "auto":
        return input_format == "jsonl"
    suffix = PurePath(source.removesuffix(".gz")).suffix.lower()
    if suffix == ".json":
        raise InvalidInputError(
            f"{_shown(source)} has the extension of JSON; expected JSONL (one object per line) or text (one passage "
            "per line). Convert an array with `jq -c '.[]'`, or choose the format with --input-format."
        )
    if suffix:
        return suffix in _JSONL_SUFFIXES
    return bool(filled) and filled[0][1].lstrip().startswith("{")
