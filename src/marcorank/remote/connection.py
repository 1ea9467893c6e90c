"""One thread, one event loop and one HTTP pool for all callers of a scorer.

So time limits hold whatever the server does, a call can be cancelled at any point, callers in threads and in any
number of event loops share connections, and no event loop of theirs is kept busy.
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

# How long the connections may take to say goodbye.
_FAREWELL_S = 1.0
# The thread may need a lock, such as one of logging, whose holder was interrupted by a finalizer that waits for it.
_LONGEST_STOP_S = 5.0


class Pool:
    """What all calls of a scorer share. Used in the thread of its event loop only.

    Attributes:
        parallel: Most requests under way at once.
        turn: Has room for so many.
    """

    def __init__(self, make_client: Callable[[], httpx.AsyncClient], parallel: int) -> None:
        self._make_client = make_client
        self._client: httpx.AsyncClient | None = None
        self.parallel = parallel
        self.turn = asyncio.Semaphore(parallel)

    @property
    def client(self) -> httpx.AsyncClient:
        """Sends requests; made at the first use, which takes some tenths of a second."""
        if self._client is None:
            self._client = self._make_client()
        return self._client

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            with suppress(Exception):
                await asyncio.wait_for(self._client.aclose(), _FAREWELL_S)


class Connection:
    """Runs calls in a thread that begins with the first of them and ends with `stop`; a forked child begins anew."""

    def __init__(self, make_client: Callable[[], httpx.AsyncClient], parallel: int) -> None:
        self._make_client = make_client
        self._parallel = parallel
        self._stopped = False
        self.start_anew()
        _connections.add(self)

    def start_anew(self) -> None:
        """Forget the thread: it is that of the parent. What belongs to it is kept, since to free it would close it."""
        running = getattr(self, "_running", None)
        if running is not None:
            _of_the_parent.append(running)
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def submit(self, call: Callable[[Pool], Coroutine[Any, Any, T]], *, user: object) -> Future[T]:
        """Begin a call and return its future; to cancel that drops what the call is doing.

        Args:
            call: What to do.
            user: Whoever would `stop` this when it is freed; kept until the call has ended.

        Raises:
            ClosedError: This was stopped.
        """
        with self._lock:
            if self._stopped:
                raise ClosedError("The scorer was closed; make a new RemoteScorer.")
            if self._running is None:
                self._running = _Running(Pool(self._make_client, self._parallel))
            return self._running.submit(call, user)

    def stop(self) -> None:
        """End the thread; what still runs fails.

        Runs as a finalizer too, and then nobody else holds the lock: who does so holds the scorer.
        """
        with self._lock:
            self._stopped = True
            running, self._running = self._running, None
        if running is not None:
            running.stop()


class _Running:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="marcorank-remote", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[Pool], Coroutine[Any, Any, T]], user: object) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._perform(call, user), self._loop)

    def stop(self) -> None:
        if os.getpid() != self._pid:
            return
        # Behind all calls that were submitted, so that none is left without an answer.
        self._loop.call_soon_threadsafe(self._ending.set)
        # The last user may be let go of in the thread itself.
        if threading.current_thread() is not self._thread:
            self._thread.join(_LONGEST_STOP_S)

    async def _perform(self, call: Callable[[Pool], Coroutine[Any, Any, T]], user: object) -> T:
        task = asyncio.current_task()
        if task is not None:
            self._calls.add(task)
            task.add_done_callback(self._ended)
        try:
            return await call(self._pool)
        except asyncio.CancelledError:
            if self._ending.is_set():
                raise ClosedError("The scorer was closed while a call waited for the server.") from None
            raise
        finally:
            # A traceback keeps this frame, which is not to keep the scorer.
            del user

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        # Of a call that was cancelled nobody else looks at the error, which asyncio would complain about.
        if not task.cancelled():
            task.exception()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        await self._ending.wait()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
        await self._pool.close()
        await self._loop.shutdown_asyncgens()


_connections: WeakSet[Connection] = WeakSet()
_of_the_parent: list[_Running] = []


def _start_anew() -> None:
    for connection in list(_connections):
        connection.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
