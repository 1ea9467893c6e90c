"""The hooks around a fork: locks, threads and sessions of a parent process do not work in its child."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from marcorank._exits import skip_destructors

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# How long a fork waits for what must not be in progress at its moment; a thread that hangs there must not stop it.
_MAX_WAIT_S = 10.0
# Their libraries abort or hang at the exit of a child, even when their models were freed before the fork.
_NEED_THEIR_THREADS = {"onnxruntime", "openvino"}

_resets: WeakKeyDictionary[object, Callable[[object], None]] = WeakKeyDictionary()


def reset_in_child(obj: T, reset: Callable[[T], None]) -> None:
    """Call `reset(obj)` in every forked child, before anything else runs there and in the order of these calls."""
    _resets[obj] = reset  # type: ignore[assignment]


def keep_in_child(obj: object) -> None:
    """Never free `obj` in a forked child: an engine destroyed there waits for threads that only its parent has."""
    reset_in_child(obj, _keep)


def _keep(obj: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(obj))


def _reset_all() -> None:
    if not _NEED_THEIR_THREADS.isdisjoint(sys.modules):
        skip_destructors()
    for obj, reset in list(_resets.items()):
        reset(obj)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)


class ProcessLock:
    """A lock for the whole process. In a forked child it is free, whichever thread of the parent held it."""

    _lock: threading.Lock | threading.RLock

    def __init__(self) -> None:
        self._renew()
        reset_in_child(self, type(self)._renew)  # noqa: SLF001  # that of the subclass

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class ForkLock(ProcessLock):
    """A lock for what must not be in progress at the moment of a fork: the thread that forks holds it meanwhile.

    It is reentrant, and free in the child.

    Args:
        prepare: Called in the parent before every fork, while the lock is held.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        super().__init__()
        self._prepare = prepare
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._after)

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._held = False

    def _before(self) -> None:
        self._held = self._lock.acquire(timeout=_MAX_WAIT_S)
        self._prepare()

    def _after(self) -> None:
        if self._held:
            self._lock.release()

    def acquire(self, timeout_s: float) -> bool:
        """Wait for the lock; return whether it is held now."""
        return self._lock.acquire(timeout=timeout_s)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


class ForkGate:
    """Any number of threads may be inside, but none at the moment of a fork: the thread that forks waits for them."""

    def __init__(self) -> None:
        self._renew()
        reset_in_child(self, ForkGate._renew)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._close, after_in_parent=self._open)

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forking = 0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            # In a child that was forked by a thread inside, it is 0 already.
            self._inside = max(0, self._inside - 1)
            if self._forking:
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._forking += 1
            self._changed.wait_for(lambda: not self._inside, _MAX_WAIT_S)

    def _open(self) -> None:
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()
