"""Results to a terminal, a pipe or a file."""

from __future__ import annotations

import io
import json
import shutil
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from marcorank.errors import InvalidInputError

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
    # A link keeps pointing where it points.
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        if target.is_dir():
            raise InvalidInputError(f"{path!r} is a folder; expected the path of a file to write.")
        # A device or a named pipe must not be replaced by a file.
        with target.open("w", encoding="utf-8") as file:
            yield file
        return
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        file = part.open("x", encoding="utf-8", newline="\n")
    except OSError as error:
        raise InvalidInputError(f"{path!r} cannot be written: {error.strerror or error}.") from error
    try:
        with file:
            yield file
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON that every UTF-8 file can hold."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only hold escaped
        line = json.dumps(row)
    return f"{line}\n"
