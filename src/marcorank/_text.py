"""Text for people: shortened values, and tables whose columns line up on a terminal, also with wide letters."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_GAP = "  "
# A shorter text is of no use, so on a narrow terminal the line exceeds the width.
_MIN_CELLS = 16


def encodable(text: str) -> str:
    """Return a text that can be printed: half a surrogate pair, which UTF-8 lacks, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def shorten(text: str, max_chars: int = 60) -> str:
    """Return a text to show, of at most `max_chars` characters; an ellipsis stands for an end that is left out."""
    return encodable(text if len(text) <= max_chars else f"{text[: max_chars - 1]}…")


def brief(value: object) -> str:
    """Return a value as JSON, shortened."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def first_few(values: Collection[object]) -> str:
    """Return the first three values, and an ellipsis if there are more."""
    shown = ", ".join(map(repr, list(values)[:3]))
    return shown if len(values) <= 3 else f"{shown}, …"


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str], width: int | None = None
) -> list[str]:
    """Return the lines of a table.

    Args:
        header: Names of the columns.
        rows: A text for each column.
        left: Names of the columns that are aligned left; the others hold numbers.
        width: Width of the terminal in cells, to which the last column is clipped and always aligned left; None
            clips nothing.
    """
    columns = [list(column) for column in zip(header, *rows, strict=True)]
    if width is not None:
        others = sum(max(map(cells, column)) + len(_GAP) for column in columns[:-1])
        columns[-1] = [clip(text, max(_MIN_CELLS, width - others)) for text in columns[-1]]
        left = [*left, header[-1]]
    for name, column in zip(header, columns, strict=True):
        widest = max(map(cells, column))
        column[:] = [_pad(text, widest, align_left=name in left) for text in column]
    return [_GAP.join(line).rstrip() for line in zip(*columns, strict=True)]


def cells(text: str) -> int:
    """Return how many terminal cells a text fills."""
    return sum(map(_cells_of, text))


def clip(text: str, max_cells: int) -> str:
    """Return a text that fills at most `max_cells` terminal cells; an ellipsis stands for an end that is left out."""
    if cells(text) <= max_cells:
        return text
    used, kept = 1, []
    for letter in text:
        used += _cells_of(letter)
        if used > max_cells:
            break
        kept.append(letter)
    return "".join(kept).rstrip() + "…"


def _cells_of(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in {"Me", "Mn"}:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in {"W", "F"} else 1


def _pad(text: str, width: int, *, align_left: bool) -> str:
    space = " " * (width - cells(text))
    return text + space if align_left else space + text
