"""Reads compressed files of one JSON object per line."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_texts(file: Path) -> dict[str, str]:
    """Read the texts of passages or queries by their ids."""
    return {row["id"]: row["text"] for row in read_rows(file)}
