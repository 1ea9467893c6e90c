"""Texts of queries and passages by their ids: BEIR's JSONL, and files of an id, a tab and a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._files import json_object, numbered_lines
from marcorank._text import brief
from marcorank.collections.trec import ID_RULE, is_id
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Container, Iterator

_COLUMN_ENDINGS = (".tsv", ".txt")


def read_texts(
    path: str | os.PathLike[str], *, wanted: Container[str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Read texts by their ids, in the order of the file, and say what was odd in it.

    A row of JSONL has an `_id` or `id`, a `text`, and may have a `title`, which is put in front with a space. A file
    that is named .tsv or .txt has an id, a tab and a text in each line.

    Args:
        path: Of the file; it is unpacked if it is named .gz.
        wanted: Ids of the texts to keep; None for all.

    Raises:
        InvalidInputError: The file cannot be read, is empty, a line of it is not a text with its id, or an id has two
            texts.
    """
    texts: dict[str, str] = {}
    repeated = number = 0
    for number, identifier, text in _identified_texts(path):
        if wanted is not None and identifier not in wanted:
            continue
        if texts.get(identifier, text) != text:
            raise InvalidInputError(
                f"{str(path)!r}, line {number}: the id {identifier!r} stands in an earlier line already, with another "
                "text. Each needs its own."
            )
        repeated += identifier in texts
        texts[identifier] = text
    if not number:
        raise InvalidInputError(f"{str(path)!r} is empty; expected a text with its id in each line.")
    return texts, [f"{str(path)!r}: texts repeated under the same id, counted once: {repeated}."] if repeated else []


def id_of(row: dict[str, Any], names: tuple[str, ...], location: str) -> str | None:
    """Return the id of an object of JSON, from the first field that it has; None if it has none of them.

    Raises:
        InvalidInputError: The field holds no id.
    """
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        return None
    value = row[name]
    identifier = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not is_id(identifier):
        raise InvalidInputError(f"{location}: {name!r} is {brief(value)}; expected {ID_RULE}.")
    return str(identifier)


def text_of(row: dict[str, Any], name: str, location: str) -> str:
    """Return the text that a field of an object of JSON holds.

    Raises:
        InvalidInputError: There is no such field, or it holds something else.
    """
    if name not in row:
        found = f"the fields {', '.join(map(repr, row))}" if row else "no fields"
        raise InvalidInputError(f"{location} has {found}; expected {name!r} among them.")
    text = row[name]
    if not isinstance(text, str):
        raise InvalidInputError(f"{location}: {name!r} is {brief(text)}; expected a text.")
    return text


def _identified_texts(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, str]]:
    shown = repr(str(path))
    in_columns = Path(str(path).removesuffix(".gz")).suffix.lower() in _COLUMN_ENDINGS
    for number, line in numbered_lines(path):
        if line.strip():
            location = f"{shown}, line {number}"
            yield (number, *(_of_columns(line, location) if in_columns else _of_json(line, location)))


def _of_json(line: str, location: str) -> tuple[str, str]:
    row = json_object(line, location, expected="an object with an id and a text")
    identifier = id_of(row, ("_id", "id"), location)
    if identifier is None:
        found = f"the fields {', '.join(map(repr, row))}" if row else "no fields"
        raise InvalidInputError(f"{location} has {found}; expected '_id' or 'id' among them.")
    text = text_of(row, "text", location)
    if row.get("title") is None:
        return identifier, text
    title = text_of(row, "title", location)
    return identifier, f"{title} {text}".strip() if title.strip() else text


def _of_columns(line: str, location: str) -> tuple[str, str]:
    identifier, tab, text = line.partition("\t")
    identifier = identifier.strip(" ")
    if not tab or not is_id(identifier):
        raise InvalidInputError(f"{location} is {brief(line)}; expected an id, a tab and a text.")
    return identifier, text
