"""What happens beyond one request at a time: many at once, many passages, an event loop that has to stay free.

Everything here runs in the process of one contestant, and through `Reranker` alone; `scenarios` asks for it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marcorank import Reranker

    Request = tuple[str, list[str]]

_TICK_S = 0.002


def concurrent(reranker: Reranker, requests: Sequence[Request], rounds: int) -> dict[str, list[float]]:
    """Return seconds for all requests: in one call, from a thread each, and from a task each; in turn."""

    def one_call() -> None:
        reranker.rank_many([(query, passages) for query, passages in requests])

    def threads() -> None:
        with ThreadPoolExecutor(len(requests)) as pool:
            for done in [pool.submit(reranker.rank, *request) for request in requests]:
                done.result()

    async def gather() -> None:
        await asyncio.gather(*(reranker.arank(*request) for request in requests))

    ways: dict[str, Callable[[], Any]] = {
        "one_call": one_call,
        "threads": threads,
        "tasks": lambda: asyncio.run(gather()),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            found[way].append(time.perf_counter() - started)
    return found


def lag(reranker: Reranker, requests: Sequence[Request]) -> dict[str, float]:
    """Return how late an event loop is, in seconds, while tasks rank all requests at once."""

    async def measure() -> list[float]:
        late: list[float] = []

        async def tick() -> None:
            while True:
                started = time.perf_counter()
                await asyncio.sleep(_TICK_S)
                late.append(time.perf_counter() - started - _TICK_S)

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        await asyncio.gather(*(reranker.arank(*request) for request in requests))
        ticking.cancel()
        return late

    started = time.perf_counter()
    late = asyncio.run(measure())
    seconds = time.perf_counter() - started
    p50, p99 = (float(value) for value in np.percentile(late, [50, 99]))
    return {"p50_s": p50, "p99_s": p99, "largest_s": max(late), "ticks": len(late), "seconds": seconds}


def peak_memory_bytes() -> int | None:
    """Return the most memory that this process held so far; None where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    # Not `ru_maxrss`: on Linux that begins with what the parent held when it started this process.
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    if peak is not None:
        return int(peak) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
