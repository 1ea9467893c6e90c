"""Reads queries and passages from files and standard input. Every error names the file and the line."""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from marcorank._files import decoded_lines, decompressed, errors_named, numbered_lines, without_compression
from marcorank._text import brief, quoted, quoted_path
from marcorank.collections.jsonl import objects_of
from marcorank.collections.requests import TEXT_FIELDS, Passage, passage_of, request_of
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from marcorank.collections.requests import Request

STANDARD_INPUT = "-"
INPUT_FORMATS = ("auto", "lines", "jsonl", "csv", "tsv")
_PASSAGE, _REQUEST = "an object with a text field", "an object with `query` and `passages`"
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv"}
# A text may begin with a bracket too, as in "[1] A footnote".
_ARRAY = re.compile(r'\[\s*[\]{"]')
_ROW_ID = re.compile(r"[\w.:/-]*\d[\w.:/-]*$")
# The limit of the csv module is below the length of some documents.
_MAX_CELL_CHARS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PassageList:
    """All passages of a source.

    Attributes:
        passages: The passages.
        blank_lines: Number of blank lines of text that were left out.
        columns: Number of columns, if lines that were read as text look like a table; else 0.
    """

    passages: list[Passage]
    blank_lines: int = 0
    columns: int = 0


def read_passages(source: str, *, input_format: str, text_field: str | None) -> PassageList:
    """Read the passages of one query.

    Args:
        source: Path of a file, or `-` for standard input.
        input_format: One of `INPUT_FORMATS`. `"jsonl"` reads a JSON array too, `"csv"` and `"tsv"` a table with a
            header. `"auto"` judges by the file extension, or without one by the content.
        text_field: Field of an object, or column of a table, that contains the text; None for the first of
            `TEXT_FIELDS` that it has.

    Raises:
        InvalidInputError: The source cannot be read, or a line of it is not a passage.
    """
    lines, shown = list(_lines(source)), _shown(source)
    filled = [line for _, line in lines if line.strip()]
    found = _format_of(source, filled, text_field) if input_format == "auto" else input_format
    if found == "jsonl":
        if re.fullmatch(r"\[\s*\]", "".join(filled).strip()):  # a search without results
            return PassageList([])
        rows = objects_of(iter(lines), shown, expected=_PASSAGE, text_field=text_field or "text")
        return PassageList([passage_of(row, location, text_field) for _, location, row in rows])
    if found != "lines":
        table = _table_rows(lines, shown, found, text_field)
        return PassageList([passage_of(row, location, text_field) for location, row in table])
    if text_field is not None and filled:
        raise InvalidInputError(
            f"{shown} was read as lines of text, which have no field {quoted(text_field)}; leave --text-field out, or "
            "choose another --input-format."
        )
    columns = _columns(filled) if input_format == "auto" else 0
    return PassageList([Passage(line, {"text": line}) for line in filled], len(lines) - len(filled), columns)


def read_requests(source: str, *, text_field: str | None) -> Iterator[Request]:
    """Read objects of JSONL or of a JSON array, each with a `query` and its `passages`, one after the other.

    Takes `source` and `text_field` as `read_passages` does.

    Raises:
        InvalidInputError: The source cannot be read, or a line of it is not a request.
    """
    for _, location, row in objects_of(_lines(source), _shown(source), expected=_REQUEST):
        yield request_of(row, location, text_field)


def _shown(source: str) -> str:
    return "Standard input" if source == STANDARD_INPUT else quoted_path(source)


