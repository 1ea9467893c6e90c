"""Texts of queries and passages by their ids: BEIR's JSONL, and files of an id, a tab and a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marcorank._files import numbered_lines, without_compression
from marcorank._text import brief, first_few, quoted
from marcorank.collections.jsonl import id_of, missing_field, read_objects, text_of
from marcorank.collections.trec import is_id
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Container, Iterator
    from pathlib import Path


def read_texts(
    path: str | os.PathLike[str], *, wanted: Container[str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Read texts by their ids, in the order of the file, and return notes about repeated ones.

    A row of JSONL has an `_id` or `id`, a `text`, and optionally a `title`, which is put before the text. Each line of
    a file named .tsv or .txt has an id, a tab and a text.

    Args:
        path: The file; it may be compressed.
        wanted: Ids of the texts to keep; None for all.

    Raises:
        InvalidInputError: The file cannot be read, is empty, a line is not a text with its id, or an id has two texts.
    """
    texts: dict[str, str] = {}
    repeated = 0
    location = None
    in_columns = without_compression(str(path).lower()).endswith((".tsv", ".txt"))
    for location, identifier, text in _texts_of_columns(path) if in_columns else _texts_of_jsonl(path):
        if wanted is not None and identifier not in wanted:
            continue
        if texts.get(identifier, text) != text:
            raise InvalidInputError(
                f"{location}: the id {quoted(identifier)} is in an earlier row with another text. Each text needs an "
                "id of its own."
            )
        repeated += identifier in texts
        texts[identifier] = text
    if location is None:
        raise InvalidInputError(f"{str(path)!r} is empty; expected a text with its id in each line.")
    return texts, [f"{str(path)!r}: texts repeated under the same id, counted once: {repeated}."] if repeated else []


def check_texts(texts: Container[str], ids: Collection[str], what: str, path: Path) -> None:
    """Check that a file had the text of each id; `what` names the ids, such as "passages of the run".

    Raises:
        InvalidInputError: A text is missing.
    """
    missing = [identifier for identifier in ids if identifier not in texts]
    if missing:
        raise InvalidInputError(
            f"{str(path)!r} has no text for {len(missing)} of the {len(ids)} {what} ({first_few(missing)}); expected "
            "the text of each. Do the files belong together?"
        )


def _texts_of_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, str]]:
    for _, location, row in read_objects(path, expected="an object with an id and a text"):
        identifier = id_of(row, ("_id", "id"), location)
        if identifier is None:
            raise missing_field(row, ("_id", "id"), location)
        text = text_of(row, ("text",), location)
        title = "" if row.get("title") is None else text_of(row, ("title",), location)
        yield location, identifier, f"{title} {text}".strip() if title.strip() else text


def _texts_of_columns(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, str]]:
    for number, line in numbered_lines(path):
        if line.strip():
            location = f"{str(path)!r}, line {number}"
            identifier, tab, text = line.partition("\t")
            identifier = identifier.strip(" ")
            if not tab or not is_id(identifier):
                raise InvalidInputError(f"{location} is {brief(line)}; expected an id, a tab and a text.")
            yield location, identifier, text
