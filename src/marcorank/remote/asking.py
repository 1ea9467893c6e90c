"""One question to a server: sent, repeated where that helps, and read."""

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
from marcorank.remote.keys import KEY_VARIABLE, forget
from marcorank.remote.replies import excerpt, read_scores, server_message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from marcorank._inference.scorer import PassageScores
    from marcorank.remote.address import Address, Server
    from marcorank.remote.connection import Pool
    from marcorank.remote.keys import Key

# Passing troubles of a server or of what stands before it.
_PASSING = {429, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_MOST_REDIRECTS = 3
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 4.0
# Who is asked to wait longer than this is better told so.
LONGEST_RETRY_AFTER_S = 30.0
# Some servers send the passages back, with every character escaped.
_REPLY_BYTES = 1 << 20
_REPLY_BYTES_A_REQUEST_BYTE = 8
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    content: bytes
    retry_after: str | None


def make_client(address: Address, parallel: int) -> httpx.AsyncClient:
    """Return the client for a server, which follows the proxies of the environment except to this machine.

    Raises:
        RemoteError: What the environment says of proxies or certificates cannot be used.
    """
    try:
        return httpx.AsyncClient(
            # Time is kept for an attempt as a whole, and the number of connections by who asks.
            timeout=None,  # noqa: S113
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=parallel),
            # Compressed answers could grow without limit, and these are short.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "marcorank"},
            mounts={f"all://{_bracketed(address.host)}": None} if address.is_loopback else None,
        )
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        # The message of the error may hold the password of a proxy.
        raise RemoteError(
            f"No HTTP client could be made for {address.url} ({type(error).__name__}); look at the variables of the "
            "environment that name proxies and certificates."
        ) from None


async def ask(pool: Pool, server: Server, key: Key | None, query: str, passages: Sequence[str]) -> PassageScores:
    """Ask a server for the scores of some passages that fit into one request, until it answers or there is no point.

    Raises:
        RemoteError: It did not answer; `errors` tells the kinds.
    """
    body = _encoded(server.address.dialect.ask(query, passages, server.address.model))
    attempt = 0
    while True:
        attempt += 1
        wanted_s = 0.0
        error: RemoteError
        cause: Exception | None = None
        try:
            async with pool.turn:
                reply = await asyncio.wait_for(_exchange(pool.client, server, key, body), server.timeout_s)
        except asyncio.TimeoutError as late:
            cause = late
            error = RemoteTimeoutError(
                f"{server.address.endpoint} did not answer within {server.timeout_s:g} s ({_times(attempt)}); raise "
                "`timeout_s` or lower `max_passages_per_request`."
            )
        except httpx.TransportError as broken:
            cause = broken
            said = excerpt(str(broken)) or type(broken).__name__
            error = RemoteError(f"{server.address.endpoint} could not be asked ({_times(attempt)}): {said}")
        else:
            if reply.status == httpx.codes.OK:
                # Whatever a server sends, it may be what it was sent.
                content = reply.content if key is None else key.hide(reply.content.decode("utf-8", "replace")).encode()
                return read_scores(content, count=len(passages), where=server.address.endpoint)
            wanted_s = _seconds(reply.retry_after)
            error = _refusal(reply, server, key, attempt, wanted_s)
            if not _passes(reply) or wanted_s > LONGEST_RETRY_AFTER_S:
                raise error
        if attempt >= server.max_attempts:
            raise error from cause
        await asyncio.sleep(max(wanted_s, _backoff(attempt)))


async def _exchange(client: httpx.AsyncClient, server: Server, key: Key | None, body: bytes) -> _Reply:
    url = httpx.URL(server.address.endpoint)
    for _ in range(_MOST_REDIRECTS + 1):
        request = client.build_request("POST", url, content=body, headers={"Content-Type": "application/json"})
        if key is not None:
            key.sign(request.headers)
        try:
            response = await client.send(request, stream=True)
        finally:
            forget(request.headers)
        try:
            if response.status_code not in _REDIRECTS:
                content = await _content(response, server, len(body))
                return _Reply(response.status_code, content, response.headers.get("Retry-After"))
            url = _redirected(response, server)
        finally:
            await response.aclose()
    raise RemoteProtocolError(f"{server.address.endpoint} redirects to itself again and again.")


