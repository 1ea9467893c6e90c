"""Builds a value once, however many threads request it at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from marcorank._forks import reset_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class Once:
    """Threads that ask for the same thing share the making of it; threads that ask for other things do not wait."""

    def __init__(self) -> None:
        self._start()
        reset_in_child(self, Once._start)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._making: dict[Hashable, Future[Any]] = {}

    def get(self, key: Hashable, find: Callable[[], T | None], make: Callable[[], T]) -> T:
        """Return what `find` returns or, if that is None, what `make` returns.

        If `make` fails, all threads that wait for it get its error. If its thread is interrupted, another one makes
        the thing.

        Args:
            key: Stands for the thing.
            find: Looks for the thing; must be quick.
            make: Makes the thing and stores it where `find` looks.
        """
        while True:
            with self._lock:
                found = find()
                if found is not None:
                    return found
                is_first = key not in self._making
                made: Future[T] = self._making.setdefault(key, Future())
            try:
                if is_first:
                    self._make(key, made, make)
                return made.result()
            except CancelledError:
                if is_first:
                    raise
            finally:
                # It refers to its error, whose traceback refers to this frame.
                del made

    def _make(self, key: Hashable, made: Future[T], make: Callable[[], T]) -> None:
        try:
            made.set_result(make())
        except Exception as error:  # noqa: BLE001 -- raised by the future, in every thread
            made.set_exception(error)
        except BaseException:  # such as a KeyboardInterrupt, which concerns this thread alone
            made.cancel()
            raise
        finally:
            with self._lock:
                self._making.pop(key, None)
            del made
