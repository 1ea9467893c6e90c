"""Files in and out. Every error names the file, and the line where there is one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import uuid
import zlib
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from marcorank._text import brief, quoted, quoted_path
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# By ending: the module, imported when needed because some builds of Python lack it, and the first bytes.
_COMPRESSED: dict[str, tuple[str, re.Pattern[bytes]]] = {
    ".gz": ("gzip", re.compile(rb"\x1f\x8b")),
    ".bz2": ("bz2", re.compile(rb"BZh[1-9](?:1AY&|\x17rE8)")),
    ".xz": ("lzma", re.compile(rb"\xfd7zXZ\x00")),
}
COMPRESSED_ENDINGS = tuple(_COMPRESSED)
# Files that cannot be read, by their first bytes, and what to do about them.
_UNREADABLE = {
    re.compile(rb"\x28\xb5\x2f\xfd"): "is compressed with zstd; decompress it first, as `zstd -d` does",
    re.compile(rb"\x04\x22\x4d\x18"): "is compressed with LZ4; decompress it first, as `lz4 -d` does",
    re.compile(rb"7z\xbc\xaf"): "is a 7-Zip archive; extract it first",
    re.compile(rb"PK\x03\x04"): "is a zip archive or an Office document; extract it, or save the table as CSV",
    re.compile(
        rb"PAR1\x15"
    ): "is Parquet, which only `marcorank rerank --input` reads, from files named .parquet; rename "
    "it to .parquet there, or convert it to JSONL",
    re.compile(rb"\xff\xfe|\xfe\xff"): "is UTF-16; save the file as UTF-8",
}
_BLOCK_BYTES = 1 << 20
_TRIES = 5
# Raised when another process writes to the same folder, or clears it.
_RACES = (FileExistsError, FileNotFoundError)


def numbered_lines(path: str | os.PathLike[str], *, offset: int = 0, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file, which may be compressed, with their numbers and without line endings.

    Args:
        path: File to read.
        offset: Byte at which the first line begins, in the decompressed file.
        first: Number of that line.
    """
    shown = quoted_path(path)
    with errors_named(shown), opened_bytes(path) as file:
        if offset:
            file.seek(offset)
        yield from decoded_lines(file, shown, first=first)


