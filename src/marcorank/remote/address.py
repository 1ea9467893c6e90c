"""Parses server URLs: `dialect+http://host:port/prefix#model`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from marcorank._text import quoted
from marcorank.errors import InvalidInputError
from marcorank.remote.dialects import DIALECTS

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from marcorank.remote.dialects import Dialect

_SCHEMES = ("http", "https")
_MAX_CHARS = 400
_SCHEME = re.compile(r"(?:(?P<dialect>[\w.-]+)\+)?(?P<scheme>[a-zA-Z][\w.-]*)://")
_HOST = re.compile(r"([\w-]{1,63}\.)*[\w-]{1,63}\.?|[0-9a-f:.]*:[0-9a-f:.]*", re.ASCII)
# The endpoint of vLLM, TEI and all vendors, and its other name in llama.cpp: vendors document addresses with it.
_ENDPOINTS = ("/rerank", "/reranking")
_VERSIONS = ("/v1", "/v2")


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server and its dialect.

    Attributes:
        dialect: API that the server speaks.
        url: Base URL without a trailing slash.
        model: Name of the model to request; None for the one that the server serves.
    """

    dialect: Dialect
    url: str
    model: str | None

    @property
    def name(self) -> str:
        """Name of the model, or the URL of the server if no model is set."""
        return self.model or self.url

    @property
    def endpoint(self) -> str:
        """URL of the endpoint. A base URL that ends in a version, such as `/v1`, or in the endpoint itself decides."""
        path = urlsplit(self.url).path
        if path.endswith(_ENDPOINTS):
            return self.url
        name = self.dialect.path.rpartition("/")[2]
        return f"{self.url}/{name}" if path.endswith(_VERSIONS) else self.url + self.dialect.path

    @property
    def shorter(self) -> Address | None:
        """The server at a shorter base URL, if its endpoint is another one: without a version or the last folder."""
        path = urlsplit(self.url).path
        base = path
        for ending in _ENDPOINTS:
            base = base.removesuffix(ending)
        if base == path or base.endswith(_VERSIONS):
            base = base.rpartition("/")[0]
        shorter = replace(self, url=self.url.removesuffix(path) + base)
        return None if shorter.endpoint == self.endpoint else shorter

    @property
    def host(self) -> str:
        """Host name or IP address, in lower case."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def is_vendor_host(self) -> bool:
        """Whether this is the vendor's own server, reached over HTTPS."""
        return self.url.startswith("https:") and self.host in self.dialect.vendor_hosts


def is_remote(name: str) -> bool:
    """Whether a model name is the URL of a server: `http://...` or `dialect+...://...`."""
    match = _SCHEME.match(name)
    return match is not None and (match["scheme"].lower() in _SCHEMES or (match["dialect"] or "").lower() in DIALECTS)


def parse_address(
    url: object, *, dialect: object = None, model: str | None = None, name: str = "url", key: str = "api_key"
) -> Address:
    """Parse the URL of a server.

    Args:
        url: `"http://host:8080"` with a `dialect`, or `"tei+http://host:8080"`. A base path is kept. The
            fragment is the name of the model: `"infinity+http://host:7997#cross-encoder/ms-marco-MiniLM-L6-v2"`.
        dialect: API of the server; None if it is part of the URL.
        model: Name of the model; None if it is part of the URL or the server has only one.
        name: The argument that holds the URL, for messages; where it is not `url`, there is no other for the rest.
        key: The argument for the key, for messages.

    Raises:
        InvalidInputError: The URL is invalid or contradicts the other arguments. No message repeats a URL that may
            contain a password.
    """
    if not isinstance(url, str):
        raise InvalidInputError(
            f"`{name}` is of type {type(url).__name__}; expected a str such as 'tei+http://host:8080'."
        )
    for argument, text in ((name, url), ("model", model)):
        # They are part of every message about the server.
        if text is not None and len(text) > _MAX_CHARS:
            raise InvalidInputError(f"`{argument}` has {len(text):,} characters; expected at most {_MAX_CHARS}.")
    match = _SCHEME.match(url)
    if match is None:
        raise InvalidInputError(f"`{name}` has no scheme; expected a URL such as 'tei+http://host:8080'.")
    scheme = match["scheme"].lower()
    if scheme not in _SCHEMES:
        raise InvalidInputError(f"`{name}` has the scheme {quoted(match['scheme'])}; expected http or https.")
    parts = _split(url[match.start("scheme") :], name, key)
    kind = _find_dialect(match["dialect"], dialect, host=parts.netloc, name=name)
    if parts.fragment and model is not None and parts.fragment != model:
        raise InvalidInputError(
            f"`{name}` names the model {quoted(parts.fragment)} and `model` is {quoted(model)}; name it once."
        )
    model = parts.fragment or model
    if kind.model == "required" and model is None:
        if name != "url":
            raise InvalidInputError(
                f"`{name}` has no name of a model, which a {kind.name} server needs; append it to the URL after a #."
            )
        raise InvalidInputError(
            f"`model` is None, but a {kind.name} server needs a model name; pass `model`, or append it to the "
            "URL after a #."
        )
    return Address(kind, f"{scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}", model)


def _split(url: str, name: str, key: str) -> SplitResult:
    invalid_host = f"`{name}` has no valid host and port; expected a URL such as 'tei+http://host:8080'."
    # urlsplit silently drops some of these.
    if any(char.isspace() or not char.isprintable() or char == "\\" for char in url):
        raise InvalidInputError(f"`{name}` contains a space, a backslash or a control character; expected a plain URL.")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInputError(invalid_host) from None
    if "@" in parts.netloc:
        raise InvalidInputError(
            f"`{name}` contains a user name or password; remove them and pass `{key}` or set MARCORANK_API_KEY."
        )
    if parts.query:
        raise InvalidInputError(
            f"`{name}` has a query string; remove it. Pass a key as `{key}` or set MARCORANK_API_KEY."
        )
    try:
        valid = parts.port != 0 and _HOST.fullmatch(parts.hostname or "") is not None
    except ValueError:
        valid = False
    if not valid:
        raise InvalidInputError(invalid_host)
    return parts


def _find_dialect(prefix: str | None, dialect: object, *, host: str, name: str) -> Dialect:
    known = ", ".join(DIALECTS)
    found = []
    for given, what in ((prefix, f"`{name}` begins with"), (dialect, "`dialect` is")):
        if given is not None:
            if not isinstance(given, str) or given.lower() not in DIALECTS:
                raise InvalidInputError(f"{what} {quoted(given)}; expected one of {known}.")
            found.append(DIALECTS[given.lower()])
    if not found:
        otherwise = ", or pass `dialect`" if name == "url" else ""
        raise InvalidInputError(
            f"`{name}` does not name the API of the server at {host}; prefix it with one of {known}, as in "
            f"'tei+http://{host}'{otherwise}."
        )
    if found[0] is not found[-1]:
        raise InvalidInputError(
            f"`{name}` begins with {quoted(prefix)} but `dialect` is {quoted(dialect)}; pass only one of them."
        )
    return found[0]
