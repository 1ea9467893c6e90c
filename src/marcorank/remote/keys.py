"""The key that a server wants: where it comes from, whom it is sent to, and that nothing else shows it."""

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
    """A key that shows itself to nobody but the server."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def sign(self, headers: MutableMapping[str, str]) -> None:
        """Put the key into the headers of a request."""
        headers[_HEADER] = f"Bearer {self._text}"

    def hide(self, text: str) -> str:
        """Return a text of the server without the key, however it may be spelled there."""
        for spelling in (self._text, quote(self._text, safe=""), html.escape(self._text), json.dumps(self._text)[1:-1]):
            text = text.replace(spelling, "[key]")
        return text

    def __repr__(self) -> str:
        return "Key(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A key is not pickled.")


def forget(headers: MutableMapping[str, str]) -> None:
    """Take the key out of the headers of a request that was sent: errors keep requests."""
    headers.pop(_HEADER, None)


def given_key(text: object) -> Key | None:
    """Return the key that a caller passed.

    Raises:
        InvalidInputError: It cannot be sent as it is. The message does not hold it.
    """
    return None if text is None else _checked(text, "`api_key`")


def key_for(address: Address) -> Key | None:
    """Return the key that the environment holds for a server: the vendor's for its own host, or ours for any.

    Raises:
        InvalidInputError: It cannot be sent as it is. The message does not hold it.
    """
    names = (*address.dialect.key_names, KEY_VARIABLE) if address.is_of_vendor else (KEY_VARIABLE,)
    for name in names:
        if text := os.environ.get(name):
            return _checked(text, f"The variable {name} of the environment")
    return None


def _checked(text: object, where: str) -> Key:
    if not isinstance(text, str):
        raise InvalidInputError(f"{where} is of type {type(text).__name__}; expected None or a str.")
    if not text.strip():
        raise InvalidInputError(f"{where} is blank; expected the key, or leave it out where the server needs none.")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidInputError(
            f"{where} holds a space, a line break or a character that HTTP cannot carry; expected the bare key."
        )
    return Key(text)
