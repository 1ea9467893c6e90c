"""A file that keeps the logits of an evaluation, so that no pair is scored twice."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from marcorank._files import errors_of_writing
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Self

_KIND = "marcorank scores"
# Each line is flushed and so survives the end of the process; syncing to disk is slow and happens only this often.
_SYNC_S = 1.0


class ScoreStore:
    """Logits of one model with its settings, in a file to which lines are appended.

    The first line holds the settings. Each other line holds some passages of one query with their logits and the time
    that scoring them together took. A pair is identified by the query_id and the texts of query and passage: changed
    texts are scored again. A line that a process could not finish is dropped when the file is opened.

    Attributes:
        path: The file; None for a store in memory.
        settings: The settings that decide the logits, JSON-serialisable.

    Raises:
        InvalidInputError: The file cannot be written, is in use by another process, is damaged, or belongs to other
            settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Open the file, which is created if necessary, and read it; without a path everything stays in memory."""
        self.path = path
        self.settings = dict(settings)
        self._logits: dict[tuple[str, str], dict[str, float]] = {}
        self._timed: dict[tuple[str, str], list[tuple[frozenset[str], float]]] = {}
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        if path is not None:
            self._file = _locked(path)
            try:
                self._read(self._file)
            except BaseException:
                self.close()
                raise

    @classmethod
    def in_folder(cls, folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> Self:
        """Open the file for these settings in a folder; None for a store in memory."""
        if folder is None:
            return cls(None, settings)
        digest = _digest(json.dumps(settings, sort_keys=True))
        return cls(Path(folder).expanduser() / f"{file_name(str(settings['model']))}-{digest}.jsonl", settings)

    def missing(self, query_id: str, query: str, passages: Iterable[str]) -> list[str]:
        """Return the passages without a logit, in their order and without duplicates."""
        known = self._logits.get((query_id, _digest(query)), {})
        return [passage for passage in dict.fromkeys(passages) if _digest(passage) not in known]

    def logits(self, query_id: str, query: str, passages: Iterable[str]) -> list[float]:
        """Return the logit of each passage; none may be missing."""
        known = self._logits.get((query_id, _digest(query)), {})
        return [known[_digest(passage)] for passage in passages]

    def seconds(self, query_id: str, query: str, passages: Iterable[str]) -> float | None:
        """Return how long scoring exactly these passages took; None if they were timed together with others."""
        wanted = {_digest(passage) for passage in passages}
        pieces = [piece for piece in self._timed.get((query_id, _digest(query)), ()) if piece[0] <= wanted]
        timed = set[str]().union(*(digests for digests, _ in pieces))
        return sum((took for _, took in pieces), 0.0) if timed == wanted else None

    def add(
        self, query_id: str, query: str, passages: Mapping[str, str], logits: Iterable[float], *, seconds: float
    ) -> None:
        """Append the logits of distinct passages of a query; float32 values are preserved exactly."""
        row = {
            "query_id": query_id,
            "query": _digest(query),
            "doc_ids": list(passages),
            "passages": [_digest(passage) for passage in passages.values()],
            "logits": [float(logit) for logit in logits],
            "seconds": seconds,
        }
        self._append(row)
        self._take(row)

    def close(self) -> None:
        """Sync and close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                file.flush()
                os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        content = file.read()
        *lines, unfinished = content.split(b"\n")
        if unfinished:
            file.truncate(len(content) - len(unfinished))
        if not lines:
            self._append({"kind": _KIND, "settings": self.settings})
            return
        header: Any = None
        try:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if number == 1:
                    header = row["kind"], row["settings"]
                else:
                    self._take(row)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"Line {number} of {str(self.path)!r} is damaged. Delete the file; its pairs are then scored again."
            ) from error
        if header != (_KIND, self.settings):
            raise InvalidInputError(
                f"{str(self.path)!r} holds scores of {header[1]!r}; expected {self.settings!r}. Delete the file, or "
                "choose another folder."
            )

    def _take(self, row: Mapping[str, Any]) -> None:
        passages, logits, seconds = row["passages"], row["logits"], row["seconds"]
        if not all(isinstance(value, float) and math.isfinite(value) for value in (seconds, *logits)):
            raise ValueError("not finite")
        query = (row["query_id"], row["query"])
        self._logits.setdefault(query, {}).update(zip(passages, logits, strict=True))
        self._timed.setdefault(query, []).append((frozenset(passages), seconds))

    def _append(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        now = time.monotonic()
        if now - self._synced >= _SYNC_S:
            self._synced = now
            os.fsync(self._file.fileno())


def file_name(text: str) -> str:
    """Return a text as a file name that is valid on every system."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return plain.strip(".-")[:80] or "unnamed"


def _locked(path: Path) -> IO[bytes]:
    """Open a file that no other process has open; the system removes the lock when the process ends."""
    with errors_of_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    try:
        if sys.platform == "win32":
            import msvcrt

            # A locked range cannot be read by others; no score is ever written this far out.
            file.seek(1 << 40)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; there the user has to take care.
        if sys.platform == "win32" or isinstance(error, BlockingIOError):
            file.close()
            raise InvalidInputError(
                f"{str(path)!r} is in use by another evaluation; wait until it ends, or choose another folder."
            ) from error
    return file


def _digest(text: str) -> str:
    # A text may hold half a surrogate pair.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
