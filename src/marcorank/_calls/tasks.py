"""Calls that run in worker threads, so that their callers can stop waiting for them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from marcorank._calls.threads import DaemonThreadPool
from marcorank._steps import in_context
from marcorank._text import message_of
from marcorank.errors import ClosedError, ScoreError

if TYPE_CHECKING:
    from marcorank._steps import Steps

T = TypeVar("T")

# A future with such an error looks as if it had been cancelled itself.
_CANCELLED_ERRORS = (CancelledError, asyncio.CancelledError)
# Long enough for a step that tokenises, after which its thread ends.
_CLOSE_TIMEOUT_S = 0.5


class Tasks:
    """The tasks of one reranker.

    Args:
        max_workers: Maximum number of worker threads.
    """

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._lock = threading.Lock()
        self._closed = False
        self._threads: DaemonThreadPool | None = None
        self._open: set[Task[Any]] = set()
        # Tasks whose scorer may hang; `close` waits for them only briefly.
        self._abandoned: WeakSet[Task[Any]] = WeakSet()

    def start(self, steps: Steps[T]) -> Task[T]:
        """Start a call.

        Raises:
            ClosedError: The reranker was closed.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("The reranker was closed while a call began; make a new Reranker.")
            if self._threads is None:
                self._threads = DaemonThreadPool(self._max_workers, name="marcorank")
            task = Task(self._threads, steps)
            self._open.add(task)
        task.add_done_callback(self._open.discard)
        task.step()
        return task

    def abandon(self, task: Task[Any]) -> None:
        """Cancel a task unless it is done."""
        if task.cancel() and task.working:
            self._abandoned.add(task)

    def close(self) -> None:
        """Finish the running tasks and stop the threads."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
            tasks = list(self._open)
        for task in tasks:
            with suppress(CancelledError):
                task.exception()
        if threads is not None:
            hanging = any(task.working for task in self._abandoned)
            threads.shutdown(timeout_s=_CLOSE_TIMEOUT_S if hanging else None)


class Task(Future[T]):
    """A running call: a future of its result.

    Each step runs in a thread of the pool and ends where the call has to wait. So a waiting call occupies no thread,
    and no call needs an event loop, which may be busy or closed. The steps see the context variables of the caller, as
    with `asyncio.to_thread`.

    Attributes:
        working: Whether a thread runs a step of the call.
    """

    def __init__(self, threads: DaemonThreadPool, steps: Steps[T]) -> None:
        super().__init__()
        self.working = False
        self._threads = threads
        self._lock = threading.Lock()
        self._steps: Steps[T] | None = in_context(copy_context(), steps)

    def step(self) -> None:
        """Run the next step in a thread of the pool."""
        try:
            self._threads.submit(self._step)
        except RuntimeError as error:  # the interpreter exits, or the reranker was closed after a cancelled call
            self._settle(error=error)

    def cancel(self) -> bool:
        """Cancel the call: steps that have not run yet are dropped."""
        cancelled = super().cancel()
        if cancelled:
            self._close()
        return cancelled

    def _step(self) -> None:
        with self._lock:
            steps = self._steps
            if steps is None:
                return
            self.working = True
        try:
            pending = next(steps)
        except StopIteration as end:
            self._settle(result=end.value)
        except BaseException as error:  # noqa: BLE001 -- raised to whoever waits for the task
            # Without this frame, which refers to the task, which will refer to the error.
            self._settle(error=error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        else:
            self.working = False
            if self.done():  # cancelled meanwhile
                self._close()
            else:
                # Even if the future is done already, steps of other calls that are queued come first.
                pending.future.add_done_callback(lambda _: self.step())

    def _settle(self, *, result: T | None = None, error: BaseException | None = None) -> None:
        self._steps = None
        self.working = False
        if isinstance(error, _CANCELLED_ERRORS):
            cause, error = error, ScoreError(f"A scorer raised {type(error).__name__}: {message_of(error)}")
            error.__cause__ = cause
        with suppress(InvalidStateError):
            if error is None:
                self.set_result(result)  # type: ignore[arg-type]
            else:
                self.set_exception(error)

    def _close(self) -> None:
        with self._lock:
            if self.working:  # its thread will close the steps
                return
            steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
