"""A call is a generator that yields the futures it has to wait for; these functions wait.

So its logic exists once, and whoever runs it decides how to wait: `run` blocks the calling thread, `arun` awaits in
the caller's event loop, and a `Task` (see `_calls.tasks`) resumes it in a worker thread whenever a future is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from concurrent.futures import CancelledError, Future, TimeoutError  # noqa: A004  # another one before Python 3.11
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from contextvars import Context

T = TypeVar("T")


class Wait(NamedTuple):
    """A future that a call waits for.

    Attributes:
        future: Resume the call when it is done.
        timeout_s: Resume the call after this number of seconds at the latest; None for no limit.
    """

    future: Future[Any]
    timeout_s: float | None = None


Steps: TypeAlias = Generator[Wait, None, T]


def run(steps: Steps[T]) -> T:
    """Run a call to its end in this thread."""
    pending: Wait | None = None
    try:
        while True:
            try:
                pending = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if not pending.future.done():
                _wait(pending)
    finally:
        # The future may refer to an error whose traceback refers to this frame.
        pending = None
        steps.close()


def in_context(context: Context, steps: Steps[T]) -> Steps[T]:
    """Run the steps of a call in a context; whoever waits between them stays in its own."""
    try:
        while True:
            yield context.run(next, steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        context.run(steps.close)


def _wait(pending: Wait) -> None:
    """Block until the future is done, or its time has passed."""
    end = None if pending.timeout_s is None else time.monotonic() + pending.timeout_s
    try:
        pending.future.exception(pending.timeout_s)
    except CancelledError:
        pass
    except TimeoutError:
        # A signal handler may have raised it.
        if end is None or time.monotonic() < end:
            raise


async def arun(steps: Steps[T]) -> T:
    """Run a call to its end without blocking the event loop; cancelling the task closes the call."""
    pending: Wait | None = None
    try:
        while True:
            try:
                pending = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if not pending.future.done():
                await _done(pending)
    finally:
        pending = None
        steps.close()


async def _done(pending: Wait) -> None:
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake(_: Future[Any]) -> None:
        # The loop may have been closed during the call.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_set, woken)

    pending.future.add_done_callback(wake)
    if pending.timeout_s is None:
        await woken
    else:
        await asyncio.wait([woken], timeout=pending.timeout_s)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
