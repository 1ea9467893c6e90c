"""Text for people: shortened values, and tables whose columns line up on a terminal, also with wide letters."""

from __future__ import annotations

import html
import json
import os
import unicodedata
from contextlib import suppress
from enum import Enum
from itertools import islice
from pathlib import PurePath
from types import NoneType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

# Categories of Unicode: control and format characters, and what separates words, lines and paragraphs.
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}
_QUOTED_CHARS = 60
# For paths, and for messages of other packages.
_LONG_QUOTE_CHARS = 300
# Levels of nested lists and dicts that a quoted value shows.
_QUOTED_LEVELS = 4
# Beside texts, lists, tuples and dicts: types whose repr is short and runs no code of others.
_SHORT = (NoneType, bool, int, float, complex, np.generic, PurePath, Enum)
_GAP = "  "
# A shorter text is of no use, so on a narrow terminal the line exceeds the width.
_MIN_CELLS = 16


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read: only spaces, control characters and invisible ones, such as a BOM."""
    return all(unicodedata.category(letter) in _INVISIBLE for letter in text)


def encodable(text: str) -> str:
    """Return a text that can be printed: half a surrogate pair, which UTF-8 lacks, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def shorten(text: str, max_chars: int = 60) -> str:
    """Return a text to show, of at most `max_chars` characters; an ellipsis stands for an end that is left out."""
    return encodable(text if len(text) <= max_chars else f"{text[: max_chars - 1]}…")


def quoted(value: object) -> str:
    """Return a value as messages show it: the beginning of its repr, of at most 60 characters.

    Messages reach logs and traces, so they repeat no more of a text than helps to find it. The work is bounded as well:
    what is not shown is not read, and other objects are shown by their class, because their repr may be anything.
    """
    return shorten(_excerpt(value, _QUOTED_LEVELS), _QUOTED_CHARS)


def quoted_path(path: object) -> str:
    """Return a path as messages show it; of one that is too long for a path, the beginning."""
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    return shorten(repr(text[:_LONG_QUOTE_CHARS]), _LONG_QUOTE_CHARS) if text else quoted(path)


def message_of(error: BaseException) -> str:
    """Return the message of an error of other code, shortened: it may repeat whatever was passed in."""
    try:
        return shorten(str(error), _LONG_QUOTE_CHARS)
    except Exception:  # noqa: BLE001 -- a bad `__str__` must not hide the error
        return ""


def brief(value: object) -> str:
    """Return the beginning of a value as JSON, for values that were read from JSON."""
    pieces = json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value)
    return shorten(_joined(pieces, separator=""), _QUOTED_CHARS)


def first_few(values: Collection[object], count: int = 3) -> str:
    """Return the first values, and an ellipsis if there are more."""
    shown = ", ".join(map(quoted, islice(values, count)))
    return shown if len(values) <= count else f"{shown}, …"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _excerpt(value: object, levels: int) -> str:
    shown = f"<{type(value).__name__} object>"
    # Such as an int of too many digits, or the repr of a subclass.
    with suppress(Exception):
        if not levels:
            shown = "…"
        elif isinstance(value, (str, bytes, bytearray)):
            shown = repr(value[:_QUOTED_CHARS])
        elif type(value) is dict:
            inner = _joined(f"{_excerpt(key, 1)}: {_excerpt(item, levels - 1)}" for key, item in value.items())
            shown = f"{{{inner}}}"
        elif isinstance(value, (list, tuple)) and type(value) in {list, tuple}:
            inner = _joined(_excerpt(item, levels - 1) for item in value)
            shown = f"[{inner}]" if type(value) is list else f"({inner}{',' * (len(value) == 1)})"
        elif isinstance(value, type):
            shown = f"<class {value.__name__!r}>"
        elif isinstance(value, _SHORT) or type(value).__module__.startswith("marcorank."):
            shown = repr(value)
    return shown


def _joined(pieces: Iterable[str], separator: str = ", ") -> str:
    """Join pieces until there are more characters than are shown; the others are not made."""
    kept: list[str] = []
    used = 0
    for piece in pieces:
        kept.append(piece)
        used += len(piece)
        if used > _QUOTED_CHARS:
            break
    return separator.join(kept)


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


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str]) -> str:
    """Return a table for notebooks, with all texts escaped; its colours are those of the notebook.

    Args:
        caption: Stands above the table.
        header: Names of the columns.
        rows: A text for each column.
        left: Names of the columns that are aligned left; the others hold numbers.
    """
    aligned = [f' style="text-align: {"left" if name in left else "right"}"' for name in header]
    head = "".join(f"<th{style}>{html.escape(name)}</th>" for name, style in zip(header, aligned, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{style}>{html.escape(cell)}</td>" for cell, style in zip(row, aligned, strict=True))
        + "</tr>"
        for row in rows
    )
    # Notebooks centre captions and put them wherever their theme likes.
    above = f'<caption style="caption-side: top; text-align: left">{html.escape(caption)}</caption>'
    return encodable(f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


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
