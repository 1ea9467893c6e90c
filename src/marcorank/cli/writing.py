"""Results to a terminal, a pipe or a file."""

from __future__ import annotations

import io
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from marcorank.files import written

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def opened(path: str | None) -> Iterator[TextIO]:
    """Open what results are written to; a file appears when everything is written, or not at all.

    Args:
        path: Of a file; None for standard output.

    Raises:
        InvalidInputError: The path cannot be written.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    with written(path) as file:
        yield file


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON that every UTF-8 file can hold."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only hold escaped
        line = json.dumps(row)
    return f"{line}\n"
