"""A contestant's process, seen from the parent: one command at a time, with a limit to its silence."""

from __future__ import annotations

import json
import os
import queue
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
_LONGEST_REASON = 300


class ContestantError(Exception):
    """A contestant cannot do what it was asked.

    Attributes:
        kind: Name of the error's class in its process; empty where the process ended or kept silent.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Child:
    """A process that runs `marcorank.bench.child`.

    It ends with this object's `close`, and with the parent. Ctrl-C reaches only the parent, which closes it.

    Attributes:
        started: When it was started, in the time of `time.perf_counter`.
    """

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
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, do: str, *, more_time_s: float = 0, **arguments: Any) -> Any:
        """Have a command carried out.

        Args:
            do: A method of `child.Commands`.
            more_time_s: How much longer than usual it may take.
            arguments: Of the method.

        Raises:
            ContestantError: It failed, the process ended, or it kept silent for too long.
        """
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 -- for the type checker
        if self._end:
            raise ContestantError(self._end)
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
            line = self._answers.get(timeout=self._timeout_s + more_time_s)
        except queue.Empty:
            self._end = f"no answer within {self._timeout_s + more_time_s:.0f} s, and its process was ended"
            self.close()
            raise ContestantError(self._end) from None
        except OSError:
            line = b""
        if not line:
            self._end = self._how_it_ended()
            raise ContestantError(self._end)
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(_brief(answer["message"]), answer["error"])
        return answer["value"]

    def close(self) -> None:
        """End the process, and what it may have started."""
        if hasattr(os, "killpg"):
            # It leads a group of its own, of which some may go on when it has ended.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            # Closing writes what the process did not read any more.
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 -- for the type checker
        for line in stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        how = f"its process ended with status {status}"
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            how = f"its process was ended by {name}"
            how += ", perhaps for want of memory" if name == "SIGKILL" else ""
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return _brief(f"{how}: {said[-1].strip()}" if said else how)


def _environment(threads: int | None) -> dict[str, str]:
    environment = {
        **os.environ,
        # Nothing is downloaded while the clock runs.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # A file of the current folder must not be imported instead of a package.
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if threads is not None:
        environment |= dict.fromkeys(_THREAD_VARIABLES, f"{threads}")
    return environment


def _brief(message: str) -> str:
    return shorten(" ".join(message.split()), _LONGEST_REASON)
