"""Runs the server on uvicorn until a signal stops it: in this process, or in several that share a socket."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, ClassVar

import uvicorn
from prometheus_client import disable_created_metrics
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from marcorank._text import message_of, quoted, shorten
from marcorank.errors import InvalidInputError, MarcoRankError
from marcorank.serving.metrics import FOLDER_VARIABLE, mark_process_dead
from marcorank.serving.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from marcorank.serving.settings import ProcessSettings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 2048
# Longer than usual proxies keep idle connections, so that none sends a request into one that is just being closed.
_KEEP_ALIVE_S = 75
# For responses that are being sent when all rankings have ended.
_SEND_TIMEOUT_S = 2
# How much longer than that a worker may take to end.
_END_TIMEOUT_S = 5.0
# Between attempts to replace a process while the model cannot be loaded; the others go on.
_RESTART_DELAY_S = 1.0

_log = logging.getLogger("marcorank.serve")


def serve(settings: ProcessSettings) -> None:
    """Serve until SIGTERM or SIGINT, and finish the requests that were accepted until then.

    Raises:
        InvalidInputError: The address cannot be used, or there are to be several processes on Windows.
        MarcoRankError: The model cannot be loaded; see `errors`.
    """
    if os.name == "nt" and settings.workers > 1:
        raise InvalidInputError(
            f"`workers` is {settings.workers}; expected 1, because processes share no port on Windows."
        )
    disable_created_metrics()  # type: ignore[no-untyped-call]
    # The model is not loaded yet, but settings that do not fit it are an error, before anything is logged of them.
    name = shorten(settings.reranker().name)
    with _listen(settings) as listening:
        host, port = listening.getsockname()[:2]
        workers = f" with {settings.workers} processes" if settings.workers > 1 else ""
        _log.info("Loading %s, listening at http://%s:%d%s", name, f"[{host}]" if ":" in host else host, port, workers)
        if settings.api_key_sha256 is None and not ipaddress.ip_address(host).is_loopback:
            _log.warning("Other machines can send requests without a key; set MARCORANK_SERVE_API_KEY to require one.")
        if settings.workers > 1:
            _Workers(settings, listening).run()
        else:
            asyncio.run(_serve_alone(settings, listening))
    _log.info("Stopped.")


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Log requests, warnings and errors to stderr, with time and process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] %(levelname)s %(message)s"))
    # Their own handler, because uvicorn's logger is not below ours.
    loggers = [logging.getLogger(name) for name in ("marcorank", "uvicorn.error")]
    _log.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        _log.setLevel(logging.NOTSET)


def _listen(settings: ProcessSettings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # All addresses of a machine include those of IPv4.
        both = settings.host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
        raise InvalidInputError(
            f"Cannot listen on `host` {quoted(settings.host)} and `port` {settings.port}: {message_of(error)}. Choose "
            "others; port 0 stands for any that is free."
        ) from error


async def _serve_alone(settings: ProcessSettings, listening: socket.socket) -> None:
    app, stop = ServerProcess(settings), Stop()

    def loaded() -> None:
        app.open()
        _log.info("Ready.")

    with _on_signals(stop.request):
        await run_server(app, listening, stop, loaded=loaded, head_timeout_s=settings.body_timeout_s)


class Stop:
    """Requests a graceful stop; a second request cancels what still runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.requested = asyncio.Event()
        self.at_once = asyncio.Event()

    def request(self) -> None:
        """Stop, from any thread or signal handler."""
        self._call(self._request)

    def drain(self) -> None:
        """Stop gracefully, however often this is requested."""
        self._call(self.requested.set)

    def cancel(self) -> None:
        """Stop and cancel what still runs."""
        self._call(self.requested.set)
        self._call(self.at_once.set)

    def _request(self) -> None:
        (self.at_once if self.requested.is_set() else self.requested).set()

    def _call(self, change: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(change)


@contextmanager
def _on_signals(call: Callable[[], object]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: call()) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection that is closed if the head of a request does not arrive in time; uvicorn itself waits forever."""

    def __init__(self, *args: Any, head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._watch_head()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        # Not from the last byte on, but from the first one.
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._head_timeout_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals alone."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


async def run_server(
    app: ServerProcess,
    listening: socket.socket,
    stop: Stop,
    *,
    loaded: Callable[[], object],
    head_timeout_s: float,
    load_first: bool = False,
) -> None:
    """Serve an application until a stop is requested.

    Args:
        app: The application.
        listening: The socket.
        stop: Requests the stop.
        loaded: Called when the model is loaded.
        head_timeout_s: Seconds in which the head of a request has to arrive.
        load_first: Whether connections are accepted only then.

    Raises:
        MarcoRankError: The model cannot be loaded; see `errors`.
    """
    config = uvicorn.Config(
        app,
        http=partial(_Protocol, head_timeout_s=head_timeout_s),  # type: ignore[arg-type]
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SEND_TIMEOUT_S,
    )
    server = _Uvicorn(config)
    stopping = asyncio.create_task(stop.requested.wait())
    loading = asyncio.create_task(app.load())
    serving: asyncio.Task[None] | None = None
    try:
        if load_first:
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await asyncio.wait((loading, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            loaded()
            await asyncio.wait((stopping, serving), return_when=asyncio.FIRST_COMPLETED)
        await _first_of(app.drain(), stop.at_once.wait())
    finally:
        loading.cancel()
        stopping.cancel()
        if serving is not None:
            app.cancel()
            server.should_exit = True
            await serving
    if loading.done() and not loading.cancelled():
        app.close()


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(one) for one in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Workers:
    """The processes that share a socket, and this one, which replaces those that die."""

    _context: ClassVar = multiprocessing.get_context("spawn")

    def __init__(self, settings: ProcessSettings, listening: socket.socket) -> None:
        self._settings = settings
        self._listening = listening
        self._links: dict[Connection, SpawnProcess] = {}
        self._loaded: set[Connection] = set()
        self._all_ready = False
        self._signals, self._signalled = self._context.Pipe(duplex=False)

    def run(self) -> None:
        """Run them until a signal stops all."""
        # It would be started with the first process, and let interrupts through.
        resource_tracker.ensure_running()
        with (
            tempfile.TemporaryDirectory(prefix="marcorank-") as folder,
            _variable(FOLDER_VARIABLE, folder),
            _on_signals(lambda: self._signalled.send(None)),
        ):
            try:
                for _ in range(self._settings.workers):
                    self._start()
                self._watch()
            finally:
                self._stop()

    def _start(self) -> None:
        link, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._settings, self._listening, theirs, self._all_ready), daemon=True
        )
        with _interrupts_held():
            process.start()
        theirs.close()
        self._links[link] = process

    def _watch(self) -> None:
        """Replace processes that die, until a signal comes."""
        while True:
            ready = wait([self._signals, *self._links])
            # First, because a signal to all processes ends some of them too.
            if self._signals in ready:
                self._signals.recv()
                return
            for link in ready:
                self._receive(link)  # type: ignore[arg-type]

    def _receive(self, link: Connection) -> None:
        try:
            failure = link.recv()
        except (EOFError, OSError):
            self._replace(link)
            return
        if failure is not None:
            if not self._all_ready:
                raise MarcoRankError(failure)
            _log.error("The model cannot be loaded again: %s", failure)
            return
        self._loaded.add(link)
        if not self._all_ready and len(self._loaded) == self._settings.workers:
            self._all_ready = True
            _log.info("Ready.")
        if self._all_ready:
            _send(self._loaded, "open")

    def _replace(self, link: Connection) -> None:
        process = self._links.pop(link)
        process.join(_END_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
        mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
        if not self._all_ready:
            raise MarcoRankError(f"A process ended with status {process.exitcode} before it had loaded the model.")
        _log.warning("Process %d ended with status %s; another one takes its place.", process.pid, process.exitcode)
        if link in self._loaded:
            self._loaded.discard(link)
        else:
            time.sleep(_RESTART_DELAY_S)
        self._start()

    def _stop(self) -> None:
        _send(self._links, "stop")
        deadline = time.monotonic() + self._settings.stop_timeout_s + _SEND_TIMEOUT_S + _END_TIMEOUT_S
        while running := [process for process in self._links.values() if process.is_alive()]:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                for process in running:
                    _log.warning("Process %d did not stop in time and is killed.", process.pid)
                    process.kill()
                    process.join()
            elif self._signals in wait([self._signals, *(process.sentinel for process in running)], left_s):
                self._signals.recv()
                _send(self._links, "cancel")


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Defer SIGINT until the block ends; a process that starts in it never gets one.

    Ctrl-C in a terminal reaches all processes, but the parent forwards it. Windows cannot defer it.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(links: Iterable[Connection], message: str) -> None:
    for link in links:
        with suppress(OSError):  # of a process that has ended
            link.send(message)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _work(settings: ProcessSettings, listening: socket.socket, link: Connection, is_replacement: bool) -> None:  # noqa: FBT001
    """Be one of the processes."""
    # The parent forwards Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log_to_stderr():
        try:
            asyncio.run(_serve_with_others(settings, listening, link, is_replacement=is_replacement))
        except MarcoRankError as error:
            link.send(str(error))


async def _serve_with_others(
    settings: ProcessSettings, listening: socket.socket, link: Connection, *, is_replacement: bool
) -> None:
    app = ServerProcess(settings)
    stop = Stop()
    loop = asyncio.get_running_loop()

    def follow_parent() -> None:
        with suppress(EOFError, OSError):
            while True:
                match link.recv():
                    case "open":
                        loop.call_soon_threadsafe(app.open)
                    case "stop":
                        stop.drain()
                    case "cancel":
                        stop.cancel()
        # Without the parent there is nobody to stop this process.
        stop.drain()

    def loaded() -> None:
        _log.info("The model is loaded.")
        link.send(None)

    threading.Thread(target=follow_parent, name="marcorank-link", daemon=True).start()
    # It may come beside the request of the parent, if all processes get it, so it never counts as the second one.
    signal.signal(signal.SIGTERM, lambda *_: stop.drain())
    await run_server(
        app, listening, stop, load_first=is_replacement, loaded=loaded, head_timeout_s=settings.body_timeout_s
    )
