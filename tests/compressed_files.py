"""Writes the compressed files of a collection or a training set."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write lines to a file in a folder that need not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as text:
        text.writelines(line + "\n" for line in lines)


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_lines(file, map(json.dumps, rows))
