"""Sends requests to a server in parts that it accepts, with retries, and joins the scores."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx
import numpy as np

from marcorank._calls.tracing import request_headers
from marcorank._inference.scorer import PassageScores
from marcorank._text import counted
from marcorank.errors import (
    RemoteError,
    RemoteProtocolError,
    RemoteStatusError,
    RemoteTimeoutError,
    certificate_hint,
)
from marcorank.remote.keys import key_variables
from marcorank.remote.responses import excerpt, is_about_size, is_too_large, read_scores, server_message

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from marcorank._inference.scorer import Request
    from marcorank.remote.address import Address
    from marcorank.remote.connection import Connection, Server
    from marcorank.remote.keys import Key

# Temporary failures of a server, or of a proxy in front of it.
_TEMPORARY_STATUSES = {429, 502, 503, 504}
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 4.0
# A longer Retry-After is reported as an error instead of waited for.
_MAX_RETRY_AFTER_S = 30.0
# Some servers return the passages, with every character escaped.
_MIN_RESPONSE_LIMIT_BYTES = 1 << 20
_RESPONSE_BYTES_PER_REQUEST_BYTE = 8
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


async def score_all(connection: Connection, *, server: Server, requests: Sequence[Request]) -> list[PassageScores]:
    """Score the passages of each request; returns one result per request, in order. The first failure cancels the rest.

    Raises:
        RemoteError: The server sent no valid response; see `errors` for the subclasses.
    """
    # For each request the scores of its parts, by their first passage.
    scored: list[dict[int, PassageScores]] = [{} for _ in requests]
    parts: asyncio.Queue[tuple[int, int, int]] = asyncio.Queue()
    for index, (_, passages) in enumerate(requests):
        if passages:
            parts.put_nowait((index, 0, len(passages)))

    async def work() -> None:
        # Until it is cancelled: while any request is under way, it may be refused and become two parts.
        while True:
            index, start, stop = await parts.get()
            end = min(start + connection.max_passages(server), stop)
            if end < stop:
                parts.put_nowait((index, end, stop))
            query, passages = requests[index]
            scores = await _request_scores(connection, server, query, passages[start:end])
            if scores is not None:
                scored[index][start] = scores
            else:
                middle = start + (end - start) // 2
                parts.put_nowait((index, start, middle))
                parts.put_nowait((index, middle, end))
            parts.task_done()

    # No more tasks than can run, so that a long call does not block others.
    workers = min(connection.parallel, sum(len(passages) for _, passages in requests))
    tasks = [asyncio.create_task(parts.join()), *(asyncio.create_task(work()) for _ in range(workers))]
    try:
        # The end of `join`, or the failure of a worker.
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [_join([of_request[start] for start in sorted(of_request)]) for of_request in scored]


def _join(parts: Sequence[PassageScores]) -> PassageScores:
    truncated = [part.truncated for part in parts if part.truncated is not None]
    unknown_tokens = [part.unknown_tokens for part in parts if part.unknown_tokens is not None]
    return PassageScores(
        np.concatenate([PassageScores.empty().logits, *(part.logits for part in parts)]),
        np.concatenate(truncated) if truncated and len(truncated) == len(parts) else None,
        unknown_tokens=np.concatenate(unknown_tokens) if unknown_tokens and len(unknown_tokens) == len(parts) else None,
    )


async def _request_scores(
    connection: Connection, server: Server, query: str, passages: Sequence[str]
) -> PassageScores | None:
    """Send one HTTP request, and retry temporary failures; None if the server refuses so many passages at once."""
    endpoint = server.address.endpoint
    body = json.dumps(server.address.dialect.request_body(query, passages, server.address.model), ensure_ascii=False)
    # UTF-8 cannot encode lone surrogates; local models get the same replacement.
    content = _LONE_SURROGATE.sub("\ufffd", body).encode()
    attempt = 0
    while True:
        attempt += 1
        attempts = counted(attempt, "attempt")
        retry_after_s = 0.0
        error: RemoteError
        try:
            async with connection.slots:
                response, text = await asyncio.wait_for(_post(connection.client, server, content), server.timeout_s)
        except asyncio.TimeoutError:
            error = RemoteTimeoutError(
                f"{endpoint} did not respond within {server.timeout_s:g} s ({attempts}); raise `timeout_s` of "
                "the RemoteScorer, or lower `max_passages_per_request`."
            )
        except httpx.TransportError as failure:
            reason = excerpt(str(failure)) or type(failure).__name__
            hint = certificate_hint(failure)
            error = RemoteError(f"The request to {endpoint} failed ({attempts}): {reason}{'.' if hint else ''}{hint}")
        else:
            if response.status_code == httpx.codes.OK:
                return read_scores(text, count=len(passages), where=endpoint)
            message = excerpt(server_message(text))
            if len(passages) > 1 and is_too_large(response.status_code, message):
                if not is_about_size(message):
                    connection.lower_limit(len(passages) // 2)
                return None
            retry_after_s = _seconds(response.headers.get("Retry-After"))
            error = _status_error(response.status_code, message, server, attempts, retry_after_s)
            if not _is_temporary(response.status_code, text) or retry_after_s > _MAX_RETRY_AFTER_S:
                raise error
        if attempt >= server.max_attempts:
            # Outside of the `except`: the error of httpx refers to the request, and that contains the API key.
            raise error
        await asyncio.sleep(max(retry_after_s, _backoff(attempt)))


class _KeyAuth(httpx.Auth):
    """Adds the API key to a request, so that no frame of ours, which tools show with errors, holds it as text."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._key.authorization
        yield request


