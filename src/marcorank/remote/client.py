"""Sends one request to a server, with retries, and reads the response."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx

from marcorank.errors import RemoteError, RemoteProtocolError, RemoteStatusError, RemoteTimeoutError
from marcorank.remote.keys import KEY_VARIABLE, remove_key
from marcorank.remote.responses import excerpt, read_scores, server_message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from marcorank._inference.scorer import PassageScores
    from marcorank.remote.address import Address, Server
    from marcorank.remote.connection import Pool
    from marcorank.remote.keys import Key

# Temporary failures of a server, or of a proxy in front of it.
_TEMPORARY_STATUSES = {429, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 3
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 4.0
# A longer Retry-After is reported as an error instead of waited for.
_MAX_RETRY_AFTER_S = 30.0
# Some servers return the passages, with every character escaped.
_MIN_RESPONSE_LIMIT_BYTES = 1 << 20
_RESPONSE_BYTES_PER_REQUEST_BYTE = 8
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    content: bytes
    retry_after: str | None


def make_client(address: Address, parallel: int) -> httpx.AsyncClient:
    """Make the HTTP client for a server; it uses the proxies from the environment, except for this machine.

    Raises:
        RemoteError: The proxy or certificate settings in the environment are invalid.
    """
    try:
        return httpx.AsyncClient(
            # `request_scores` limits the time of each attempt as a whole and the number of connections.
            timeout=None,  # noqa: S113
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=parallel),
            # A compressed response could expand without limit, and responses are short anyway.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "marcorank"},
            mounts={f"all://{_bracketed(address.host)}": None} if address.is_loopback else None,
        )
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        # The message of the error may contain the password of a proxy.
        raise RemoteError(
            f"Cannot create an HTTP client for {address.url} ({type(error).__name__}); check the environment variables "
            "for proxies and certificates, such as HTTPS_PROXY and SSL_CERT_FILE."
        ) from None


async def request_scores(
    pool: Pool, server: Server, key: Key | None, query: str, passages: Sequence[str]
) -> PassageScores:
    """Request the scores of passages that fit into one HTTP request, and retry temporary failures.

    Raises:
        RemoteError: The server sent no valid response; see `errors` for the subclasses.
    """
    body = _encoded(server.address.dialect.request_body(query, passages, server.address.model))
    attempt = 0
    while True:
        attempt += 1
        retry_after_s = 0.0
        error: RemoteError
        cause: Exception | None = None
        try:
            async with pool.slots:
                response = await asyncio.wait_for(_exchange(pool.client, server, key, body), server.timeout_s)
        except asyncio.TimeoutError as timeout:
            cause = timeout
            error = RemoteTimeoutError(
                f"{server.address.endpoint} did not respond within {server.timeout_s:g} s ({_times(attempt)}); raise "
                "`timeout_s` or lower `max_passages_per_request`."
            )
        except httpx.TransportError as failure:
            cause = failure
            reason = excerpt(str(failure)) or type(failure).__name__
            error = RemoteError(f"The request to {server.address.endpoint} failed ({_times(attempt)}): {reason}")
        else:
            if response.status == httpx.codes.OK:
                # The server may echo the key.
                content = (
                    response.content
                    if key is None
                    else key.redact(response.content.decode("utf-8", "replace")).encode()
                )
                return read_scores(content, count=len(passages), where=server.address.endpoint)
            retry_after_s = _seconds(response.retry_after)
            error = _status_error(response, server, key, attempt, retry_after_s)
            if not _is_temporary(response) or retry_after_s > _MAX_RETRY_AFTER_S:
                raise error
        if attempt >= server.max_attempts:
            raise error from cause
        await asyncio.sleep(max(retry_after_s, _backoff(attempt)))


async def _exchange(client: httpx.AsyncClient, server: Server, key: Key | None, body: bytes) -> _Response:
    url = httpx.URL(server.address.endpoint)
    for _ in range(_MAX_REDIRECTS + 1):
        request = client.build_request("POST", url, content=body, headers={"Content-Type": "application/json"})
        if key is not None:
            key.sign(request.headers)
        try:
            response = await client.send(request, stream=True)
        finally:
            remove_key(request.headers)
        try:
            if response.status_code not in _REDIRECTS:
                content = await _content(response, server, len(body))
                return _Response(response.status_code, content, response.headers.get("Retry-After"))
            url = _redirected(response, server)
        finally:
            await response.aclose()
    raise RemoteProtocolError(f"{server.address.endpoint} redirects too many times.")


async def _content(response: httpx.Response, server: Server, request_bytes: int) -> bytes:
    """Read a response up to its size limit; an error response is truncated to it."""
    is_error = response.status_code != httpx.codes.OK
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        if is_error:
            return b""
        raise RemoteProtocolError(f"{server.address.endpoint} sent a compressed response, which was not requested.")
    limit = _MIN_RESPONSE_LIMIT_BYTES + _RESPONSE_BYTES_PER_REQUEST_BYTE * request_bytes
    content_length = response.headers.get("Content-Length", "")
    too_large = content_length.isdecimal() and int(content_length) > limit
    content = bytearray()
    if not too_large:
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > limit:
                too_large = True
                break
    if too_large and not is_error:
        raise RemoteProtocolError(
            f"{server.address.endpoint} sent more than {limit:,} bytes, too many for a response to a "
            f"request of {request_bytes:,} bytes."
        )
    return bytes(content[:limit])


def _redirected(response: httpx.Response, server: Server) -> httpx.URL:
    """Return the target of a redirect on the same server; other servers get neither the texts nor the key."""
    here = response.request.url
    where = server.address.endpoint
    if response.status_code == httpx.codes.SEE_OTHER:
        raise RemoteProtocolError(f"{where} redirects to another page (status 303) instead of returning scores.")
    try:
        there = here.join(response.headers["Location"])
    except (KeyError, ValueError, httpx.InvalidURL) as error:
        raise RemoteProtocolError(
            f"{where} redirects without a valid Location (status {response.status_code})."
        ) from error
    if (there.scheme, there.host, there.port) != (here.scheme, here.host, here.port) or there.userinfo:
        target = excerpt(f"{there.scheme}://{_bracketed(there.host)}" + (f":{there.port}" if there.port else ""))
        raise RemoteProtocolError(
            f"{where} redirects to {target}, which is not followed: texts and API key are sent only to the server "
            "that you named. If the target is the right server, use its URL."
        )
    return there


def _is_temporary(response: _Response) -> bool:
    """Whether a retry may succeed.

    Reranking servers report their own errors as JSON. A 500 without JSON comes from a proxy in front of a server that
    has just died, such as those of Ray Serve.
    """
    bare_500 = response.status == httpx.codes.INTERNAL_SERVER_ERROR and not response.content.lstrip().startswith(
        (b"{", b"[")
    )
    return response.status in _TEMPORARY_STATUSES or bare_500


def _status_error(
    response: _Response, server: Server, key: Key | None, attempt: int, retry_after_s: float
) -> RemoteStatusError:
    message = server_message(response.content)
    # Redacted before it is truncated, else the beginning of a key could remain.
    message = excerpt(message if key is None else key.redact(message))
    sentences = [
        f"{server.address.endpoint} returned status {response.status} ({_times(attempt)})"
        + (f": {message.rstrip('.')}." if message else ".")
    ]
    if retry_after_s > _MAX_RETRY_AFTER_S:
        sentences.append(
            f"It requires a wait of {retry_after_s:.0f} s; retries wait at most {_MAX_RETRY_AFTER_S:.0f} s."
        )
    sentences.append(_hint(response.status, message, server, key))
    return RemoteStatusError(" ".join(filter(None, sentences)), status=response.status)


def _hint(status: int, message: str, server: Server, key: Key | None) -> str:
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE or "batch size" in message.lower():
        return "Lower `max_passages_per_request`."
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        names = server.address.dialect.key_names if server.address.is_vendor_host else (KEY_VARIABLE,)
        sent = "No API key was sent" if key is None else "An API key was sent"
        return f"{sent}; pass `api_key` (`token` for a `Reranker`) or set {names[0]}."
    if status == httpx.codes.NOT_FOUND:
        return f"{server.address.url} must be the base URL of a {server.address.dialect.name} server."
    return ""


def _encoded(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False)
    # UTF-8 cannot encode lone surrogates; local models get the same replacement.
    return _LONE_SURROGATE.sub("\ufffd", text).encode()


def _seconds(retry_after: str | None) -> float:
    """Parse a Retry-After header, which is a number of seconds or a date; 0 for anything else."""
    text = (retry_after or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _backoff(attempt: int) -> float:
    """Return a random delay, so that callers do not all retry at once."""
    return random.uniform(0, min(_FIRST_BACKOFF_S * 2 ** min(attempt - 1, 10), _MAX_BACKOFF_S))  # noqa: S311


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"
