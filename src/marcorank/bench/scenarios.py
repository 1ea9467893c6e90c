"""Scenarios beyond one request at a time, seen from the parent: what is asked of a contestant, and what it means."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from marcorank.bench.workload import pair_lengths

if TYPE_CHECKING:
    from collections.abc import Callable

    from marcorank.bench.process import Child
    from marcorank.bench.records import Settings
    from marcorank.bench.workload import Workload

    Request = tuple[str, list[str]]

_FEW_PASSAGES = 100
_FEW_LONG_PASSAGES = 200
_LONG_TOKENS = 512
_REPEATS = 5
# How much slower than in a request a passage may be before it counts as hanging; 512 tokens take a few times as long.
_SLACK = 20


def run_scenario(
    name: str,
    settings: Settings,
    workload: Workload,
    *,
    child: Child,
    fresh_child: Callable[[], Child],
    passage_s: float,
) -> dict[str, Any]:
    """Run a scenario on one contestant.

    Args:
        name: One of `records.SCENARIOS`.
        settings: Sizes.
        workload: Makes passages.
        child: The contestant's process, with its model loaded.
        fresh_child: Starts another one, which has ranked two short passages.
        passage_s: Time of a passage in a request.

    Raises:
        ContestantError: It failed.
    """
    if name == "memory":
        return _memory(settings, workload, fresh_child, passage_s)
    if name == "scale":
        return _scale(settings, workload, child, passage_s)
    count = settings.concurrency if name == "concurrent" else settings.lag_requests
    requests = [
        (workload.query, workload.passages(pair_lengths(settings.candidates, *settings.lengths))) for _ in range(count)
    ]
    patience_s = _SLACK * passage_s * count * settings.candidates
    if name == "lag":
        return {"requests": count, **child.ask("trial", name="lag", requests=requests, more_time_s=patience_s)}
    rounds = settings.rounds
    found = child.ask("trial", name="concurrent", requests=requests, rounds=rounds, more_time_s=3 * rounds * patience_s)
    medians = {way: statistics.median(seconds) for way, seconds in found.items()}
    return {
        "requests": count,
        "seconds": found,
        "threads_of_one_call": medians["one_call"] / medians["threads"],
        "tasks_of_one_call": medians["one_call"] / medians["tasks"],
    }


def _scale(settings: Settings, workload: Workload, child: Child, passage_s: float) -> dict[str, Any]:
    """Time few passages before and after many with the same mix of lengths."""
    few, many = _FEW_PASSAGES, max(_FEW_PASSAGES, settings.passages)
    small, large = (workload.passages(pair_lengths(count, *settings.lengths)) for count in (few, many))
    before = _times(child, workload, small)
    patience_s = _SLACK * passage_s * many
    many_s = child.ask("request", query=workload.query, passages=large, more_time_s=patience_s)["seconds"]
    few_s = before + _times(child, workload, small)
    return {
        "few": few,
        "many": many,
        "few_s": few_s,
        "many_s": many_s,
        "time_per_passage_ratio": (many_s / many) / (statistics.median(few_s) / few),
    }


def _times(child: Child, workload: Workload, passages: list[str]) -> list[float]:
    child.ask("request", query=workload.query, passages=passages)
    seconds: list[float] = child.ask("time", repeat=_REPEATS)
    return seconds


def _memory(
    settings: Settings, workload: Workload, fresh_child: Callable[[], Child], passage_s: float
) -> dict[str, Any]:
    """Compare the peak memory of two processes: one ranks few long passages, one many."""
    few, many = _FEW_LONG_PASSAGES, max(_FEW_LONG_PASSAGES, settings.passages)
    peaks: list[int | None] = []
    for count in (few, many):
        passages = workload.passages([_LONG_TOKENS] * count)
        with fresh_child() as child:
            patience_s = _SLACK * passage_s * count
            child.ask("request", query=workload.query, passages=passages, more_time_s=patience_s)
            peaks.append(child.ask("memory"))
    few_bytes, many_bytes = peaks
    return {
        "few": few,
        "many": many,
        "few_bytes": few_bytes,
        "many_bytes": many_bytes,
        "peak_memory_ratio": many_bytes / few_bytes if few_bytes and many_bytes else None,
    }
