"""The process of one contestant: reads a command per line, carries it out and writes its result as a line of JSON.

Nothing heavy is imported before a command needs it, so that the first ranking includes all that a user waits for.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from marcorank.bench.contestants import Loaded


class Commands:
    """The commands of the parent process. Arguments and results are plain JSON values."""

    def __init__(self) -> None:
        self._loaded: Loaded = None  # type: ignore[assignment]  # `load` comes first
        self._query, self._passages = "", [""]

    def load(self, contestant: str, setup: list[Any], query: str, passages: list[str]) -> None:
        """Load a contestant and rank for the first time."""
        from marcorank.bench.contestants import Setup, load

        self._loaded = load(contestant, Setup(*setup))
        self._loaded.rank(query, self._loaded.prepare(passages))

    def request(self, query: str, passages: list[str]) -> dict[str, Any]:
        """Set the request that is timed from now on, and rank it once."""
        self._query, self._passages = query, passages
        seconds, result = self._rank()
        ranked = self._loaded.read(result)
        logits = [logit for _, logit in sorted(ranked)]
        return {
            "seconds": seconds,
            "order": [index for index, _ in ranked],
            "logits": None if None in logits else logits,
        }

    def time(self, repeat: int) -> list[float]:
        """Rank the request several times and return the seconds of each."""
        return [self._rank()[0] for _ in range(repeat)]

    def scenario(self, name: str, **arguments: Any) -> Any:
        """Run a function of `scenarios` on marcorank's reranker."""
        from marcorank.bench import scenarios

        return getattr(scenarios, name)(self._loaded.reranker, **arguments)

    def product(self, product: list[Any]) -> float:
        """Return the speed of a matrix product, in 10^9 operations per second."""
        from marcorank.bench.limit import product_gflops

        return product_gflops(*product)

    def memory(self) -> int | None:
        """Return the peak memory of this process in bytes; None if the system does not report it."""
        if sys.platform == "darwin":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status = Path("/proc/self/status")
        # Not `ru_maxrss`: on Linux it starts with the memory of the parent process.
        lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

    def _rank(self) -> tuple[float, Any]:
        prepared = self._loaded.prepare(self._passages)
        started = time.perf_counter()
        result = self._loaded.rank(self._query, prepared)
        return time.perf_counter() - started, result


def serve(next_line: Callable[[], bytes], results: IO[str]) -> None:
    """Carry out commands until the process ends; `main` ends the process with its parent."""
    commands = Commands()
    while True:
        command = json.loads(next_line())
        result: dict[str, Any]
        try:
            result = {"value": getattr(commands, command.pop("do"))(**command)}
        except Exception as error:  # noqa: BLE001 -- each library raises its own; all become the reason of a row
            result = {"error": type(error).__name__, "message": f"{error}" or repr(error)}
        results.write(json.dumps(result) + "\n")
        results.flush()


def main() -> None:
    """Serve commands from standard input."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not mix with the results.
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        # The parent has ended, perhaps during a long ranking.
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            # Processes that libraries start belong to this group.
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    serve(lines.get, results)


if __name__ == "__main__":
    main()
