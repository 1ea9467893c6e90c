"""Finds the files in which a graph keeps its weights, if they are not in the graph itself."""

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


def weight_files(graph: Path) -> tuple[str, ...]:
    """Return the files with the weights of an ONNX file or an OpenVINO IR, relative to its folder.

    Raises:
        ModelLoadError: A file is not in the folder of the graph.
    """
    if graph.suffix == ".xml":
        return (graph.with_suffix(".bin").name,)
    found = graph.stat()
    names = _external_files(graph, (found.st_size, found.st_mtime_ns, found.st_ino))
    for name in names:
        if not stays_in_folder(name):
            raise ModelLoadError(
                f"{str(graph)!r} names {quoted(name)} as a file with its weights; expected a file in its own folder. "
                "Export the model again."
            )
    return names


@lru_cache(maxsize=64)
def _external_files(graph: Path, version: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names in an ONNX file, which is searched once for each size, time and inode that it has."""
    size, *_ = version
    if size == 0:
        return ()
    names: dict[str, None] = {}
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = 0
        while (key := content.find(_KEY, end)) >= 0:
            end = key + len(_KEY)
            if not _is_external_data(content[max(key - 3, 0) : key]):
                continue
            length, start = _varint(content[end : end + 2], end)
            name = content[start : start + length].decode(errors="replace")
            # Numbers of a tensor may look like a key.
            if name and name.isprintable():
                names[name] = None
    return tuple(names)


def _is_external_data(before: bytes) -> bool:
    """Whether these bytes, the tag and the length of an entry, begin one of a tensor's external data."""
    is_short = before[-2:-1] == _EXTERNAL_DATA
    return is_short or (before[-3:-2] == _EXTERNAL_DATA and before[-2:-1] >= b"\x80")


def _varint(encoded: bytes, at: int) -> tuple[int, int]:
    """Return a length below 16,384 and the position behind it."""
    if len(encoded) < 2 or encoded[0] < 0x80:
        return (encoded[0] if encoded else 0), at + 1
    return encoded[0] - 0x80 + (encoded[1] << 7), at + 2


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
