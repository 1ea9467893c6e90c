"""The output folder of a job: its finished shards, and the manifest that records how they were made.

A shard is renamed from a temporary name once it is complete and on disk, so a shard under its final name is finished.
The manifest, `_marcorank.json`, records the scorer, the input and the settings; a run with others is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from marcorank._files import json_line, write_durably
from marcorank._models.fingerprint import advice, content_differences, differences
from marcorank.collections import parquet
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OutputFormat = Literal["jsonl", "parquet"]

MANIFEST = "_marcorank.json"
_SHARD = re.compile(r"part-\d{5,}\.(jsonl|parquet)")
_UNFINISHED = re.compile(r"\.(part-\d{5,}\.(jsonl|parquet)|_marcorank\.json|_candidates-\w+\.jsonl)\.\w+\.tmp")
_JOINED = re.compile(r"_candidates-\w+\.jsonl")
_RECOVERY_HINT = "Use another folder, or `overwrite` (--overwrite) to delete the shards in this one and start again."


@dataclass(frozen=True, slots=True)
class Folder:
    """The output folder, as seen by the run that writes to it.

    Attributes:
        path: Absolute path.
        manifest_digest: Digest of the manifest; it changes when another run takes the folder over.
        columns: Columns of Parquet shards, see `parquet.answer_columns`; None for JSONL.
    """

    path: Path
    manifest_digest: str
    columns: str | None

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Open a folder whose manifest is written."""
        content = (path / MANIFEST).read_bytes()
        return cls(path, _digest(content), json.loads(content).get("columns"))

    def shard_path(self, number: int) -> Path:
        """Return the path of a finished shard."""
        return self.path / f"part-{number:05d}.{'jsonl' if self.columns is None else 'parquet'}"

    def is_finished(self, number: int, rows: int) -> bool:
        """Whether a shard is there with all its rows."""
        path = self.shard_path(number)
        try:
            if self.columns is not None:
                return parquet.count_rows(path) == rows
            content = path.read_bytes()
        except (OSError, InvalidInputError):
            return False
        return content.count(b"\n") == rows and content.endswith(b"\n")

    def write_shard(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write a shard; its final name appears once it is complete and on disk.

        Raises:
            InvalidInputError: The folder cannot be written, or another run took it over.
        """

        def fill(file: BinaryIO) -> None:
            if self.columns is not None:
                parquet.write_rows(file, rows, self.columns)
            else:
                file.writelines(json_line(row).encode() for row in rows)

        write_durably(self.shard_path(number), fill, before_naming=self._check_mine)

    def _check_mine(self) -> None:
        try:
            mine = _digest((self.path / MANIFEST).read_bytes()) == self.manifest_digest
        except FileNotFoundError:
            mine = False
        if not mine:
            raise InvalidInputError(
                f"{str(self.path)!r} was taken over by another run, so this one stops. Use a folder for each run."
            )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder; None if it has none.

    Raises:
        InvalidInputError: The manifest cannot be read, shards are there without one, or the path is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{str(folder)!r} is a file; expected a folder, or a path that does not exist yet.")
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        shard = next((file.name for file in folder.glob("part-*") if _SHARD.fullmatch(file.name)), None)
        if shard is None:
            return None
        raise InvalidInputError(
            f"{str(folder)!r} has {shard} but no {MANIFEST} that records how it was made. {_RECOVERY_HINT}"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{str(path)!r} cannot be read: {error}. {_RECOVERY_HINT}") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{str(path)!r} is not a manifest of marcorank. {_RECOVERY_HINT}")
    return found


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a folder was started with the same scorer, input and settings.

    Raises:
        InvalidInputError: Something differs.
    """
    there, here = ({**manifest.get("scorer", {}), **manifest.get("settings", {})} for manifest in (found, wanted))
    different = differences(there, here)
    different += content_differences("input", found.get("input", {}), wanted.get("input", {}))
    if different:
        more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
        hints = " ".join(filter(None, (advice(there, here), _RECOVERY_HINT)))
        raise InvalidInputError(
            f"{str(folder)!r} was started with something else: {'; '.join(different[:4])}{more}. {hints}"
        )


def begin(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a new run, unless the same run has started already.

    Raises:
        InvalidInputError: The folder cannot be written, or a different run has started there in the meantime.
    """
    content = (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
    try:
        write_durably(folder / MANIFEST, lambda file: file.writelines([content]), only_new=True)
    except FileExistsError:
        check_same(folder, read_manifest(folder) or {}, manifest)


def clear(folder: Path, *, keep: Path | None) -> None:
    """Delete the manifest, shards and joined files of an earlier run, except `keep`.

    Raises:
        InvalidInputError: A file cannot be removed.
    """
    try:
        # The manifest goes first: it stops a run that still writes, and without it no shard counts as finished.
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in list(folder.glob("*")):
            if file != keep and (_SHARD.fullmatch(file.name) or _JOINED.fullmatch(file.name)):
                file.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{str(folder)!r} cannot be cleared: {error.strerror or error}.") from error


def clear_unfinished(folder: Path) -> None:
    """Delete the temporary files of a run that was killed. A run that is still writing one writes it again."""
    for file in list(folder.glob("*")):
        if _UNFINISHED.fullmatch(file.name):
            with suppress(OSError):  # on Windows an open file cannot be deleted
                file.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
