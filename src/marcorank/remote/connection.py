"""One thread with one event loop and one HTTP pool for all callers of a scorer.

Time limits hold whatever the server does, a call can be cancelled at any point, callers in any number of threads and
event loops share connections, and their event loops are not blocked.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

from marcorank.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from typing import Any

    import httpx

T = TypeVar("T")

# Time limit for closing the connections.
_CLOSE_TIMEOUT_S = 1.0
# A finalizer may wait for the thread while the interrupted code holds a lock that the thread needs, as of logging.
_STOP_TIMEOUT_S = 5.0


class Pool:
    """HTTP client and request slots shared by all calls of a scorer; used only in the thread of its event loop.

    Attributes:
        parallel: Maximum number of concurrent requests.
        slots: Semaphore that limits them.
    """

    def __init__(self, make_client: Callable[[], httpx.AsyncClient], parallel: int) -> None:
        self._make_client = make_client
        self._client: httpx.AsyncClient | None = None
        self.parallel = parallel
        self.slots = asyncio.Semaphore(parallel)

    @property
    def client(self) -> httpx.AsyncClient:
        """The HTTP client, created on first use, which takes a few tenths of a second."""
        if self._client is None:
            self._client = self._make_client()
        return self._client

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            with suppress(Exception):
                await asyncio.wait_for(self._client.aclose(), _CLOSE_TIMEOUT_S)


class Connection:
    """Runs calls in a thread that starts with the first call and ends with `stop`; a forked child starts its own."""

    def __init__(self, make_client: Callable[[], httpx.AsyncClient], parallel: int) -> None:
        self._make_client = make_client
        self._parallel = parallel
        self._stopped = False
        self.reset()
        _connections.add(self)

    def reset(self) -> None:
        """Forget the thread of the parent. Its objects are kept alive, because freeing them would close them."""
        running = getattr(self, "_running", None)
        if running is not None:
            _kept_from_parent.append(running)
        self._lock = threading.Lock()
        self._running: _LoopThread | None = None

    def submit(self, call: Callable[[Pool], Coroutine[Any, Any, T]], *, user: object) -> Future[T]:
        """Start a call and return its future; cancelling the future cancels the call.

        Args:
            call: Coroutine function to run.
            user: Object whose finalizer calls `stop`; kept alive until the call has ended.

        Raises:
            ClosedError: The connection was stopped.
        """
        with self._lock:
            if self._stopped:
                raise ClosedError("The scorer was closed; create a new RemoteScorer.")
            if self._running is None:
                self._running = _LoopThread(Pool(self._make_client, self._parallel))
            return self._running.submit(call, user)

    def stop(self) -> None:
        """Stop the thread; calls that are still running fail.

        Also runs as a finalizer. The lock is free then: a thread that holds it also holds a reference to the scorer.
        """
        with self._lock:
            self._stopped = True
            running, self._running = self._running, None
        if running is not None:
            running.stop()


class _LoopThread:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="marcorank-remote", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[Pool], Coroutine[Any, Any, T]], user: object) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._run_call(call, user), self._loop)

    def stop(self) -> None:
        if os.getpid() != self._pid:
            return
        # After all submitted calls in the queue of the loop, so that each of them ends.
        self._loop.call_soon_threadsafe(self._stopping.set)
        # The finalizer may run in the thread itself.
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_TIMEOUT_S)

    async def _run_call(self, call: Callable[[Pool], Coroutine[Any, Any, T]], user: object) -> T:
        task = asyncio.current_task()
        if task is not None:
            self._calls.add(task)
            task.add_done_callback(self._forget)
        try:
            return await call(self._pool)
        except asyncio.CancelledError:
            if self._stopping.is_set():
                raise ClosedError("The scorer was closed while a call waited for the server.") from None
            raise
        finally:
            # A traceback keeps this frame alive, which must not keep the scorer alive.
            del user

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        # The error of a cancelled call is never retrieved, and asyncio would log that.
        if not task.cancelled():
            task.exception()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        await self._stopping.wait()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
        await self._pool.close()
        await self._loop.shutdown_asyncgens()


_connections: WeakSet[Connection] = WeakSet()
_kept_from_parent: list[_LoopThread] = []


def _reset_connections() -> None:
    for connection in list(_connections):
        connection.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_connections)
