"""Text files in and out. Every complaint names the file, and the line where there is one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import uuid
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

_BLOCK_BYTES = 1 << 20


def numbered_lines(path: str | os.PathLike[str], *, offset: int = 0, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, without their ends; a file named .gz is unpacked.

    Args:
        path: Of the file.
        offset: Byte at which the first line begins, of the unpacked file.
        first: Number of that line.

    Raises:
        InvalidInputError: The file cannot be read, is damaged or not UTF-8.
    """
    shown = repr(str(path))
    with errors_named(shown), opened_bytes(path) as file:
        if offset:
            file.seek(offset)
        yield from decoded_lines(file, shown, first=first)


def decoded_lines(file: Iterable[bytes], shown: str, *, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers from `first`, without their ends.

    Raises:
        InvalidInputError: A line is not UTF-8.
    """
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


def opened_bytes(path: str | os.PathLike[str]) -> gzip.GzipFile | BinaryIO:
    """Open a file to read; one named .gz is unpacked."""
    return gzip.open(path) if Path(path).suffix.lower() == ".gz" else Path(path).open("rb")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return what tells the content of a file from every other."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def errors_named(shown: str) -> Iterator[None]:
    """Turn what goes wrong in reading into errors that name what was read.

    Raises:
        InvalidInputError: Something went wrong.
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{shown} is damaged or no gzip file: {error}") from error
    except OSError as error:
        raise InvalidInputError(f"{shown} cannot be read: {error.strerror or error}.") from error


def json_object(line: str, place: str, *, expected: str) -> dict[str, Any]:
    """Return the object that stands in a line of JSONL.

    Args:
        line: What was read.
        place: File and line, for messages.
        expected: What should stand there, for messages, such as `"an object with a text field"`.

    Raises:
        InvalidInputError: The line is no JSON, or no object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{place} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise InvalidInputError(f"{place} is {brief(row)}; expected {expected}.")
    return row


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON that every UTF-8 file can hold; what JSON lacks, such as dates, becomes text."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only hold escaped
        line = json.dumps(row, default=str)
    return f"{line}\n"


def brief(value: object) -> str:
    """Return a value of JSON as it is written there, cut where it is long."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a file to write; it appears when everything is written, or not at all. One named .gz is packed.

    Raises:
        InvalidInputError: The path cannot be written.
    """
    shown = repr(str(path))
    # A link keeps pointing where it points.
    target = Path(path).resolve()
    packed = target.suffix == ".gz"
    if target.exists() and not target.is_file():
        if target.is_dir():
            raise InvalidInputError(f"{shown} is a folder; expected the path of a file to write.")
        # A device or a named pipe must not be replaced by a file.
        with target.open("wb") as raw, _text(raw, packed=packed) as file:
            yield file
        return
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        raw = part.open("xb")
    except OSError as error:
        raise InvalidInputError(f"{shown} cannot be written: {error.strerror or error}.") from error
    try:
        with raw, _text(raw, packed=packed) as file:
            yield file
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _text(raw: BinaryIO, *, packed: bool) -> Iterator[TextIO]:
    # Without name and time the same content gives the same bytes.
    binary = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if packed else raw
    with binary, io.TextIOWrapper(binary, encoding="utf-8", newline="\n") as file:
        yield file
