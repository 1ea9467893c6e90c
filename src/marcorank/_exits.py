"""The end of the process: it waits a moment for daemon threads that run C++ code, and then they cannot crash it."""

from __future__ import annotations

import atexit
import ctypes
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Long enough for a batch, and for most of the models that are still being loaded.
_EXIT_TIMEOUT_S = 2.0


class DaemonThread(threading.Thread):
    """A daemon thread that is asked to stop when the interpreter exits, and is given a moment to do so.

    Args:
        target: What it runs.
        name: Its name.
        end: Makes `target` return soon; called when the interpreter exits.
    """

    def __init__(self, target: Callable[[], object], *, name: str, end: Callable[[], object]) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self.end = end

    def run(self) -> None:
        """Run the target, and forget what it belongs to."""
        try:
            super().run()
        finally:
            self.end = _nothing


def skip_destructors() -> None:
    """Let this process end without the destructors of C++ libraries, with the status that it has then.

    They wait for threads that a forked child does not have, and free what threads that still run are using.
    """
    with suppress(AttributeError, OSError, TypeError):  # not every C library has these, and Windows names none
        libc = ctypes.CDLL(None)
        libc["on_exit"](libc["_exit"], None)
        libc["__cxa_atexit"](libc["fflush"], None, None)  # the last that is registered runs first


def _nothing() -> None:
    pass


def _end_threads() -> None:
    threads = [thread for thread in threading.enumerate() if isinstance(thread, DaemonThread)]
    for thread in threads:
        thread.end()
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        _make_harmless()


def _make_harmless() -> None:
    """Keep threads that are still in C++ code from aborting the process.

    Before Python 3.14, a thread that returns from C++ code to an interpreter that exits is unwound by `pthread_exit`.
    With glibc that ends in `std::terminate` where a C++ function must not throw. Here the thread sleeps instead.
    """
    skip_destructors()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL("libstdc++.so.6")["_ZSt13set_terminatePFvvE"](ctypes.CDLL(None)["pause"])


atexit.register(_end_threads)
