"""Rows of a file of columns, separated by tabs or spaces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from marcorank._files import numbered_lines
from marcorank._text import shorten
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

Columns: TypeAlias = "Mapping[int, tuple[str, ...]]"
_Line: TypeAlias = tuple[int, str]

_BLANKS = re.compile(r"[ \t]+")
_NUMBER = re.compile(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", re.IGNORECASE)
_HEADER_NAMES = {"qid", "query", "queryid", "topic", "topicid"}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a file.

    Attributes:
        path: The file.
        number: The line, from 1.
        names: What the columns hold.
        cells: What stands in them.
    """

    path: str
    number: int
    names: tuple[str, ...]
    cells: list[str]

    @property
    def location(self) -> str:
        """File and line, for messages."""
        return f"{self.path!r}, line {self.number}"

    def cell(self, name: str) -> str:
        """Return what stands in a column."""
        return self.cells[self.names.index(name)]


@dataclass(frozen=True, slots=True)
class Table:
    """The lines of a file that has the same columns in every line; they are split anew in each pass over them.

    Attributes:
        path: The file.
        names: What the columns hold.
        lines: With their numbers.
        split: Takes a line apart.
        notes: What was odd in the file.
    """

    path: str
    names: tuple[str, ...]
    lines: Sequence[_Line]
    split: Callable[[str], list[str]]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Row]:
        for number, line in self.lines:
            cells = self.split(line)
            if len(cells) != len(self.names):
                expected = f"{len(self.names)} as in line {self.lines[0][0]}"
                raise _wrong_columns(self.path, (number, line), self.split, expected)
            if "" in cells:
                raise InvalidInputError(
                    f"{self.path!r}, line {number} has an empty column; expected {' '.join(self.names)}."
                )
            yield Row(self.path, number, self.names, cells)


def read_table(path: str | os.PathLike[str], columns: Columns, *, what: str) -> Table:
    """Read the lines of a file of columns; blank lines are nothing. Broken ones are named in the pass over them.

    Args:
        path: Of the file.
        columns: The names of the columns, by how many there are.
        what: The file is, for messages.

    Raises:
        InvalidInputError: The file cannot be read, is empty, or its first line has other columns.
    """
    shown = str(path)
    lines = [(number, text) for number, line in numbered_lines(path) if (text := line.strip(" \t"))]
    header = lines[0] if lines and _is_header(lines[0][1]) else None
    lines = lines[1:] if header else lines
    if not lines:
        raise InvalidInputError(f"{shown!r} is empty; expected {what} of {_described(columns)}.")
    split, notes = _separator(shown, header, lines, columns)
    names = columns.get(len(split(lines[0][1])))
    if names is None:
        raise _wrong_columns(shown, lines[0], split, _described(columns))
    return Table(shown, names, lines, split, tuple(notes))


def _is_header(line: str) -> bool:
    first, *others = _by_blanks(line)
    # A query may be called "topic", but its row has a number.
    return re.sub(r"[^a-z]", "", first.lower()) in _HEADER_NAMES and not any(map(_NUMBER.fullmatch, others))


def _separator(
    shown: str, header: _Line | None, lines: Sequence[_Line], columns: Columns
) -> tuple[Callable[[str], list[str]], list[str]]:
    """Return how lines are split, with a note where tabs and spaces are mixed.

    Tabs alone separate where the header says so, or where only then the columns are right: ids may hold blanks there.
    """
    with_tabs = sum("\t" in line for _, line in lines)
    if header and "\t" in header[1] and with_tabs == len(lines):
        return _by_tabs, []
    both = [(number, line) for number, line in lines if "\t" in line and any(" " in cell for cell in _by_tabs(line))]
    if with_tabs == len(lines) and both and _fits(lines, _by_tabs, columns):
        if not _fits(lines, _by_blanks, columns):
            return _by_tabs, []
        number, line = both[0]
        if not {"Q0", "iteration"}.intersection(columns[len(_by_blanks(line))]):
            raise InvalidInputError(
                f"{shown!r}, line {number} mixes tabs and spaces: it has {len(_by_tabs(line))} columns by tabs and "
                f"{len(_by_blanks(line))} by both. Use one of them for the whole file."
            )
    mixed = both or 0 < with_tabs < len(lines)
    return _by_blanks, [f"{shown!r} mixes tabs and spaces; both were read as separators."] if mixed else []


def _fits(lines: Sequence[_Line], split: Callable[[str], list[str]], columns: Columns) -> bool:
    """Say whether every line has the same columns, and in the second what belongs there in TREC's files."""
    names = columns.get(len(split(lines[0][1])))
    if names is None:
        return False
    for _, line in lines:
        cells = split(line)
        if len(cells) != len(names) or (names[1] in {"Q0", "iteration"} and not re.fullmatch("[Qq]?[0-9]+", cells[1])):
            return False
    return True


def _by_tabs(line: str) -> list[str]:
    return [cell.strip(" ") for cell in line.split("\t")]


def _by_blanks(line: str) -> list[str]:
    # `str.split()` would also split ids at no-break spaces.
    return _BLANKS.split(line)


def _wrong_columns(shown: str, line: _Line, split: Callable[[str], list[str]], expected: str) -> InvalidInputError:
    number, text = line
    count = len(split(text))
    return InvalidInputError(
        f"{shown!r}, line {number} has {count} column{'' if count == 1 else 's'} ({shorten(text)!r}); "
        f"expected {expected}."
    )


def _described(columns: Columns) -> str:
    return " or ".join(f"{count} columns ({' '.join(names)})" for count, names in columns.items())
