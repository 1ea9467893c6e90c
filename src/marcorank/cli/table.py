"""Tables for people: columns that line up on a terminal, whatever letters are in them."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_GAP = "  "
# Below this a clipped text tells nothing; the line is allowed to be too long then.
_LEAST_CELLS = 16


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str], width: int) -> list[str]:
    """Return the lines of a table whose last column is clipped to what is left of the width.

    Args:
        header: Names of the columns.
        rows: A text for each column.
        left: Names of the columns that are set flush left; the others hold numbers.
        width: Of the terminal, in cells.
    """
    *columns, last = zip(header, *rows, strict=True)
    widths = [max(map(cells, column)) for column in columns]
    room = max(_LEAST_CELLS, width - sum(widths) - len(_GAP) * len(widths))
    return [
        _GAP.join(
            [
                _pad(text, column_width, flush_left=name in left)
                for name, text, column_width in zip(header, row, widths, strict=False)
            ]
            + [clip(end, room)]
        ).rstrip()
        for row, end in zip(zip(*columns, strict=True), last, strict=True)
    ]


def one_line(text: str) -> str:
    """Return a text without line breaks and without what could steer a terminal."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def cells(text: str) -> int:
    """Return how many cells of a terminal a text fills."""
    return sum(map(_cells_of, text))


def clip(text: str, room: int) -> str:
    """Return a text that fills no more cells than there is room, with a mark where its end is missing."""
    if cells(text) <= room:
        return text
    used, kept = 1, []
    for letter in text:
        used += _cells_of(letter)
        if used > room:
            break
        kept.append(letter)
    return "".join(kept).rstrip() + "…"


def _cells_of(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in {"Me", "Mn"}:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in {"W", "F"} else 1


def _pad(text: str, width: int, *, flush_left: bool) -> str:
    space = " " * (width - cells(text))
    return text + space if flush_left else space + text