async def _post(client: httpx.AsyncClient, server: Server, content: bytes) -> tuple[httpx.Response, str]:
    """Send one request; return the response and its body, from which the key is removed if the server repeats it."""
    headers = {"Content-Type": "application/json", **request_headers()}
    auth = None if server.key is None else _KeyAuth(server.key)
    async with client.stream("POST", server.address.endpoint, content=content, headers=headers, auth=auth) as response:
        if response.next_request is not None:
            # Path and query of the target may contain secrets.
            url = response.next_request.url
            target = excerpt(f"{url.scheme}://{url.netloc.decode()}")
            if target == server.address.endpoint[: len(target)]:
                target = f"the path {excerpt(url.path)!r} of the same server"
            raise RemoteProtocolError(
                f"{server.address.endpoint} redirects to {target} (status {response.status_code}), which is not "
                "followed: texts and API key are sent only to the URL that you gave. If the target is the right "
                "server, use its URL."
            )
        text = (await _read(response, server, len(content))).decode("utf-8", "replace")
    return response, text if server.key is None else server.key.redact(text)


async def _read(response: httpx.Response, server: Server, request_bytes: int) -> bytes:
    """Return the body of a response up to a size limit; only an error response may be compressed or exceed it."""
    limit = _MIN_RESPONSE_LIMIT_BYTES + _RESPONSE_BYTES_PER_REQUEST_BYTE * request_bytes
    fault = f"more than {limit:,} bytes, too many for a response to a request of {request_bytes:,} bytes"
    content = bytearray()
    content_length = response.headers.get("Content-Length", "")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        fault = "a compressed response, which was not requested"
    elif not content_length.isdecimal() or int(content_length) <= limit:
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > limit:
                break
        else:
            return bytes(content)
    if response.status_code == httpx.codes.OK:
        raise RemoteProtocolError(f"{server.address.endpoint} sent {fault}.")
    return bytes(content[:limit])


def _is_temporary(status: int, text: str) -> bool:
    # Reranking servers report their own errors as JSON. A 500 without JSON comes from a proxy in front of a server
    # that has just died, such as those of Ray Serve.
    bare_500 = status == httpx.codes.INTERNAL_SERVER_ERROR and not text.lstrip().startswith(("{", "["))
    return status in _TEMPORARY_STATUSES or bare_500


def _status_error(status: int, message: str, server: Server, attempts: str, retry_after_s: float) -> RemoteStatusError:
    sentences = [
        f"{server.address.endpoint} returned status {status} ({attempts})"
        + (f": {message.rstrip('.')}." if message else ".")
    ]
    if retry_after_s > _MAX_RETRY_AFTER_S:
        sentences.append(
            f"It requires a wait of {retry_after_s:.0f} s; retries wait at most {_MAX_RETRY_AFTER_S:.0f} s."
        )
    if is_too_large(status, message):
        sentences.append(
            "It refuses even a single passage with the query; shorten the texts, or raise the limit of the server."
        )
    elif status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        sent = "No API key was sent" if server.key is None else "An API key was sent"
        variable = key_variables(server.address)[0]
        sentences.append(f"{sent}; pass `api_key` (`token` for a `Reranker`) or set {variable}.")
    elif status == httpx.codes.NOT_FOUND:
        sentences.append(_address_hint(server.address))
    return RemoteStatusError(" ".join(sentences), status=status)


def _address_hint(address: Address) -> str:
    kind, url, shorter = address.dialect.name, address.url, address.shorter
    if shorter is not None:
        return f"{url} must be the base URL of a {kind} server; try the shorter {kind}+{shorter.url}."
    if address.endpoint == url:
        return f"{url} was used as it is; if it is the base URL of a {kind} server, append /rerank."
    return f"{url} must be the base URL of a {kind} server."


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
