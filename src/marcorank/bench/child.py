"""The process of one contestant: reads a command a line, carries it out, and answers with a line.

Nothing heavy is imported before a command asks for it, so that the first ranking measures what a user waits for.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from marcorank.bench.engines import Engine
    from marcorank.bench.products import Products


class Commands:
    """What a parent can ask for. Arguments and answers are plain values of JSON."""

    def __init__(self) -> None:
        self._engine: Engine = None  # type: ignore[assignment]  # `load` is always the first command
        self._products: Products = None  # type: ignore[assignment]
        self._query, self._passages = "", [""]

    def load(self, engine: str, setup: list[Any], query: str, passages: list[str]) -> None:
        """Load an engine and rank for the first time."""
        from marcorank.bench.engines import Setup, load

        self._engine = load(engine, Setup(*setup))
        self._engine.rank(query, self._engine.prepare(passages))

    def request(self, query: str, passages: list[str]) -> dict[str, Any]:
        """Take the request that is timed from now on, and answer it once."""
        self._query, self._passages = query, passages
        prepared = self._engine.prepare(passages)
        started = time.perf_counter()
        result = self._engine.rank(query, prepared)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, **self._engine.read(result)._asdict()}

    def time(self, repeat: int) -> list[float]:
        """Answer the request a few times; return the seconds of each."""
        seconds = []
        for _ in range(repeat):
            prepared = self._engine.prepare(self._passages)
            started = time.perf_counter()
            self._engine.rank(self._query, prepared)
            seconds.append(time.perf_counter() - started)
        return seconds

    def memory(self) -> int | None:
        """Return the peak memory of this process in bytes."""
        from marcorank.bench.trials import peak_memory_bytes

        return peak_memory_bytes()

    def trial(self, name: str, **arguments: Any) -> Any:
        """Run one of `trials` on the reranker that is loaded."""
        from marcorank.bench import trials

        reranker = self._engine.reranker  # type: ignore[attr-defined]  # only marcorank is asked
        return getattr(trials, name)(reranker, **arguments)

    def import_products(self, engine: str, device: str | None, threads: int | None) -> list[str]:
        """Import an engine for matrix products; return the precisions that it has."""
        from marcorank.bench.products import Products

        self._products = Products(engine, device, threads)
        return list(self._products.precisions)

    def best_size(self, precision: str, sizes: list[int]) -> tuple[int, float]:
        """Return the size of matrices that is fastest, and how fast."""
        return self._products.best_size(precision, sizes)

    def product(self, precision: str, size: int) -> float:
        """Return 10^9 operations a second."""
        return self._products.measure(precision, size)


def serve(commands: Callable[[], bytes], answers: IO[str]) -> None:
    """Carry out commands until there are none."""
    known = Commands()
    while line := commands():
        command = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"value": getattr(known, command.pop("do"))(**command)}
        except Exception as error:  # noqa: BLE001 -- every engine raises its own, and all become a row's reason
            answer = {"error": type(error).__name__, "message": f"{error}" or repr(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Talk over standard input and output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What engines print must not get between the answers.
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        # The parent is gone, perhaps in the middle of a long ranking; nobody wants the answer any more.
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            # Some libraries start processes, which are of this group.
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    serve(lines.get, answers)


if __name__ == "__main__":
    main()
