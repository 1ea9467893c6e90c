"""Scenarios beyond one request at a time. They run in marcorank's process and use `Reranker` alone."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marcorank import Reranker

    Request = tuple[str, list[str]]

_TICK_S = 0.002


def concurrent(reranker: Reranker, requests: Sequence[Request], rounds: int) -> dict[str, Any]:
    """Time all requests in one call, from a thread each and from a task each, in turn."""

    def one_call() -> None:
        reranker.rank_many([(query, passages) for query, passages in requests])

    def threads() -> None:
        with ThreadPoolExecutor(len(requests)) as pool:
            for future in [pool.submit(reranker.rank, *request) for request in requests]:
                future.result()

    def tasks() -> None:
        asyncio.run(_rank_all(reranker, requests))

    seconds: dict[str, list[float]] = {"one_call": [], "threads": [], "tasks": []}
    for _ in range(rounds):
        for times, run in zip(seconds.values(), (one_call, threads, tasks), strict=True):
            times.append(_seconds(run))
    one_call_s = median(seconds["one_call"])
    return {
        "requests": len(requests),
        "seconds": seconds,
        "threads_of_one_call": one_call_s / median(seconds["threads"]),
        "tasks_of_one_call": one_call_s / median(seconds["tasks"]),
    }


def lag(reranker: Reranker, requests: Sequence[Request]) -> dict[str, Any]:
    """Measure how late an event loop is while tasks rank all requests concurrently."""
    late_ms: list[float] = []

    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            late_ms.append((time.perf_counter() - started - _TICK_S) * 1e3)

    async def measure() -> None:
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        await _rank_all(reranker, requests)
        ticking.cancel()

    seconds = _seconds(lambda: asyncio.run(measure()))
    p50, p99, largest = (float(value) for value in np.percentile(late_ms, [50, 99, 100]))
    return {
        "requests": len(requests),
        "p50_ms": p50,
        "p99_ms": p99,
        "largest_ms": largest,
        "ticks": len(late_ms),
        "seconds": seconds,
    }


async def _rank_all(reranker: Reranker, requests: Sequence[Request]) -> None:
    await asyncio.gather(*(reranker.arank(*request) for request in requests))


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
