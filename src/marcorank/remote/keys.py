"""API keys: where they come from, which server they are sent to, and how they are kept secret."""

from __future__ import annotations

import html
import json
import os
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from marcorank.remote.address import Address

KEY_VARIABLE = "MARCORANK_API_KEY"
_HEADER = "Authorization"


class Key:
    """An API key that appears nowhere but in requests to the server."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def sign(self, headers: MutableMapping[str, str]) -> None:
        """Add the key to the headers of a request."""
        headers[_HEADER] = f"Bearer {self._text}"

    def redact(self, text: str) -> str:
        """Replace the key in a text from the server, also in its escaped forms."""
        for spelling in (self._text, quote(self._text, safe=""), html.escape(self._text), json.dumps(self._text)[1:-1]):
            text = text.replace(spelling, "[key]")
        return text

    def __repr__(self) -> str:
        return "Key(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("An API key cannot be pickled.")


def remove_key(headers: MutableMapping[str, str]) -> None:
    """Remove the key from the headers of a request after sending it: errors keep a reference to the request."""
    headers.pop(_HEADER, None)


def key_argument(text: object) -> Key | None:
    """Return the key that was passed as `api_key`.

    Raises:
        InvalidInputError: The key cannot be sent. The message does not contain it.
    """
    return None if text is None else _checked(text, "`api_key`")


def key_from_environment(address: Address) -> Key | None:
    """Return the key for a server from the environment: the vendor's for its own host, or MARCORANK_API_KEY.

    Raises:
        InvalidInputError: The key cannot be sent. The message does not contain it.
    """
    names = (*address.dialect.key_names, KEY_VARIABLE) if address.is_vendor_host else (KEY_VARIABLE,)
    for name in names:
        if text := os.environ.get(name):
            return _checked(text, f"The environment variable {name}")
    return None


def _checked(text: object, where: str) -> Key:
    if not isinstance(text, str):
        raise InvalidInputError(f"{where} is of type {type(text).__name__}; expected None or a str.")
    if not text.strip():
        raise InvalidInputError(f"{where} is blank; expected a key. Leave it out if the server needs none.")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidInputError(
            f"{where} contains a space, a line break or a character that is not allowed in an HTTP header; expected "
            "only the key."
        )
    return Key(text)
