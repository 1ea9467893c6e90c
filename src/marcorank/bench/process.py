"""A contestant's process, seen from the parent: one command at a time, each with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from marcorank._text import shorten

if TYPE_CHECKING:
    from typing_extensions import Self

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_MAX_REASON_CHARS = 300


class ContestantError(Exception):
    """A contestant failed; `kind` is the name of the error's class, and empty if its process ended or timed out."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(shorten(" ".join(message.split()), _MAX_REASON_CHARS))
        self.kind = kind


class Child:
    """A process that runs `marcorank.bench.child`; it ends with `close` or with the parent."""

    def __init__(self, *, threads: int | None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end = ""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- `close` closes it
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "marcorank.bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(threads),
            # Ctrl-C reaches only the parent, which closes this process.
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 -- for mypy
        self._commands, self._results = self._process.stdin, self._process.stdout

    def ask(self, do: str, *, more_time_s: float = 0, **arguments: Any) -> Any:
        """Call a method of `child.Commands` in the process and return its result.

        Raises:
            ContestantError: The command failed or timed out, or the process ended.
        """
        if self._end:
            raise ContestantError(self._end)
        timeout_s = self._timeout_s + more_time_s
        timer = threading.Timer(timeout_s, self._time_out, [timeout_s])
        timer.start()
        try:
            self._commands.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._commands.flush()
            line = self._results.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if not line:
            self._end = self._end or self._how_it_ended()
            self.close()
            raise ContestantError(self._end)
        result = json.loads(line)
        if "error" in result:
            raise ContestantError(result["message"], result["error"])
        return result["value"]

    def close(self) -> None:
        """End the process and those that it started."""
        self._end = self._end or "its process was ended"
        self._kill()
        self._process.wait()
        for stream in (self._commands, self._results, self._errors):
            # Closing writes what the process has not read.
            with suppress(OSError):
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _time_out(self, timeout_s: float) -> None:
        self._end = f"no response within {timeout_s:.0f} s; its process was ended"
        self._kill()

    def _kill(self) -> None:
        if hasattr(os, "killpg"):
            # It leads a group, of which other processes may remain when it has ended.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        how = f"its process ended with status {status}"
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            how = f"its process was ended by {name}"
            how += ", perhaps because memory ran out" if name == "SIGKILL" else ""
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").split("\n")
        last_line = next((line.strip() for line in reversed(printed) if line.strip()), "")
        return f"{how}: {last_line}" if last_line else how


def _environment(threads: int | None) -> dict[str, str]:
    return {
        **os.environ,
        # Nothing is downloaded or reported during a measurement.
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # A file in the current folder must not be imported instead of a package.
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": "ignore",
        **({} if threads is None else dict.fromkeys(_THREAD_VARIABLES, f"{threads}")),
    }
