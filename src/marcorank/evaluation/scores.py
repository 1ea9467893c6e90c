"""Logits that an evaluation has paid for, kept in a file so that no pair is scored twice."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Self

    from marcorank.reranker import Reranker

_KIND = "marcorank scores"
# Lines reach the system at once and so survive the end of the process; the disk is asked for more only this often.
_SYNC_S = 1.0


def scoring_settings(reranker: Reranker) -> dict[str, Any]:
    """Return the fingerprint of a reranker: everything that decides its logits, ready for JSON.

    Raises:
        MarcoRankError: The settings contradict each other, or a file of the model is missing or cannot be fetched.
    """
    return reranker._fingerprint()  # noqa: SLF001 -- it takes the token, which no public form has


class ScoreStore:
    """Logits of one model with its settings, in a file that only grows.

    The first line says what made the scores, each other one holds some passages of one query with their logits
    and the time that they took together. A pair is known by the id and the text of its query and by the text of its
    passage: changed texts are scored again. What a process was writing when it ended is dropped by the next one.

    Attributes:
        path: The file; None for a store that lives in memory.
        settings: What made the scores.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Open the file and read what it holds.

        Args:
            path: Of the file, made with its folders if there is none; None keeps everything in memory.
            settings: What makes the scores, ready for JSON; see `scoring_settings`.

        Raises:
            InvalidInputError: The file cannot be written, is in use by another process, is damaged, or holds scores
                that other settings made.
        """
        self.path = path
        self.settings = dict(settings)
        self._logits: dict[tuple[str, str], dict[str, float]] = {}
        self._pieces: dict[tuple[str, str], list[tuple[frozenset[str], float]]] = {}
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        if path is not None:
            self._file = _opened(path)
            try:
                self._read(self._file)
            except BaseException:
                self.close()
                raise

    @classmethod
    def in_folder(cls, folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> Self:
        """Open the file that a folder has, or will have, for these settings; None for a store in memory.

        Raises:
            InvalidInputError: As the constructor.
        """
        if folder is None:
            return cls(None, settings)
        digest = _digest(json.dumps(settings, sort_keys=True))
        return cls(Path(folder).expanduser() / f"{file_name(str(settings['model']))}-{digest}.jsonl", settings)

    def missing(self, query_id: str, query: str, passages: Iterable[str]) -> list[str]:
        """Return the passages without a logit, each different one once, in their order."""
        known = self._logits.get((query_id, _digest(query)), {})
        return [passage for passage in dict.fromkeys(passages) if _digest(passage) not in known]

    def logits(self, query_id: str, query: str, passages: Iterable[str]) -> list[float]:
        """Return the logit of each passage.

        Raises:
            KeyError: One is missing.
        """
        known = self._logits.get((query_id, _digest(query)), {})
        return [known[_digest(passage)] for passage in passages]

    def seconds(self, query_id: str, query: str, passages: Iterable[str]) -> float | None:
        """Return how long scoring exactly these passages took; None where they were timed together with others."""
        wanted = {_digest(passage) for passage in passages}
        timed, seconds = set[str](), 0.0
        for piece, took in self._pieces.get((query_id, _digest(query)), ()):
            if piece <= wanted:
                timed |= piece
                seconds += took
        return seconds if timed == wanted else None

    def add(
        self, query_id: str, query: str, passages: Mapping[str, str], logits: Iterable[float], *, seconds: float
    ) -> None:
        """Keep what was scored.

        Args:
            query_id: Of the query.
            query: Its text.
            passages: Texts by doc_id, each different from the others.
            logits: One a passage, finite; what float32 holds comes back as it was.
            seconds: How long scoring them took.
        """
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
        """Let go of the file."""
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
        lines = content.split(b"\n")
        torn = lines.pop()
        if torn:
            file.truncate(len(content) - len(torn))
        if not lines:
            self._append({"kind": _KIND, "settings": self.settings})
            return
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if number > 1:
                    self._take(row)
                    continue
                kind, settings = row["kind"], row["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(
                    f"Line {number} of {str(self.path)!r} is damaged: expected what an evaluation writes there. Delete "
                    "the file; its pairs are then scored again."
                ) from error
            if kind != _KIND or settings != self.settings:
                raise InvalidInputError(
                    f"{str(self.path)!r} holds scores that were made by {settings!r}; expected {self.settings!r}. "
                    "Delete the file, or give another folder."
                )

    def _take(self, row: Mapping[str, Any]) -> None:
        passages, logits, seconds = row["passages"], row["logits"], row["seconds"]
        if not all(isinstance(value, float) and math.isfinite(value) for value in (seconds, *logits)):
            raise ValueError("not finite")
        query = (row["query_id"], row["query"])
        self._logits.setdefault(query, {}).update(zip(passages, logits, strict=True))
        self._pieces.setdefault(query, []).append((frozenset(passages), seconds))

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
    """Return a text as the name of a file that every system takes."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return plain.strip(".-")[:80] or "unnamed"


def _opened(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise InvalidInputError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
    if not _locked(file):
        file.close()
        raise InvalidInputError(
            f"{str(path)!r} is in use by another evaluation; wait for its end, or give another folder."
        )
    return file


def _locked(file: IO[bytes]) -> bool:
    """Keep others away until the file is closed, which the system does when a process ends, however it ends.

    Returns:
        False if another one keeps it.
    """
    if sys.platform == "win32":
        import msvcrt

        # What is locked cannot be read by others; no score is ever written this far out.
        file.seek(1 << 40)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    else:
        import fcntl

        # Some network folders know no locks: there the user has to take care.
        with suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def _digest(text: str) -> str:
    # Texts may hold halves of surrogate pairs.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
