"""openvino and nncf report their use to Google Analytics unless they are told not to; here they are."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPORTER = "openvino_telemetry"
_NOT_IMPORTED = object()
# Two at once would take each other's mark for the package.
_lock = threading.RLock()


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep what is imported meanwhile from sending anything, and from writing an id to the home folder.

    Both packages do without the package that reports where it is missing, and look for it when they are imported.
    Their own switches are an environment variable, which other threads would see, and a file in the home folder.
    """
    with _lock:
        before = sys.modules.get(_REPORTER, _NOT_IMPORTED)
        sys.modules[_REPORTER] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
        try:
            yield
        finally:
            if before is _NOT_IMPORTED:
                del sys.modules[_REPORTER]
            else:
                sys.modules[_REPORTER] = before  # type: ignore[assignment]
