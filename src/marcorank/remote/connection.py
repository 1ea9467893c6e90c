"""One thread with one event loop and one HTTP client for all callers of a scorer.

Time limits hold whatever the server does, a call can be cancelled at any point, callers in any number of threads and
event loops share connections, and their event loops are not blocked.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from marcorank._calls.threads import DaemonThreadPool
from marcorank._exits import DaemonThread
from marcorank._forks import reset_in_child
from marcorank.errors import ClosedError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import httpx
    from typing_extensions import ParamSpec

    from marcorank.remote.address import Address
    from marcorank.remote.keys import Key

    P = ParamSpec("P")

T = TypeVar("T")

# Time limit for closing the connections.
_CLOSE_TIMEOUT_S = 1.0
# A finalizer may wait for the thread while the interrupted code holds a lock that the thread needs, as of logging.
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server, and how to send requests to it.

    Attributes:
        address: Address of the server.
        key: Its API key; None if it needs none.
        timeout_s: Time limit of one attempt, from connecting to the last byte of the response.
        max_attempts: Maximum number of attempts per request.
        max_passages: Maximum number of passages per request.
    """

    address: Address
    key: Key | None
    timeout_s: float
    max_attempts: int
    max_passages: int


class Connection:
    """Runs calls in a thread that starts with the first call and ends with `stop`; a forked child starts its own.

    The exit of the interpreter ends the thread too, see `DaemonThread`.

    Attributes:
        parallel: Maximum number of concurrent requests.
        slots: Semaphore that limits them.
    """

    slots: asyncio.Semaphore
    _loop: asyncio.AbstractEventLoop
    _stopping: asyncio.Event

    def __init__(self, address: Address, parallel: int) -> None:
        self.parallel = parallel
        self._address = address
        self._limit: int | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._client: httpx.AsyncClient | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        reset_in_child(self, Connection.reset_in_child)

    def reset_in_child(self) -> None:
        """Forget the thread of the parent. Its objects are kept alive, because freeing them would close them."""
        _kept_from_parent.append(vars(self).copy())
        self._lock = threading.Lock()
        self._thread = self._client = None
        self._calls = set()

    def submit(self, call: Callable[[Connection], Coroutine[Any, Any, T]], *, user: object) -> Future[T]:
        """Start a call and return its future; cancelling the future cancels the call.

        Args:
            call: Coroutine function to run.
            user: Object whose finalizer calls `stop`; kept alive until the call has ended.

        Raises:
            ClosedError: The connection was stopped.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("The scorer was closed; create a new RemoteScorer.")
            if self._thread is None:
                self.slots = asyncio.Semaphore(self.parallel)
                self._loop = asyncio.new_event_loop()
                self._loop.set_default_executor(_Resolver(self.parallel))
                self._stopping = asyncio.Event()
                self._thread = DaemonThread(self._run, name="marcorank-remote", end=self._end)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._run_call(call, user), self._loop)

    def stop(self) -> None:
        """Stop the thread; calls that are still running fail.

        Also runs as a finalizer. The lock is free then: a thread that holds it also holds a reference to the scorer.
        """
        thread = self._end()
        # The finalizer may run in the thread itself.
        if thread is not None and threading.current_thread() is not thread:
            thread.join(_STOP_TIMEOUT_S)

    @property
    def client(self) -> httpx.AsyncClient:
        """The HTTP client, created on first use, which takes a few tenths of a second; only for calls."""
        if self._client is None:
            self._client = _make_client(self._address, self.parallel)
        return self._client

    def max_passages(self, server: Server) -> int:
        """Return the maximum number of passages per request: that of the setting, or what the server accepts."""
        return server.max_passages if self._limit is None else min(self._limit, server.max_passages)

    def lower_limit(self, passages: int) -> None:
        """Remember for all later requests that the server refused more passages than these."""
        self._limit = passages if self._limit is None else min(self._limit, passages)

    def _end(self) -> threading.Thread | None:
        """Tell the thread to end, and return it; None if there is none, or it was told before."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            # After all submitted calls in the queue of the loop, so that each of them ends.
            self._loop.call_soon_threadsafe(self._stopping.set)
        return thread

    async def _run_call(self, call: Callable[[Connection], Coroutine[Any, Any, T]], user: object) -> T:
        if (task := asyncio.current_task()) is not None:
            self._calls.add(task)
            task.add_done_callback(self._forget)
        try:
            return await call(self)
        except asyncio.CancelledError:
            if self._stopping.is_set():
                raise ClosedError("The scorer was closed while a call waited for the server.") from None
            raise
        finally:
            # A traceback keeps this frame alive, which must not keep the scorer alive.
            del user

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        # Nobody retrieves the error of a call whose future was cancelled, and asyncio would log that.
        if not task.cancelled():
            task.exception()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        await self._stopping.wait()
        # If the loop starts only now, the submitted calls are tasks that have not begun and are not in `_calls` yet.
        await asyncio.sleep(0)
        # Not the tasks that the calls have started: their own task groups cancel them.
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        if self._client is not None:
            with suppress(Exception):
                await asyncio.wait_for(self._client.aclose(), _CLOSE_TIMEOUT_S)
        await self._loop.shutdown_asyncgens()


class _Resolver(ThreadPoolExecutor):
    """Looks up addresses for an event loop, which accepts no other class.

    A lookup cannot be interrupted, and a program would wait at its end for the threads of a `ThreadPoolExecutor`.
    """

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers)
        self._pool = DaemonThreadPool(max_workers, name="marcorank-resolver")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def step() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 -- whoever waits for the future gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        self._pool.submit(step)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002
        self._pool.shutdown(timeout_s=None if wait else 0.0)


def _make_client(address: Address, parallel: int) -> httpx.AsyncClient:
    """Make an HTTP client that uses the proxies from the environment, except for this machine."""
    import httpx

    host = f"[{address.host}]" if ":" in address.host else address.host
    try:
        return httpx.AsyncClient(
            # `score_all` limits the time of each attempt as a whole and the number of connections.
            timeout=None,  # noqa: S113
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=parallel),
            # A compressed response could expand without limit, and responses are short anyway.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "marcorank"},
            mounts={f"all://{host}": None} if address.is_loopback else None,
        )
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        # The message of the error may contain the password of a proxy.
        raise RemoteError(
            f"Cannot create an HTTP client for {address.url} ({type(error).__name__}); check the environment variables "
            "for proxies and certificates, such as HTTPS_PROXY and SSL_CERT_FILE."
        ) from None


_kept_from_parent: list[dict[str, Any]] = []
