"""Input files of queries with their passages: find them, split them into shards, read a shard."""

from __future__ import annotations

import glob
import os
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._files import COMPRESSED_ENDINGS, errors_named, opened_bytes
from marcorank._text import quoted_path
from marcorank.collections import parquet
from marcorank.collections.jsonl import read_lines
from marcorank.collections.requests import request_of
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from marcorank.collections.requests import Request

    Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_ENDINGS = tuple(f"{ending}{more}" for more in ("", *COMPRESSED_ENDINGS) for ending in (".jsonl", ".ndjson"))
_ENDINGS = (*_ENDINGS, ".parquet")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one file.

    Attributes:
        path: The file.
        start: Offset of the first row, in bytes of the decompressed JSONL or in rows of Parquet.
        number: Number of the first row for messages, from 1: its line in JSONL, its row in Parquet.
        rows: Number of rows.
    """

    path: str
    start: int
    number: int
    rows: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows that are ranked and written together.

    Attributes:
        number: Position in the job, from 0.
        pieces: The rows, in order.
    """

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.rows for piece in self.pieces)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {"number": self.number, "pieces": [asdict(piece) for piece in self.pieces]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Shard:
        """Make a shard from the result of `to_dict`."""
        return cls(int(fields["number"]), tuple(Piece(**piece) for piece in fields["pieces"]))


def find_files(paths: Paths, *, outside: str | os.PathLike[str]) -> list[Path]:
    """Return the absolute paths of the files that paths, folders and patterns match, sorted and each once.

    Folders and patterns match only JSONL and Parquet files whose names do not begin with a dot or an underscore.

    Args:
        paths: One or more; `*`, `?`, `[` and `**` have their meaning in shells.
        outside: The output folder, whose files are left out.

    Raises:
        InvalidInputError: A path or pattern matches no file, or a file has another ending.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise InvalidInputError("`input` is empty; expected paths of files or folders, or patterns.")
    out = Path(outside).resolve()
    # By the target of a link, so that no row counts twice; the given name has the ending.
    found: dict[Path, Path] = {}
    for path in given:
        with errors_named(quoted_path(path)):
            named = _named(os.path.expanduser(os.fspath(path)))  # noqa: PTH111
        kept = [file.absolute() for file in sorted(named) if out not in file.resolve().parents]
        if not kept:
            matched = "only files of the output folder, which cannot be input" if named else "no file"
            raise InvalidInputError(
                f"{quoted_path(path)} matches {matched}; expected files that end in {', '.join(_ENDINGS)}, a folder "
                "with such files, or a pattern that matches them."
            )
        for file in kept:
            found.setdefault(file.resolve(), file)
    return sorted(found.values())


def split(files: Iterable[Path], shard_size: int) -> list[Shard]:
    """Split the rows of files, one after the other, into shards of `shard_size` rows; the last may be shorter.

    Raises:
        InvalidInputError: A file cannot be read.
        MissingExtraError: There is Parquet, and pyarrow is not installed.
    """
    rows = ((str(file), start, number) for file in files for start, number in _row_starts(file))
    shards: list[Shard] = []
    while of_shard := list(islice(rows, shard_size)):
        pieces = []
        for path, group in groupby(of_shard, key=itemgetter(0)):
            of_piece = list(group)
            pieces.append(Piece(path, *of_piece[0][1:], len(of_piece)))
        shards.append(Shard(len(shards), tuple(pieces)))
    return shards


def read_shard(shard: Shard, *, text_field: str | None) -> list[Request]:
    """Read the rows of a shard.

    Raises:
        InvalidInputError: A file cannot be read or has lost rows, or a row is not a query with passages.
        MissingExtraError: There is Parquet, and pyarrow is not installed.
    """
    requests: list[Request] = []
    for piece in shard.pieces:
        found = list(islice(_rows(piece.path, piece.start, piece.number, text_field), piece.rows))
        if len(found) != piece.rows:
            raise InvalidInputError(
                f"{quoted_path(piece.path)} lost rows while it was read; leave it unchanged and start again."
            )
        requests += found
    return requests


def read_file(path: Path, *, text_field: str | None) -> Iterator[Request]:
    """Read all rows of a file.

    Raises:
        InvalidInputError: The file cannot be read, or a row is not a query with passages.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    return _rows(str(path), 0, 1, text_field)


def is_parquet(file: Path) -> bool:
    """Whether a file is Parquet, judged by its name."""
    return file.suffix.lower() == ".parquet"


def _named(path: str) -> list[Path]:
    if Path(path).is_file():
        if not path.lower().endswith(_ENDINGS):
            raise InvalidInputError(
                f"{quoted_path(path)} is not a JSONL or Parquet file; expected a file that ends in "
                f"{', '.join(_ENDINGS)}."
            )
        return [Path(path)]
    found = Path(path).iterdir() if Path(path).is_dir() else map(Path, glob.glob(path, recursive=True))  # noqa: PTH207 -- Path.glob takes no absolute patterns
    return [
        file
        for file in found
        if file.name.lower().endswith(_ENDINGS) and not file.name.startswith((".", "_")) and file.is_file()
    ]


def _row_starts(path: Path) -> Iterator[tuple[int, int]]:
    """Yield `Piece.start` and `Piece.number` of each row."""
    if is_parquet(path):
        yield from ((row, row + 1) for row in range(parquet.count_rows(path)))
        return
    offset = 0
    with errors_named(quoted_path(path)), opened_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if (line.removeprefix(_BOM) if number == 1 else line).strip():
                yield offset, number
            offset += len(line)


def _rows(path: str, start: int, number: int, text_field: str | None) -> Iterator[Request]:
    """Yield rows from an offset to the end of the file; `number` is that of the first one, for messages."""
    if is_parquet(Path(path)):
        for row_number, row in enumerate(parquet.read_rows(path, start), number):
            yield request_of(row, f"{quoted_path(path)}, row {row_number}", text_field)
    else:
        for _, location, row in read_lines(path, expected="an object with a query", offset=start, first=number):
            yield request_of(row, location, text_field)
