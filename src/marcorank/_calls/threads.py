"""A pool of daemon threads. Unlike those of `concurrent.futures` they do not keep a program from ending."""

from __future__ import annotations

import threading
import time
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING

from marcorank._exits import DaemonThread

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], None]


class DaemonThreadPool:
    """Threads that start when they are needed and stop with `shutdown` or when the pool is garbage-collected.

    Args:
        max_workers: Maximum number of threads.
        name: Prefix of their names.
    """

    def __init__(self, max_workers: int, *, name: str) -> None:
        self._max_workers = max_workers
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        # The threads refer only to the queue, else they would keep the pool alive.
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[_Worker] = []
        weakref.finalize(self, _end, self._steps, self._threads)

    def submit(self, step: Step) -> None:
        """Run a step in a thread; it must not raise.

        Raises:
            RuntimeError: The pool was shut down, or the interpreter exits.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("The threads were shut down.")
            self._steps.put(step)
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._max_workers:
                name = f"{self._name}_{len(self._threads)}"
                thread = _Worker(self._steps, self._idle, name)
                thread.start()
                self._threads.append(thread)

    def shutdown(self, *, timeout_s: float | None) -> None:
        """Stop the threads after all submitted steps.

        Args:
            timeout_s: Maximum number of seconds to wait for them; None for no limit.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                _end(self._steps, self._threads)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))


class _Worker(DaemonThread):
    def __init__(self, steps: SimpleQueue[Step | None], idle: threading.Semaphore, name: str) -> None:
        super().__init__(self._work, name=name, end=self._end)
        self._steps = steps
        self._idle = idle
        self._ends = False

    def _work(self) -> None:
        while (step := self._steps.get()) is not None and not self._ends:
            step()
            # Free what the step refers to before the next one comes.
            del step
            self._idle.release()

    def _end(self) -> None:
        self._ends = True
        self._steps.put(None)


def _end(steps: SimpleQueue[Step | None], threads: list[_Worker]) -> None:
    for _ in threads:
        steps.put(None)
