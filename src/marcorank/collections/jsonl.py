"""JSONL: read the objects of a file, and check the values of their fields.

`location` is the file and line for messages, `names` are the names of fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marcorank._files import json_object, numbered_lines
from marcorank._text import brief, first_few, quoted
from marcorank.collections.trec import ID_RULE, is_id
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

# ASCII whitespace; a line of any other whitespace is invalid JSON, which is an error.
_WHITESPACE = " \t\n\r\x0b\x0c"


def read_objects(
    path: str | os.PathLike[str], *, expected: str, offset: int = 0, first: int = 1
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the objects of a file, each with its line number and with its location for messages; skip blank lines.

    Args:
        path: File to read.
        expected: What each line should hold, for messages.
        offset: Byte at which the first line begins, in the decompressed file.
        first: Number of that line.

    Raises:
        InvalidInputError: The file cannot be read, or a line is not an object.
    """
    for number, line in numbered_lines(path, offset=offset, first=first):
        if line.strip(_WHITESPACE):
            location = f"{str(path)!r}, line {number}"
            yield number, location, json_object(line, location, expected=expected)


def check_fields(row: dict[str, Any], names: Sequence[str], location: str, *, example: str) -> None:
    """Check that an object has all of these fields.

    Raises:
        InvalidInputError: A field is missing.
    """
    missing = [name for name in names if name not in row]
    if missing:
        raise InvalidInputError(
            f"{location} has no field {' and no field '.join(map(repr, missing))}; expected a row such as {example}."
        )


def missing_field(row: dict[str, Any], names: Sequence[str], location: str, *, hint: str = "") -> InvalidInputError:
    """Return the error for an object that has none of these fields."""
    found = f"the fields {first_few(row, 10)}" if row else "no fields"
    return InvalidInputError(f"{location} has {found}; expected {' or '.join(map(quoted, names))}.{hint}")


def text_of(row: dict[str, Any], names: Sequence[str], location: str, *, hint: str = "") -> str:
    """Return the text in the first of these fields that an object has.

    Raises:
        InvalidInputError: The object has none of the fields, or the value is not a text.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        raise missing_field(row, names, location, hint=hint)
    text = row[name]
    if not isinstance(text, str):
        raise InvalidInputError(f"{location}: {quoted(name)} is {brief(text)}; expected a text.")
    return text


def id_of(row: dict[str, Any], names: Sequence[str], location: str) -> str | None:
    """Return the id in the first of these fields that an object has; None if it has none of them.

    Raises:
        InvalidInputError: The value is not an id.
    """
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        return None
    value = row[name]
    identifier = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not is_id(identifier):
        raise InvalidInputError(f"{location}: {quoted(name)} is {brief(value)}; expected {ID_RULE}.")
    return str(identifier)