async def _content(response: httpx.Response, server: Server, asked_bytes: int) -> bytes:
    """Read an answer up to its limit; of an error what fits is enough."""
    is_error = response.status_code != httpx.codes.OK
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        if is_error:
            return b""
        raise RemoteProtocolError(f"{server.address.endpoint} sent a compressed answer, which was not asked for.")
    limit = _REPLY_BYTES + _REPLY_BYTES_A_REQUEST_BYTE * asked_bytes
    promised = response.headers.get("Content-Length", "")
    too_much = promised.isdecimal() and int(promised) > limit
    content = bytearray()
    if not too_much:
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > limit:
                too_much = True
                break
    if too_much and not is_error:
        raise RemoteProtocolError(
            f"{server.address.endpoint} sent more than {limit:,} bytes, which no answer to a request of "
            f"{asked_bytes:,} bytes needs."
        )
    return bytes(content[:limit])


def _redirected(response: httpx.Response, server: Server) -> httpx.URL:
    """Return where a redirect leads, if it is the same server: others get neither the texts nor the key."""
    here = response.request.url
    where = server.address.endpoint
    if response.status_code == httpx.codes.SEE_OTHER:
        raise RemoteProtocolError(f"{where} redirects to a page (status 303) instead of answering.")
    try:
        there = here.join(response.headers["Location"])
    except (KeyError, ValueError, httpx.InvalidURL) as error:
        raise RemoteProtocolError(f"{where} redirects to nowhere (status {response.status_code}).") from error
    if (there.scheme, there.host, there.port) != (here.scheme, here.host, here.port) or there.userinfo:
        target = excerpt(f"{there.scheme}://{_bracketed(there.host)}" + (f":{there.port}" if there.port else ""))
        raise RemoteProtocolError(
            f"{where} redirects to {target}, which is not followed: texts and key go to the server that was named and "
            "to no other. If that is the right one, name it."
        )
    return there


def _passes(reply: _Reply) -> bool:
    """Whether a server that refused may answer the next time.

    These servers tell of their own errors in JSON. A bare 500 is of what stands before one that has just died, as
    Ray's proxies answer.
    """
    bare_500 = reply.status == httpx.codes.INTERNAL_SERVER_ERROR and not reply.content.lstrip().startswith((b"{", b"["))
    return reply.status in _PASSING or bare_500


def _refusal(reply: _Reply, server: Server, key: Key | None, attempt: int, wanted_s: float) -> RemoteStatusError:
    said = server_message(reply.content)
    # Hidden before it is cut, else the beginning of a key could be left.
    said = excerpt(said if key is None else key.hide(said))
    sentences = [
        f"{server.address.endpoint} answered with status {reply.status} ({_times(attempt)})"
        + (f": {said.rstrip('.')}." if said else ".")
    ]
    if wanted_s > LONGEST_RETRY_AFTER_S:
        sentences.append(f"It asks to wait {wanted_s:.0f} s; more than {LONGEST_RETRY_AFTER_S:.0f} s are not waited.")
    sentences.append(_hint(reply.status, said, server, key))
    return RemoteStatusError(" ".join(filter(None, sentences)), status=reply.status)


def _hint(status: int, said: str, server: Server, key: Key | None) -> str:
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE or "batch size" in said.lower():
        return "Lower `max_passages_per_request`."
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        names = server.address.dialect.key_names if server.address.is_of_vendor else (KEY_VARIABLE,)
        sent = "No key was sent" if key is None else "A key was sent"
        return f"{sent}; pass `api_key` (`token` of a reranker) or set {names[0]}."
    if status == httpx.codes.NOT_FOUND:
        return f"{server.address.url} has to be the base of a server of the kind {server.address.dialect.name!r}."
    return ""


def _encoded(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False)
    # No encoding has them, and local models see the same in their place.
    return _LONE_SURROGATE.sub("\ufffd", text).encode()


def _seconds(retry_after: str | None) -> float:
    """Return what a Retry-After header asks for: seconds, or a date; 0 where it says neither."""
    text = (retry_after or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _backoff(attempt: int) -> float:
    """Return a random wait, so that many callers do not come back at once."""
    return random.uniform(0, min(_FIRST_WAIT_S * 2 ** min(attempt - 1, 10), _LONGEST_WAIT_S))  # noqa: S311


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"
