"""Calls that run in threads of ours, so that whoever waits for one can give it up."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from marcorank._calls.threads import DaemonThreadPool
from marcorank.errors import ClosedError, ScoreError

if TYPE_CHECKING:
    from marcorank._steps import Steps

T = TypeVar("T")

# A future that holds one of them looks cancelled to whoever waits.
_UNFIT = (CancelledError, asyncio.CancelledError)


class Tasks:
    """The tasks of one reranker.

    Args:
        max_workers: How many threads may be in a step at once.
    """

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._lock = threading.Lock()
        self._closed = False
        self._threads: DaemonThreadPool | None = None
        self._open: set[Task[Any]] = set()
        # Those may hang, so closing does not wait for them.
        self._abandoned: WeakSet[Task[Any]] = WeakSet()

    def start(self, steps: Steps[T]) -> Task[T]:
        """Begin a call.

        Raises:
            ClosedError: This was closed.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("The reranker was closed while a call began; make a new Reranker.")
            if self._threads is None:
                self._threads = DaemonThreadPool(self._max_workers, name="marcorank")
            task = Task(self._threads, steps)
            self._open.add(task)
        task.add_done_callback(self._open.discard)
        task.begin()
        return task

    def abandon(self, task: Task[Any]) -> None:
        """Drop what a task has not done yet; does nothing to one that is done."""
        if task.cancel() and task.working:
            self._abandoned.add(task)

    def close(self) -> None:
        """Finish the open tasks and end the threads."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
            tasks = list(self._open)
        for task in tasks:
            with suppress(CancelledError):
                task.exception()
        if threads is not None:
            threads.shutdown(wait=not any(task.working for task in self._abandoned))


class Task(Future[T]):
    """A call on its way: a future of its result.

    Each step runs in a thread of the pool and ends where the call has to wait. So calls wait side by side, and none
    of it needs an event loop, which may be busy or closed.

    Attributes:
        working: Whether a thread is in a step of it.
    """

    def __init__(self, threads: DaemonThreadPool, steps: Steps[T]) -> None:
        super().__init__()
        self.working = False
        self._threads = threads
        self._lock = threading.Lock()
        self._steps: Steps[T] | None = steps

    def begin(self) -> None:
        """Take the first step."""
        try:
            self._threads.submit(self._step)
        except RuntimeError as error:  # the interpreter ends, or the reranker was closed behind a cancelled call
            self._settle(error=error)

    def cancel(self) -> bool:
        """Drop what has not been done yet."""
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
        except BaseException as error:  # noqa: BLE001 -- it belongs to who waits
            # Without this frame: it holds the task, which will hold the error.
            self._settle(error=error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        else:
            self.working = False
            if self.done():  # cancelled meanwhile
                self._close()
            else:
                # Behind the steps of other calls, also where nothing has to be waited for.
                pending.future.add_done_callback(lambda _: self.begin())

    def _settle(self, *, result: T | None = None, error: BaseException | None = None) -> None:
        self._steps = None
        self.working = False
        if isinstance(error, _UNFIT):
            unfit, error = error, ScoreError(f"A scorer raised {type(error).__name__}: {error}")
            error.__cause__ = unfit
        with suppress(InvalidStateError):
            if error is None:
                self.set_result(result)  # type: ignore[arg-type]
            else:
                self.set_exception(error)

    def _close(self) -> None:
        with self._lock:
            if self.working:  # the thread in it will close it
                return
            steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
