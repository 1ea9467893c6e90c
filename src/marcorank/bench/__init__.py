"""Measures how fast this machine reranks with every installed backend, precision and peer.

`marcorank bench --json FILE` runs it. Its results can be read and drawn:

    from marcorank.bench import Results

    Results.read_json("today.json").plot()

`running.run_bench` starts a process for each contestant (`process`, `child`), gives all of them the same request
(`workload`) in turn, and returns `records.Results`. What runs in those processes is in `contestants` (marcorank and its
peers), `limit` (large matrix products) and `scenarios` (concurrent requests, lag of an event loop).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marcorank.bench.records import Results

__all__ = ["Results"]


def __getattr__(name: str) -> object:
    if name != "Results":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from marcorank.bench.records import Results

    return Results