def _lines(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, from 1, without line endings."""
    if source != STANDARD_INPUT:
        yield from numbered_lines(source)
        return
    shown = _shown(source)
    with errors_named(shown), decompressed(sys.stdin.buffer, shown) as file:
        yield from decoded_lines(file, shown)


def _format_of(source: str, filled: Sequence[str], text_field: str | None) -> str:
    suffix = PurePath(without_compression(source)).suffix.lower()
    if suffix or not filled:
        return _FORMATS.get(suffix, "lines")
    first = filled[0].lstrip()
    # Not by whether it is valid: the error of an array that is not must be seen.
    if first.startswith("{") or _ARRAY.match(" ".join(filled[:2]).lstrip()):
        return "jsonl"
    names = {text_field or "text", *TEXT_FIELDS}
    for name, delimiter in (("tsv", "\t"), ("csv", _delimiter(first))):
        cells = [cell.strip('"') for cell in first.rstrip("\r").split(delimiter)]
        if len(cells) > 1 and names & {*cells}:
            return name
    return "lines"


def _columns(filled: Sequence[str]) -> int:
    """Return the number of columns of lines that look like a table, with or without a header; 0 for others."""
    counts = {line.count("\t") for line in filled}
    # Code is indented with tabs.
    if len(counts) == 1 and counts != {0} and not all(line.startswith("\t") for line in filled):
        return counts.pop() + 1
    if len(filled) < 2:
        return 0
    delimiter = _delimiter(filled[0])
    names = filled[0].split(delimiter)
    is_header = all(name.strip('"').isidentifier() for name in names[not names[0] :])  # pandas leaves the first empty
    if is_header and len(names) > 1 and all(line.count(delimiter) >= len(names) - 1 for line in filled):
        return len(names)
    if len(names) < 2:
        return 0
    are_quoted = all(line.startswith('"') and f'"{delimiter}' in line for line in filled)
    are_numbered = all(_ROW_ID.match(line.partition(delimiter)[0]) for line in filled)
    even = len({line.count(delimiter) for line in filled}) == 1
    return filled[0].count(delimiter + '"' * are_quoted) + 1 if are_quoted or (are_numbered and even) else 0


def _delimiter(header: str) -> str:
    """Return what separates the columns of CSV; some spreadsheets write semicolons."""
    return max(",;\t", key=header.count)


def _table_rows(
    lines: Sequence[tuple[int, str]], shown: str, table_format: str, text_field: str | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a table as objects, with their locations. TSV of two columns may have no header."""
    csv.field_size_limit(_MAX_CELL_CHARS)
    texts = (f"{line}\n" for _, line in lines)
    if table_format == "tsv":
        # A quotation mark is a part of the text there.
        reader = csv.reader(texts, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        first = next((line for _, line in lines if line.strip()), "")
        reader = csv.reader(texts, delimiter=_delimiter(first), strict=True)
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            location, begin = f"{shown}, line {begin}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = _header(cells, location, table_format, text_field)
                if header == cells:
                    continue
            if len(cells) != len(header):
                raise InvalidInputError(
                    f"{location} has {len(cells)} columns ({brief(cells)}); expected {len(header)}: {brief(header)}."
                )
            yield location, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InvalidInputError(f"{shown}, line {begin} is not CSV: {error}.") from error


def _header(cells: list[str], location: str, table_format: str, text_field: str | None) -> list[str]:
    wanted = TEXT_FIELDS if text_field is None else (text_field,)
    twice = next((name for name in cells if cells.count(name) > 1), None)
    if {*cells} & {*wanted} and twice is not None:
        raise InvalidInputError(f"{location} has two columns named {quoted(twice)}; expected distinct names.")
    if {*cells} & {*wanted}:
        return cells
    # Two single words without a number are the names of columns rather than an id and a text.
    are_names = all(map(str.isidentifier, cells)) and not re.search(r"\d", cells[0])
    if table_format == "tsv" and text_field is None and len(cells) == 2 and not are_names:
        return ["id", "text"]
    if text_field is not None:
        raise InvalidInputError(
            f"{location}: --text-field is {quoted(text_field)}; expected one of the columns {brief(cells)}."
        )
    raise InvalidInputError(
        f"{location} has the columns {brief(cells)}; expected a header with {' or '.join(map(repr, wanted))}. Name the "
        "column that holds the text with --text-field, or read lines as text with --input-format lines."
    )
