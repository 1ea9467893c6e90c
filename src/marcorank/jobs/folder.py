"""The folder that ranked shards are written to: what is finished there, and of which run.

A shard is written under another name and takes its own when it is whole and on disk, so what has its name is
finished. `_marcorank.json` says which input and settings the shards are of; a run with others is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from marcorank._files import json_line, write_durably
from marcorank._models.fingerprint import advice, content_differences, differences
from marcorank.collections import parquet
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OutputFormat = Literal["jsonl", "parquet"]

MANIFEST = "_marcorank.json"
_SHARD = re.compile(r"part-\d{5,}\.(jsonl|parquet)")
_UNFINISHED = re.compile(r"\.(part-\d{5,}\.(jsonl|parquet)|_marcorank\.json|_candidates-\w+\.jsonl)\.\w+\.tmp")
_JOINED = re.compile(r"_candidates-\w+\.jsonl")
_CHUNK_BYTES = 1 << 20
_RECOVERY_HINT = (
    "Write to another folder, or start anew with `overwrite` (--overwrite), which removes the shards that are there."
)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of ranked shards, as the run knows it that writes there.

    Attributes:
        path: Of the folder, absolute.
        manifest_digest: Of the manifest's bytes; another one means that another run took the folder.
        output_format: Of the shards.
        columns: Of Parquet; see `parquet.answer_columns`.
    """

    path: Path
    manifest_digest: str
    output_format: OutputFormat
    columns: bytes | None

    def shard_path(self, number: int) -> Path:
        """Return the path of a shard that is finished."""
        return self.path / f"part-{number:05d}.{self.output_format}"

    def is_finished(self, number: int, rows: int) -> bool:
        """Whether a shard is there with all its rows."""
        path = self.shard_path(number)
        try:
            if self.output_format == "parquet":
                return parquet.count_rows(path) == rows
            return _ends_after(path, rows)
        except (OSError, InvalidInputError):
            return False

    def write_shard(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write a shard; it takes its name when it is whole and on disk.

        Raises:
            InvalidInputError: The folder cannot be written, or another run took it.
        """

        def fill(file: BinaryIO) -> None:
            if self.columns is not None:
                parquet.write_rows(file, rows, self.columns)
            else:
                file.writelines(json_line(row).encode() for row in rows)

        write_durably(self.shard_path(number), fill, before_naming=self._check_mine)

    def _check_mine(self) -> None:
        try:
            found = _digest((self.path / MANIFEST).read_bytes())
        except FileNotFoundError:
            found = ""
        if found != self.manifest_digest:
            raise InvalidInputError(
                f"{str(self.path)!r} was taken by another run while this one wrote to it; this one ends here. Let "
                "each run have a folder of its own."
            )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what the manifest of a folder says; None if there is none.

    Raises:
        InvalidInputError: It cannot be read, there are shards without one, or the path is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{str(folder)!r} is a file; expected a folder to write to, or a path that is free.")
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        shard = next((file.name for file in _files(folder) if _SHARD.fullmatch(file.name)), None)
        if shard is None:
            return None
        raise InvalidInputError(
            f"{str(folder)!r} holds {shard}, and no {MANIFEST} that says what it is of. {_RECOVERY_HINT}"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{str(path)!r} cannot be read: {error}. {_RECOVERY_HINT}") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{str(path)!r} is not a manifest of marcorank. {_RECOVERY_HINT}")
    return found


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a folder was begun with the same input and settings.

    Raises:
        InvalidInputError: Something differs.
    """
    there, here = _settings(found), _settings(wanted)
    different = differences(there, here) + content_differences("input", _input(found), _input(wanted))
    if different:
        more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
        ways_out = " ".join(filter(None, (advice(there, here), _RECOVERY_HINT)))
        raise InvalidInputError(
            f"{str(folder)!r} was begun with something else: {'; '.join(different[:4])}{more}. {ways_out}"
        )


def begin(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a new run.

    Raises:
        InvalidInputError: The folder cannot be written, or another run has begun there meanwhile, with something else.
    """
    content = (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
    try:
        write_durably(folder / MANIFEST, lambda file: _write(file, content), only_new=True)
    except FileExistsError:
        check_same(folder, read_manifest(folder) or {}, manifest)


def manifest_digest(folder: Path) -> str:
    """Return the digest of the manifest of a folder."""
    return _digest((folder / MANIFEST).read_bytes())


def start_anew(folder: Path, *, keep: Path | None) -> None:
    """Remove what an earlier run wrote, and nothing else.

    Args:
        folder: To clear.
        keep: A file that stays.

    Raises:
        InvalidInputError: A file cannot be removed.
    """
    try:
        # The manifest goes first: whoever still writes sees it, and without one the shards that are left do not count.
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in _files(folder):
            if file != keep and (_SHARD.fullmatch(file.name) or _JOINED.fullmatch(file.name)):
                file.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{str(folder)!r} cannot be cleared: {error.strerror or error}.") from error


def clear_unfinished(folder: Path) -> None:
    """Remove what a run that was killed had begun to write. A run that still writes it notices, and writes again."""
    for file in _files(folder):
        if _UNFINISHED.fullmatch(file.name):
            with suppress(OSError):  # on Windows who writes a file keeps it
                file.unlink(missing_ok=True)


def _ends_after(path: Path, rows: int) -> bool:
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines == rows and last == b"\n"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of the scorer and the settings of the job in one."""
    scorer, settings = (manifest.get(name) for name in ("scorer", "settings"))
    return {
        "marcorank": manifest.get("marcorank"),
        **(scorer if isinstance(scorer, dict) else {}),
        **(settings if isinstance(settings, dict) else {}),
    }


def _input(manifest: Mapping[str, Any]) -> dict[str, tuple[object, ...]]:
    """Return the size and digest of each input file, by its name and position; folders may have moved."""
    files = manifest.get("input")
    known = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    return {
        f"{Path(str(file.get('path'))).name!r} (file {number})": (file.get("bytes"), file.get("sha256"))
        for number, file in enumerate(known, 1)
    }
