"""Reads what a graph says about itself without an engine, such as the files in which it keeps its weights."""

from __future__ import annotations

import mmap
import os
import shutil
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from marcorank._files import stays_in_folder
from marcorank._text import quoted
from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What stands before the name of such a file in an ONNX file: a StringStringEntryProto with its key, and the tag of its
# value. The package onnx, which could read it, is large and not needed for anything else.
_KEY = b"\n\x08location\x12"
# The tag of such an entry of a tensor. Entries of a model's metadata have another one.
_EXTERNAL_DATA = b"\x6a"
# Numbers of fields, and kinds of fields in protobuf.
_GRAPH, _INITIALIZER = 7, 5
_VARINT, _BYTES = 0, 2
# An entry of a tensor whose numbers are elsewhere is far smaller.
_LARGE_TENSOR = 16384


def weight_files(graph: Path) -> tuple[str, ...]:
    """Return the files with the weights of an ONNX file or an OpenVINO IR, relative to its folder.

    Raises:
        ModelLoadError: A file is not in the folder of the graph.
    """
    if graph.suffix == ".xml":
        return (graph.with_suffix(".bin").name,)
    names = _external_files(structure_of(graph))
    for name in names:
        if not stays_in_folder(name):
            raise ModelLoadError(
                f"{str(graph)!r} names {quoted(name)} as a file with its weights; expected a file in its own folder. "
                "Export the model again."
            )
    return names


def mentions(graph: Path, word: str) -> bool:
    """Whether a word, such as an operator or the name of a tensor, occurs in an ONNX file or an OpenVINO IR."""
    return word.encode() in structure_of(graph)


def structure_of(graph: Path) -> bytes:
    """Return the content of an ONNX file without its large weights, or of an OpenVINO IR; empty if it is not readable.

    The engines report what is wrong with such a file.
    """
    try:
        found = graph.stat()
        return _structure_of(graph, (found.st_size, found.st_mtime_ns, found.st_ino))
    except OSError:
        return b""


@lru_cache(maxsize=4)
def _structure_of(graph: Path, version: tuple[int, int, int]) -> bytes:
    """Return the structure of a file, read once for each size, time and inode that it has."""
    size, *_ = version
    if size == 0:
        return b""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if graph.suffix == ".xml":
            return content[:]
        try:
            return b"".join(_small_parts(content))
        except (IndexError, ValueError):  # not as expected; then all of it is searched
            return content[:]


def _small_parts(content: mmap.mmap) -> Iterator[bytes]:
    """Yield the fields of an ONNX model and of its graph, but for large tensors.

    Source: https://protobuf.dev/programming-guides/encoding and onnx.proto.
    """
    for number, start, end in _fields(content, 0, len(content)):
        if number != _GRAPH:
            yield content[start:end]
            continue
        for inner, inner_start, inner_end in _fields(content, start, end):
            if inner != _INITIALIZER or inner_end - inner_start < _LARGE_TENSOR:
                yield content[inner_start:inner_end]


def _fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message that holds other messages, texts and numbers."""
    while position < end:
        key, position = _varint(content, position)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(content, position)
        elif kind == _BYTES:
            length, start = _varint(content, position)
            position = start + length
            if position > end:
                raise ValueError(position)
            yield key >> 3, start, position
        else:
            raise ValueError(kind)


def _varint(content: mmap.mmap | bytes, position: int) -> tuple[int, int]:
    """Return a number and the position behind it."""
    number = shift = 0
    while True:
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7


def _external_files(structure: bytes) -> tuple[str, ...]:
    """Return the names of files with weights in the structure of an ONNX file."""
    names: dict[str, None] = {}
    end = 0
    while (key := structure.find(_KEY, end)) >= 0:
        end = key + len(_KEY)
        if not _is_external_data(structure[max(key - 3, 0) : key]):
            continue
        length, start = _varint(structure[end : end + 10] + b"\0", 0)
        name = structure[end + start : end + start + length].decode(errors="replace")
        # Numbers of a tensor may look like a key.
        if name and name.isprintable():
            names[name] = None
    return tuple(names)


def _is_external_data(before: bytes) -> bool:
    """Whether these bytes, the tag and the length of an entry, begin one of a tensor's external data."""
    is_short = before[-2:-1] == _EXTERNAL_DATA
    return is_short or (before[-3:-2] == _EXTERNAL_DATA and before[-2:-1] >= b"\x80")


@contextmanager
def without_links(graph: Path, folder: Path) -> Iterator[Path]:
    """Yield a path of a graph whose weights are not behind links that lead out of a folder.

    The engines refuse such links, and the cache of the Hub consists of links. Hard links take their place while this
    context is open, or copies where the file system has none.

    Args:
        graph: An ONNX file or an OpenVINO IR.
        folder: The folder in which the engine looks for the weights, without links.
    """
    names = weight_files(graph)
    if all((graph.parent / name).resolve().is_relative_to(folder) for name in names):
        yield graph
        return
    beside = graph.resolve().parent
    with TemporaryDirectory(
        prefix="marcorank-", dir=beside if os.access(beside, os.W_OK) else None, ignore_cleanup_errors=True
    ) as temporary:
        for name in (graph.name, *names):
            target = Path(temporary, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = (graph.parent / name).resolve()
            try:
                target.hardlink_to(source)
            except OSError:
                shutil.copyfile(source, target)
        yield Path(temporary, graph.name)
