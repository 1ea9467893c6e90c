"""Rows of a file whose columns are separated by tabs or spaces."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from marcorank._files import numbered_lines
from marcorank._text import counted, quoted, quoted_path
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

Formats: TypeAlias = "Mapping[int, tuple[str, ...]]"
_Split: TypeAlias = "Callable[[str], list[str]]"
_Line: TypeAlias = tuple[int, str]

_SPACES = re.compile(r"[ \t]+")
_NUMBER = re.compile(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", re.IGNORECASE)
_HEADER_NAMES = {"qid", "query", "queryid", "topic", "topicid"}


class Row(NamedTuple):
    """A row: file and line for messages, and its cells by the names of their columns."""

    location: str
    cells: dict[str, str]


def read_columns(path: str | os.PathLike[str], formats: Formats, *, what: str) -> tuple[Iterator[Row], list[str]]:
    """Read a file of columns, and return notes about mixed separators. Blank lines and a header are skipped.

    Args:
        path: The file.
        formats: The names of the columns, by their number.
        what: Content of the file, for messages.

    Raises:
        InvalidInputError: The file cannot be read, is empty, or its first row has other columns; while iterating, a
            row that differs from the first.
    """
    shown = quoted_path(path)
    lines = [(number, text) for number, line in numbered_lines(path) if (text := line.strip(" \t"))]
    header = lines.pop(0)[1] if lines and _is_header(lines[0][1]) else ""
    expected = " or ".join(f"{count} columns ({' '.join(names)})" for count, names in formats.items())
    if not lines:
        raise InvalidInputError(f"{shown} is empty; expected {what} of {expected}.")
    split, notes = _separator(shown, header, lines, formats)
    names = formats.get(len(split(lines[0][1])))
    if names is None:
        raise _wrong_columns(shown, lines[0], split, expected)
    return _rows(shown, lines, split, names), notes


def _rows(shown: str, lines: Sequence[_Line], split: _Split, names: tuple[str, ...]) -> Iterator[Row]:
    for number, line in lines:
        cells = split(line)
        if len(cells) != len(names):
            raise _wrong_columns(shown, (number, line), split, f"{len(names)} as in line {lines[0][0]}")
        if "" in cells:
            raise InvalidInputError(f"{shown}, line {number} has an empty column; expected {' '.join(names)}.")
        yield Row(f"{shown}, line {number}", dict(zip(names, cells, strict=True)))


def _is_header(line: str) -> bool:
    first, *others = _by_spaces(line)
    # A query may be called "topic", but its row has a number.
    return re.sub(r"[^a-z]", "", first.lower()) in _HEADER_NAMES and not any(map(_NUMBER.fullmatch, others))


def _separator(shown: str, header: str, lines: Sequence[_Line], formats: Formats) -> tuple[_Split, list[str]]:
    """Return how to split lines: at tabs and spaces, or at tabs alone if ids seem to contain spaces."""
    tabs = ["\t" in line for _, line in lines]
    spaces = any(" " in cell for _, line in lines if " " in line for cell in _by_tabs(line))
    if all(tabs) and ("\t" in header or (spaces and _fits_tabs_alone(lines, formats))):
        counts = {len(_by_spaces(line)) for _, line in lines}
        if "\t" not in header and len(counts) == 1 and counts <= formats.keys():
            number, line = next((number, line) for number, line in lines if " " in line)
            raise InvalidInputError(
                f"{shown}, line {number} mixes tabs and spaces: it has {len(_by_tabs(line))} columns by tabs and "
                f"{len(_by_spaces(line))} by both. Use one of them for the whole file."
            )
        return _by_tabs, []
    mixed = f"{shown} mixes tabs and spaces; both were read as separators."
    return _by_spaces, [mixed] if spaces and any(tabs) else []


def _fits_tabs_alone(lines: Sequence[_Line], formats: Formats) -> bool:
    counts = {len(_by_tabs(line)) for _, line in lines}
    if len(counts) > 1 or not counts <= formats.keys():
        return False
    # Split at spaces too, lines would have TREC's second column, a Q0 or a number.
    return not all(
        formats.get(len(cells), ())[1:2] in {("Q0",), ("iteration",)} and re.fullmatch("[Qq]?[0-9]+", cells[1])
        for cells in (_by_spaces(line) for _, line in lines)
    )


def _by_tabs(line: str) -> list[str]:
    return [cell.strip(" ") for cell in line.split("\t")]


def _by_spaces(line: str) -> list[str]:
    # `str.split()` would also split ids at no-break spaces.
    return _SPACES.split(line)


def _wrong_columns(shown: str, line: _Line, split: _Split, expected: str) -> InvalidInputError:
    number, text = line
    columns = counted(len(split(text)), "column")
    return InvalidInputError(f"{shown}, line {number} has {columns} ({quoted(text)}); expected {expected}.")
