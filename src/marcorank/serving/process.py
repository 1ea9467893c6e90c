"""The server in one process: an ASGI application that admits, limits, counts and cancels requests."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from marcorank._exits import DaemonThread
from marcorank._text import shorten
from marcorank.serving.endpoints import RERANK, Endpoints, path_of, respond
from marcorank.serving.metrics import CONTENT_TYPE, Metrics
from marcorank.serving.requests import JsonResponse, RequestError

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from marcorank.reranker import Reranker
    from marcorank.serving.settings import ProcessSettings

_MORE = {"/ready": "GET", "/metrics": "GET"}
# One second: by then a place in the queue, or another process, is likely to be free.
_RETRY_AFTER = {"Retry-After": "1"}
# In which the rest of a body that nobody reads is received and dropped.
_LINGER_S = 1.0

_log = logging.getLogger("marcorank.serve")


class _Call:
    """What is counted and logged of a request.

    Attributes:
        route: The path, if it is one of the server's.
        passages: Number of passages that were ranked; None if there was no ranking.
    """

    def __init__(self) -> None:
        self.route = "unknown"
        self.passages: int | None = None


class ServerProcess:
    """The ASGI application.

    Attributes:
        ready: Whether requests are accepted: the model is loaded, and the server does not stop.
    """

    def __init__(self, settings: ProcessSettings, reranker: Reranker | None = None) -> None:
        """Create the application; `load` loads the model.

        Args:
            settings: The settings.
            reranker: A reranker with the sigmoid activation, instead of that of the settings.
        """
        self._settings = settings
        self._reranker = reranker or settings.reranker()
        self._endpoints = Endpoints(settings, self._reranker, _MORE)
        self._metrics = Metrics()
        self._slots = asyncio.Semaphore(settings.max_ongoing)
        # Of accepted requests: how many there are, the rankings among them, bytes of bodies that are still being read,
        # and whether there are none.
        self._accepted = 0
        self._rankings: set[asyncio.Task[Response]] = set()
        self._bytes_read = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = self._cancelled = False
        self._unready = "The model is being loaded; send the request again."
        self.ready = False

    async def load(self) -> None:
        """Load the model and run it once, in a thread of its own.

        Raises:
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        loaded: Future[None] = Future()
        loaded.set_running_or_notify_cancel()

        def load() -> None:
            try:
                self._reranker.warm_up()
            except BaseException as error:  # noqa: BLE001 -- raised in the event loop
                loaded.set_exception(error)
            else:
                loaded.set_result(None)

        # It may hang in a download, which must not keep the process from ending.
        DaemonThread(load, name="marcorank-load", end=lambda: None).start()
        try:
            await asyncio.wrap_future(loaded)
        except asyncio.CancelledError:
            loaded.add_done_callback(lambda _: self.close())
            raise

    def open(self) -> None:
        """Accept requests from now on, unless the server stops."""
        self.ready = not self._stopping

    async def drain(self) -> None:
        """Accept no further requests, and wait for those that were accepted; the rest are cancelled when time is up."""
        self._stopping = True
        self.ready = False
        self._unready = "The server is stopping; send the request again."
        if self._accepted:
            _log.info(
                "Stopping: %s finished first, for at most %g s. Press Ctrl-C again to stop at once.",
                self._unfinished("is", "are"),
                self._settings.stop_timeout_s,
            )
        try:
            await asyncio.wait_for(self._idle.wait(), self._settings.stop_timeout_s)
        except asyncio.TimeoutError:
            _log.warning(
                "Stopping now: %s not finished after %g s.",
                self._unfinished("was", "were"),
                self._settings.stop_timeout_s,
            )
            self.cancel()

    def _unfinished(self, of_one: str, of_several: str) -> str:
        return f"1 request {of_one}" if self._accepted == 1 else f"{self._accepted} requests {of_several}"

    def cancel(self) -> None:
        """Cancel all rankings, also those that have not begun; their clients get 503."""
        self._cancelled = True
        for ranking in self._rankings:
            ranking.cancel()

    def close(self) -> None:
        """Release the model."""
        self._reranker.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request, count it and log it."""
        started = time.perf_counter()
        call = _Call()
        has_body = any(name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"])

        async def receive_part() -> Message:
            nonlocal has_body
            part = await receive()
            has_body = has_body and part.get("more_body", False)
            return part

        request = Request(scope, receive_part)
        response = await respond(request, lambda request: self._handle(request, call), self._endpoints.failures)
        seconds = time.perf_counter() - started
        self._metrics.count(call.route, response.status_code, seconds)
        if not self._settings.quiet:
            passages = "-" if call.passages is None else call.passages
            _log.info(
                "%s %s %d passages=%s ms=%.1f",
                shorten(request.method),
                call.route,
                response.status_code,
                passages,
                1000 * seconds,
            )
        if not has_body or "connection" in response.headers:
            await response(scope, receive, send)
        else:
            await _respond_early(response, request, send)

    async def _handle(self, request: Request, call: _Call) -> Response:
        path = path_of(request)
        if path in self._endpoints.methods:
            call.route = path
        self._endpoints.check(request)
        if path in RERANK:
            return await self._accept(request, call)
        if path == "/info":
            return JsonResponse(self._endpoints.info())
        if path == "/metrics":
            return Response(self._metrics.text(), media_type=CONTENT_TYPE)
        if path == "/ready":
            self._check_ready()
        return Response()

    def _check_ready(self) -> None:
        if not self.ready:
            raise self._unavailable()

    def _unavailable(self) -> RequestError:
        return RequestError(503, self._unready, "Unhealthy", _RETRY_AFTER)

    async def _accept(self, request: Request, call: _Call) -> Response:
        """Rank the passages of a request, if there is room in the queue."""
        self._check_ready()
        self._check_capacity()
        deadline = time.monotonic() + self._settings.request_timeout_s
        self._accepted += 1
        self._idle.clear()
        try:
            body = await self._read_body(request)
            if self._cancelled:
                raise self._unavailable()
            # Again, because only a request that has arrived takes a place; else clients that send none could take all.
            self._check_capacity()
            return await self._within_time(request, body, deadline, call)
        finally:
            self._accepted -= 1
            if not self._accepted:
                self._idle.set()

    def _check_capacity(self) -> None:
        capacity = self._settings.max_ongoing + self._settings.max_queued
        if len(self._rankings) >= capacity:
            raise _overloaded(f"{capacity} requests")

    async def _within_time(self, request: Request, body: bytearray, deadline: float, call: _Call) -> Response:
        """Rank a request; stop as soon as the time is over or the client is gone."""
        ranking = asyncio.create_task(self._rank(body, call))
        gone = asyncio.create_task(_gone(request))
        self._rankings.add(ranking)
        try:
            await asyncio.wait(
                (ranking, gone), timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            if ranking.cancelled():
                raise self._unavailable()
            if ranking.done():
                return ranking.result()
            if gone.done():
                raise ClientDisconnect
            raise RequestError(
                504, f"The request was not ranked within {self._settings.request_timeout_s:g} s.", "Timeout"
            )
        finally:
            self._rankings.discard(ranking)
            for task in (ranking, gone):
                task.cancel()
            await asyncio.gather(ranking, gone, return_exceptions=True)

    async def _read_body(self, request: Request) -> bytearray:
        settings = self._settings
        capacity = (settings.max_ongoing + settings.max_queued) * settings.max_body_bytes
        own = 0

        def count(size: int) -> None:
            nonlocal own
            if self._bytes_read + size > capacity:
                raise _overloaded(f"{capacity} bytes of requests")
            own += size
            self._bytes_read += size

        try:
            return await asyncio.wait_for(self._endpoints.read_body(request, count), settings.body_timeout_s)
        except asyncio.TimeoutError:
            raise RequestError(
                408,
                f"The body did not arrive within {settings.body_timeout_s:g} s.",
                "Timeout",
                {"Connection": "close"},
            ) from None
        finally:
            self._bytes_read -= own

    async def _rank(self, body: bytearray, call: _Call) -> Response:
        """Rank when it is the request's turn."""
        with self._metrics.queue.track_inprogress():
            await self._slots.acquire()
        try:
            with self._metrics.ongoing.track_inprogress():
                ranked = await self._endpoints.rerank(body, call.route)
        finally:
            self._slots.release()
        call.passages = ranked.passages
        self._metrics.count_passages(ranked.passages, ranked.truncated)
        return JsonResponse(ranked.content)


def _overloaded(what: str) -> RequestError:
    return RequestError(429, f"The server has {what} already; send the request again.", "Overloaded", _RETRY_AFTER)


async def _respond_early(response: Response, request: Request, send: Send) -> None:
    """Respond to a request whose body is not read, and close the connection.

    A client that still sends needs a moment to see the response: it is lost if the connection is closed before.
    """
    response.headers["Connection"] = "close"

    async def keep_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    async def skip_body() -> None:
        with suppress(ClientDisconnect):
            async for _ in request.stream():
                pass

    await response(request.scope, request.receive, keep_open)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(skip_body(), _LINGER_S)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
