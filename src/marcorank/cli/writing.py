"""Writes results to a terminal, a pipe or a file."""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from marcorank._files import written

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def opened(path: str | None) -> Iterator[TextIO]:
    """Open a file, which appears when it is complete, or standard output if `path` is None.

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
