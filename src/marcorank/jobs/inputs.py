"""Files of queries with their passages: which there are, how they are cut into shards, and how a shard is read."""

from __future__ import annotations

import glob
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._files import errors_named, json_object, numbered_lines, opened_bytes, sha256_of
from marcorank.collections import parquet
from marcorank.collections.requests import request_of
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from marcorank.collections.requests import Request

    Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

PARQUET = ".parquet"
_ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", PARQUET)
# The blanks of ASCII; others make a line that is no JSON, which is an error and not nothing.
_BLANKS = " \t\n\r\x0b\x0c"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one file that follow each other.

    Attributes:
        path: Of the file.
        start: Where the first row begins: a byte of JSONL, unpacked; a row of Parquet, from 0.
        number: Of the first row, for people: its line of JSONL, its row of Parquet, from 1.
        rows: How many there are.
    """

    path: str
    start: int
    number: int
    rows: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows that are ranked and written together.

    Attributes:
        number: From 0.
        pieces: Where they stand, in order.
    """

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(piece.rows for piece in self.pieces)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {"number": self.number, "pieces": [asdict(piece) for piece in self.pieces]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Shard:
        """Make a shard of what `to_dict` returned."""
        return cls(int(fields["number"]), tuple(Piece(**piece) for piece in fields["pieces"]))


def find_files(paths: Paths, *, outside: str | os.PathLike[str]) -> list[Path]:
    """Return the files that paths, folders and patterns name: absolute, each once, ordered by path.

    Of a folder and of a pattern these are the files whose names end as JSONL or Parquet and do not begin with a dot or
    an underscore.

    Args:
        paths: One or more; `*`, `?`, `[` and `**` are those of shells.
        outside: A folder whose files do not count: what is written must not be read.

    Raises:
        InvalidInputError: A path or a pattern names nothing, or a file has another ending.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise InvalidInputError("`input` is empty; expected paths of files or folders, or patterns.")
    out = Path(outside).resolve()
    # By what a link leads to, so that no row counts twice; but read under the name that says the format.
    found: dict[Path, Path] = {}
    for path in given:
        named = [file.absolute() for file in _named(os.path.expanduser(os.fspath(path)))]  # noqa: PTH111
        kept = {file.resolve(): file for file in sorted(named, reverse=True) if out not in file.resolve().parents}
        if not kept:
            where = "only files of the output folder, which are no input" if named else "no file"
            raise InvalidInputError(
                f"{os.fspath(path)!r} names {where}; expected files that end in {', '.join(_ENDINGS)}, a folder that "
                "holds such, or a pattern that finds them."
            )
        found = {**kept, **found}
    return sorted(found.values())


def cut(files: Iterable[Path], shard_size: int) -> list[Shard]:
    """Cut the rows of files, one behind the other, into shards of so many rows; the last holds what is left.

    Raises:
        InvalidInputError: A file cannot be read.
        MissingExtraError: There is Parquet, and pyarrow is not installed.
    """
    pieces: dict[int, list[Piece]] = {}
    before = 0
    for file in files:
        cut_one = _cut_parquet if is_parquet(file) else _cut_jsonl
        for piece in cut_one(file, before, shard_size):
            pieces.setdefault(before // shard_size, []).append(piece)
            before += piece.rows
    return [Shard(number, tuple(of_shard)) for number, of_shard in pieces.items()]


def read_piece(piece: Piece, *, text_field: str | None) -> Iterator[Request]:
    """Read the rows of a piece.

    Raises:
        InvalidInputError: The file cannot be read, has fewer rows by now, or a row is no query with its passages.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    shown = repr(piece.path)
    rows = 0
    for place, row in _parquet_rows(piece) if is_parquet(Path(piece.path)) else _jsonl_rows(piece):
        yield request_of(row, f"{shown}, {place}", text_field)
        rows += 1
    if rows != piece.rows:
        raise InvalidInputError(f"{shown} lost rows while it was read; let no one write to it, and start again.")


def whole(file: Path) -> Piece | None:
    """Return the piece that is all of a file; None if it has no rows.

    Raises:
        InvalidInputError: The file cannot be read.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    found = cut([file], _MORE_THAN_ANY)
    return found[0].pieces[0] if found else None


def is_parquet(file: Path) -> bool:
    """Whether a file is Parquet, by its name."""
    return file.suffix.lower() == PARQUET


def digest(path: Path) -> str:
    """Return what tells the content of a file from every other.

    Raises:
        InvalidInputError: The file cannot be read.
    """
    with errors_named(repr(str(path))):
        return sha256_of(path)


_MORE_THAN_ANY = 1 << 62


def _named(path: str) -> list[Path]:
    if Path(path).is_file():
        if not path.lower().endswith(_ENDINGS):
            raise InvalidInputError(f"{path!r} is no input; expected a file that ends in {', '.join(_ENDINGS)}.")
        return [Path(path)]
    found = Path(path).iterdir() if Path(path).is_dir() else map(Path, glob.glob(path, recursive=True))  # noqa: PTH207 -- Path.glob takes no absolute patterns
    return [
        file
        for file in found
        if file.name.lower().endswith(_ENDINGS) and not file.name.startswith((".", "_")) and file.is_file()
    ]


def _cut_jsonl(path: Path, before: int, shard_size: int) -> Iterator[Piece]:
    start = number = rows = offset = 0
    with errors_named(repr(str(path))), opened_bytes(path) as file:
        for line_number, line in enumerate(file, 1):
            if (line.removeprefix(_BOM) if line_number == 1 else line).strip():
                if rows and (before + rows) % shard_size == 0:
                    yield Piece(str(path), start, number, rows)
                    before, rows = before + rows, 0
                if not rows:
                    start, number = offset, line_number
                rows += 1
            offset += len(line)
    if rows:
        yield Piece(str(path), start, number, rows)


def _cut_parquet(path: Path, before: int, shard_size: int) -> Iterator[Piece]:
    start, left = 0, parquet.count_rows(path)
    while left:
        rows = min(shard_size - (before + start) % shard_size, left)
        yield Piece(str(path), start, start + 1, rows)
        start, left = start + rows, left - rows


def _jsonl_rows(piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
    left = piece.rows
    for number, line in numbered_lines(piece.path, offset=piece.start, first=piece.number):
        if not left:
            return
        if line.strip(_BLANKS):
            place = f"line {number}"
            yield place, json_object(line, f"{piece.path!r}, {place}", expected="an object with a query")
            left -= 1


def _parquet_rows(piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = parquet.read_rows(piece.path, piece.start, piece.rows)
    return ((f"row {number}", row) for number, row in enumerate(rows, piece.number))
