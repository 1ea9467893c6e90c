"""Disables telemetry: by default openvino and nncf report their use to Google, onnxruntime from 1.32 to Microsoft."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPORTER = "openvino_telemetry"
# Two threads would take each other's placeholder for the package.
_lock = threading.RLock()


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Prevent packages imported in this context from sending data and from writing an id to the home folder.

    openvino and nncf work without the telemetry package and look for it when they are imported. Their own switches are
    an environment variable, which other threads would see, and a file in the home folder. onnxruntime has only an
    environment variable. It stays set, for the processes that this one starts; who wants to report sets it to 0.
    """
    with _lock:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        before = sys.modules.get(_REPORTER)
        sys.modules[_REPORTER] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
        try:
            yield
        finally:
            del sys.modules[_REPORTER]
            if before is not None:
                sys.modules[_REPORTER] = before