def decoded_lines(file: Iterable[bytes], shown: str, *, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield lines, which must be UTF-8, with their numbers from `first`, without line endings."""
    for number, line in enumerate(file, first):
        try:
            # Windows programs put a byte order mark in front of the first line.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"{shown}, line {number} is not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}); "
                "save the file as UTF-8."
            ) from error
        yield number, text.rstrip("\r\n")


@contextmanager
def opened_bytes(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to read; one that is compressed with gzip, bz2 or xz is decompressed.

    Raises:
        InvalidInputError: It is a file of another kind that marcorank knows and cannot read.
    """
    with Path(path).open("rb") as raw, decompressed(raw, quoted_path(path), Path(path).suffix.lower()) as file:
        yield file


@contextmanager
def decompressed(raw: BinaryIO, shown: str, ending: str = "") -> Iterator[BinaryIO]:
    """Decompress what `raw` reads, judged by its first bytes, or else by the `ending` of its name.

    Raises:
        InvalidInputError: It is of another kind that marcorank knows and cannot read.
    """
    # A pipe cannot go back to its beginning.
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", raw))
    head = buffered.peek(8)
    for pattern, what in _UNREADABLE.items():
        if pattern.match(head):
            raise InvalidInputError(f"{shown} {what}.")
    found = next((name for name, (_, pattern) in _COMPRESSED.items() if pattern.match(head)), ending)
    if head and found in _COMPRESSED:
        with _packed(buffered, found, "rb") as file:
            yield file
    else:
        yield cast("BinaryIO", buffered)


def _packed(raw: BinaryIO, ending: str, mode: str) -> Any:
    module = _COMPRESSED[ending][0]
    try:
        return import_module(module).open(raw, mode)
    except ImportError as error:
        raise InvalidInputError(
            f"This build of Python has no module {quoted(module)}, which files named {ending} need; use another "
            "compression."
        ) from error


def without_compression(name: str) -> str:
    """Return the name of a file without the ending of a compressed one."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in _COMPRESSED else name


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def errors_named(shown: str) -> Iterator[None]:
    """Turn errors of reading into an `InvalidInputError` that names what was read."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, getattr(sys.modules.get("lzma"), "LZMAError", EOFError)) as error:
        reason = str(error).rstrip(".")
        raise InvalidInputError(
            f"{shown} cannot be decompressed: {reason}. Is it damaged, or is its ending wrong?"
        ) from error
    except OSError as error:
        raise InvalidInputError(f"{shown} cannot be read: {error.strerror or error}.") from error


def json_object(line: str, location: str, *, expected: str) -> dict[str, Any]:
    """Return the object in a line of JSONL; messages name its `location` and what was `expected`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise not_json(location, error) from error
    if not isinstance(row, dict):
        raise InvalidInputError(f"{location} is {brief(row)}; expected {expected}.")
    return row


def not_json(location: str, error: ValueError | RecursionError) -> InvalidInputError:
    """Return the error for a text that cannot be parsed as JSON; `location` is the line where that shows."""
    # Its own text has the line within the parsed text, which is not that of the file.
    reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return InvalidInputError(f"{location} is not JSON: {reason}.")


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON in valid UTF-8; values that JSON lacks, such as dates, become text.

    JSON has no NaN and no infinity, which become null; the field `not_finite` then lists where they were.
    """
    try:
        line = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        json.dumps(row, default=str)  # raises again if the row contains itself
        found: list[str] = []
        row = extended(row, {"not_finite": None})
        row = {**_without_nan(row, "", found), "not_finite": found}
        line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only hold escaped
        line = json.dumps(row, default=str)
    return f"{line}\n"


def extended(fields: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Add fields to those of the input; an input field with the name of an added one gets the prefix `input_`."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        free = name
        while free in added or (free != name and free in fields):
            free = f"input_{free}"
        kept[free] = value
    return {**kept, **added}


def _without_nan(value: Any, path: str, found: list[str]) -> Any:
    """Replace what is not finite by None, and add its path to `found`, such as `results[0].price`."""
    if isinstance(value, float) and not math.isfinite(value):
        found.append(path)
        return None
    if isinstance(value, dict):
        return {key: _without_nan(one, f"{path}.{key}".lstrip("."), found) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one, f"{path}[{index}]", found) for index, one in enumerate(value)]
    return value


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a text file to write; it appears when it is complete, or not at all. A name such as x.gz compresses it."""
    # A symbolic link stays a link.
    target = Path(path).resolve()
    ending = target.suffix.lower()
    if ending in {".zst", ".zip"}:
        raise InvalidInputError(
            f"{quoted_path(path)} has the ending {ending}, which cannot be written; expected no compression, or one of "
            f"{', '.join(COMPRESSED_ENDINGS)}."
        )
    with errors_of_writing(path):
        is_other = target.exists() and not target.is_file()
    if is_other:
        if target.is_dir():
            raise InvalidInputError(f"{quoted_path(path)} is a folder; expected the path of a file to write.")
        # A device or a named pipe must not be replaced by a file.
        with target.open("wb") as raw, _text(raw, ending) as file:
            yield file
        return
    part = _hidden_beside(target)
    with errors_of_writing(path):
        raw = part.open("xb")
    try:
        with raw, _text(raw, ending) as file:
            yield file
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_durably(
    path: Path,
    fill: Callable[[BinaryIO], None],
    *,
    before_naming: Callable[[], None] = lambda: None,
    only_new: bool = False,
) -> None:
    """Write a file that gets its name when it is complete and on disk.

    Args:
        path: File to write.
        fill: Writes the content; called again if another process removes the unfinished file.
        before_naming: Called just before the file gets its name; may raise.
        only_new: Whether an existing file is an error, a `FileExistsError`.
    """
    for tries_left in reversed(range(_TRIES)):
        part = _hidden_beside(path)
        try:
            with errors_of_writing(path, but=_RACES), part.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            before_naming()
            with errors_of_writing(path, but=_RACES):
                _rename(part, path, only_new=only_new)
                _sync_folder(path.parent)
        except FileNotFoundError as error:
            if not tries_left or not path.parent.is_dir():
                raise InvalidInputError(f"{quoted_path(path)} cannot be written: its folder was removed.") from error
        else:
            return
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def stays_in_folder(name: str) -> bool:
    """Whether a relative path, as files of models name others, leads to something in the same folder."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive)


@contextmanager
def staged_folder(target: Path, *, last: str) -> Iterator[Path]:
    """Make a folder beside `target` to write to; its files move into `target` when the block ends without an error.

    Files of the same names in `target` are replaced, others are kept. The file with the relative path `last` moves
    last: where it is, the files that it needs are there too.
    """
    if target.exists() and not target.is_dir():
        raise InvalidInputError(f"{quoted_path(target)} is a file; expected a folder to write.")
    with errors_of_writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    with folder as name:
        staging = Path(name)
        (staging / last).parent.mkdir(parents=True, exist_ok=True)
        yield staging
        (target / last).parent.mkdir(parents=True, exist_ok=True)
        # An older one must not be found beside the new files.
        (target / last).unlink(missing_ok=True)
        files = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
        for file in sorted(files, key=lambda file: file == Path(last)):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).replace(target / file)


@contextmanager
def errors_of_writing(path: str | os.PathLike[str], *, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turn errors of writing, except those in `but`, into an `InvalidInputError` that names the path."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        raise InvalidInputError(f"{quoted_path(path)} cannot be written: {error.strerror or error}.") from error


def _hidden_beside(path: Path) -> Path:
    """Return a free hidden path in the same folder, for what takes the name of `path` when it is complete."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _rename(part: Path, path: Path, *, only_new: bool) -> None:
    if not only_new:
        part.replace(path)
        return
    try:
        path.hardlink_to(part)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:  # a file system without hard links
        if path.exists():
            raise FileExistsError(str(path)) from error
        part.replace(path)


def _sync_folder(folder: Path) -> None:
    # Otherwise a crash of the machine may lose the name. Windows cannot open folders.
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def _text(raw: BinaryIO, ending: str) -> Iterator[TextIO]:
    binary: BinaryIO = raw
    if ending == ".gz":
        # Without name and time the same content gives the same bytes.
        binary = cast("BinaryIO", gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
    elif ending in _COMPRESSED:
        binary = _packed(raw, ending, "wb")
    # Half a surrogate pair, which UTF-8 lacks, becomes a question mark.
    with binary, io.TextIOWrapper(binary, encoding="utf-8", errors="replace", newline="\n") as file:
        yield file
