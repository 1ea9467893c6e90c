"""API keys: where they come from, which server they are sent to, and how they are kept secret."""

from __future__ import annotations

import html
import json
import os
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from marcorank.remote.address import Address

KEY_VARIABLE = "MARCORANK_API_KEY"


class Key:
    """An API key that appears nowhere but in requests to the server."""

    __slots__ = ("_text",)

    def __init__(self, text: object, *, source: str = "`api_key`") -> None:
        """Check the key.

        Args:
            text: The key.
            source: Where it comes from, for messages.

        Raises:
            InvalidInputError: The key cannot be sent. The message does not contain it.
        """
        if not isinstance(text, str):
            raise InvalidInputError(f"{source} is of type {type(text).__name__}; expected None or a str.")
        if not text.strip():
            raise InvalidInputError(f"{source} is blank; expected a key. Leave it out if the server needs none.")
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise InvalidInputError(
                f"{source} contains a space, a line break or a character that is not allowed in an HTTP header; "
                "expected only the key."
            )
        self._text = text

    @property
    def authorization(self) -> str:
        """The value of the Authorization header."""
        return f"Bearer {self._text}"

    def redact(self, text: str) -> str:
        """Replace the key in a text from the server, also in its escaped forms."""
        for spelling in (self._text, quote(self._text, safe=""), html.escape(self._text), json.dumps(self._text)[1:-1]):
            text = text.replace(spelling, "[key]")
        return text

    def __repr__(self) -> str:
        return "Key(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("An API key cannot be pickled.")


def key_variables(address: Address) -> tuple[str, ...]:
    """Return the environment variables that may hold the key for a server: the vendor's only for its own host."""
    return (*address.dialect.key_names, KEY_VARIABLE) if address.is_vendor_host else (KEY_VARIABLE,)


def key_from_environment(address: Address) -> Key | None:
    """Return the key for a server from the environment.

    Raises:
        InvalidInputError: The key cannot be sent. The message does not contain it.
    """
    for name in key_variables(address):
        if text := os.environ.get(name):
            return Key(text, source=f"The environment variable {name}")
    return None
