"""Names of servers: `dialect+http://host:port/prefix#model`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from marcorank.errors import InvalidInputError
from marcorank.remote.dialects import DIALECTS

if TYPE_CHECKING:
    from marcorank.remote.dialects import Dialect

_SCHEMES = ("http", "https")
_SCHEME = re.compile(r"(?:(?P<dialect>[\w.-]+)\+)?(?P<scheme>[a-zA-Z][\w.-]*)://")
_HOST = re.compile(r"([\w-]{1,63}\.)*[\w-]{1,63}\.?|[0-9a-f:.]*:[0-9a-f:.]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and how it is spoken to.

    Attributes:
        dialect: Its kind.
        url: Its base, without a slash at the end.
        model: Name of the model to ask for; None for the one that it serves.
    """

    dialect: Dialect
    url: str
    model: str | None

    @property
    def endpoint(self) -> str:
        """The URL that is asked. A base that ends as the path begins, such as `/v1`, is not doubled."""
        first = "/" + self.dialect.path.split("/")[1]
        path = self.dialect.path
        return self.url + (path.removeprefix(first) if path != first and self.url.endswith(first) else path)

    @property
    def host(self) -> str:
        """Name or number of the host, in small letters."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def is_of_vendor(self) -> bool:
        """Whether this is the vendor's own server, reached in a way that nobody can listen to."""
        return self.url.startswith("https:") and self.host in self.dialect.own_hosts


@dataclass(frozen=True, slots=True)
class Server:
    """A server and how patient one is with it.

    Attributes:
        address: Where it is.
        timeout_s: Most seconds that one attempt may take, from connecting to the last byte of the answer.
        max_attempts: How often a question is asked at most.
    """

    address: Address
    timeout_s: float
    max_attempts: int


def is_remote(name: str) -> bool:
    """Whether a model's name is meant as the URL of a server: `http://...` or `dialect+...://...`."""
    found = _SCHEME.match(name)
    if found is None:
        return False
    dialect, scheme = (found["dialect"] or "").lower(), found["scheme"].lower()
    return scheme in _SCHEMES or dialect in DIALECTS


def parse_address(url: object, *, dialect: object = None, model: str | None = None) -> Address:
    """Return the server that a URL means.

    Args:
        url: `"http://host:8080"` with a `dialect`, or `"tei+http://host:8080"`. A base path is kept, and the fragment
            names the model: `"infinity+http://host:7997#cross-encoder/ms-marco-MiniLM-L6-v2"`.
        dialect: Kind of the server; None if the URL says it.
        model: Name of the model; None if the URL says it or the server has only one.

    Raises:
        InvalidInputError: The URL cannot be used, or says something else than the other arguments. No message
            repeats a URL that may hold a password.
    """
    if not isinstance(url, str):
        raise InvalidInputError(
            f"`url` is of type {type(url).__name__}; expected a str such as 'tei+http://host:8080'."
        )
    prefix, scheme = _checked_scheme(url)
    parts = _checked_parts(url[len(prefix) + 1 if prefix else 0 :])
    kind = _checked_dialect(prefix, dialect, host=parts.netloc)
    if parts.fragment and model is not None and parts.fragment != model:
        raise InvalidInputError(f"`url` names the model {parts.fragment!r} and `model` is {model!r}; name it once.")
    model = parts.fragment or model
    if kind.needs_model and model is None:
        raise InvalidInputError(
            f"`model` is None; a {kind.name} server has to be told which model to use, as `model` or behind a # in "
            "the URL."
        )
    return Address(kind, f"{scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}", model)


def _checked_scheme(url: str) -> tuple[str, str]:
    found = _SCHEME.match(url)
    if found is None:
        raise InvalidInputError("`url` has no scheme; expected a URL such as 'tei+http://host:8080'.")
    if found["scheme"].lower() not in _SCHEMES:
        raise InvalidInputError(f"`url` has the scheme {found['scheme']!r}; expected http or https.")
    return found["dialect"] or "", found["scheme"].lower()


def _checked_parts(url: str) -> SplitResult:
    # urlsplit drops some of these without a word.
    if any(char.isspace() or not char.isprintable() or char == "\\" for char in url):
        raise InvalidInputError("`url` holds a space, a backslash or a control character; expected a plain URL.")
    try:
        parts = urlsplit(url)
        # It raises where the port is no port.
        usable = parts.port != 0 and _HOST.fullmatch(parts.hostname or "") is not None
    except ValueError:
        usable = False
        parts = SplitResult("", "", "", "", "")
    if "@" in parts.netloc:
        raise InvalidInputError(
            "`url` holds a user name or password; leave them out and pass `api_key` or set MARCORANK_API_KEY."
        )
    if parts.query:
        raise InvalidInputError(
            "`url` has a query string; leave it out. A key belongs in `api_key` or MARCORANK_API_KEY."
        )
    if not usable:
        raise InvalidInputError("`url` has no usable host and port; expected a URL such as 'tei+http://host:8080'.")
    return parts


def _checked_dialect(prefix: str, dialect: object, *, host: str) -> Dialect:
    known = ", ".join(DIALECTS)
    if not prefix and dialect is None:
        raise InvalidInputError(
            f"`url` does not say what kind of server answers at {host}; put one of {known} before it, as in "
            f"'tei+http://{host}', or pass `dialect`."
        )
    named: set[str] = set()
    for name in (prefix or None, dialect):
        if name is not None:
            if not isinstance(name, str) or name.lower() not in DIALECTS:
                raise InvalidInputError(f"`dialect` is {name!r}; expected one of {known}.")
            named.add(name.lower())
    if len(named) > 1:
        raise InvalidInputError(f"`url` begins with {prefix!r} and `dialect` is {dialect!r}; expected one of them.")
    return DIALECTS[named.pop()]
