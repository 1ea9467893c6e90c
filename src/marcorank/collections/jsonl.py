"""JSONL: read the objects of a file, and check the values of their fields.

`location` is the file and line for messages, `names` are the names of fields.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from marcorank._files import json_object, not_json, numbered_lines
from marcorank._text import brief, first_few, quoted, quoted_path
from marcorank.collections.trec import ID_RULE, is_id
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

# ASCII whitespace; a line of any other whitespace is invalid JSON, which is an error.
_WHITESPACE = " \t\n\r\x0b\x0c"
_FILLED = re.compile(rf"[^{_WHITESPACE}]")
# First lines of a formatted array or object.
_OPENINGS = ("[", "{", "[{")


def read_objects(path: str | os.PathLike[str], *, expected: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the objects of a file of JSONL, or of a JSON array, as `objects_of` does.

    Raises:
        InvalidInputError: The file cannot be read, or a line is not an object.
    """
    yield from objects_of(numbered_lines(path), quoted_path(path), expected=expected)


def read_lines(
    path: str | os.PathLike[str], *, expected: str, offset: int = 0, first: int = 1
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the objects of a file with one in each line, as `objects_of` does.

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
            if line.strip(_WHITESPACE) in _OPENINGS or line.lstrip().startswith("[{"):
                raise InvalidInputError(
                    f"{location} is {quoted(line)}, as in formatted JSON or an array; expected {expected} in each "
                    "line, as `jq -c '.[]'` writes an array."
                )
            yield number, location, json_object(line, location, expected=expected)


def objects_of(
    lines: Iterator[tuple[int, str]], shown: str, *, expected: str, text_field: str | None = None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield objects, each with its number and with its location for messages; skip blank lines.

    Each line is an object, and its number is that of the line. A source that begins with an array, or with an object
    over several lines, is read as a whole, and its objects count from 1.

    Args:
        lines: The lines, with their numbers.
        shown: Name of the source, for messages.
        expected: What each line should hold, for messages.
        text_field: Field for the texts of an array of texts, which becomes one of objects; None if it is an error.

    Raises:
        InvalidInputError: A line is not an object.
    """
    filled = ((number, line) for number, line in lines if line.strip(_WHITESPACE))
    for index, (number, line) in enumerate(filled):
        if not index and (line.strip(_WHITESPACE) in _OPENINGS or line.lstrip(_WHITESPACE).startswith("[")):
            # Blank lines count too, for the positions of errors.
            yield from _objects_of_text(number, [line, *(text for _, text in lines)], shown, expected, text_field)
            return
        location = f"{shown}, line {number}"
        yield number, location, json_object(line, location, expected=expected)


def _objects_of_text(
    first: int, lines: Sequence[str], shown: str, expected: str, text_field: str | None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    text = "\n".join(lines)
    end = count = 0
    line = first
    while found := _FILLED.search(text, end):
        start = found.start()
        line += text.count("\n", end, start)
        location = f"{shown}, line {line}"
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise not_json(f"{shown}, line {first + error.lineno - 1}", error) from error
        except (ValueError, RecursionError) as error:
            raise not_json(location, error) from error
        line += text.count("\n", start, end)
        rows = value if isinstance(value, list) else [value]
        if text_field is not None:
            rows = [{text_field: row} if isinstance(row, str) else row for row in rows]
        if not rows or not isinstance(rows[0], dict):
            raise InvalidInputError(f"{location} is {brief(value)}; expected {expected}.")
        for row in rows:
            count += 1
            if not isinstance(row, dict):
                raise InvalidInputError(f"{shown}, row {count} is {brief(row)}; expected {expected}.")
            yield count, f"{shown}, row {count}", row


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
