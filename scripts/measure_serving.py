"""Measure the overhead of a server: its throughput against that of the same reranker in this process.

    python scripts/measure_serving.py [MODEL] --cpus 2                  marcorank serve
    python scripts/measure_serving.py [MODEL] --cpus 2 --server ray     one replica of Ray Serve

The requests have 20 passages of 95 to 414 tokens, as in `marcorank bench`, and 16 run concurrently. Both sides take
turns, so that a machine that is slow for a minute is slow for both. The client, and Ray's proxy, share the cores of the
server. Needs `pip install 'marcorank[remote,serve]'`, or `'marcorank[ray]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

import httpx

from marcorank import Reranker
from marcorank.bench.workload import QUERY, Workload, pair_lengths

if TYPE_CHECKING:
    from collections.abc import Iterator

CANDIDATES = 20
AT_ONCE = 16


def main() -> None:
    """Start a server, measure, and print one line per round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bundled")
    parser.add_argument("--server", choices=SERVERS, default="process")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cpus", type=int, default=2, help="threads of the reranker, and CPUs of a replica")
    parser.add_argument("--requests", type=int, default=48, help="in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    settings = {"model": options.model, "backend": options.backend, "precision": options.precision}
    with SERVERS[options.server](settings, options.cpus) as url:
        asyncio.run(measure(url, settings | {"threads": options.cpus}, options.requests, options.rounds))


@contextmanager
def process(settings: dict[str, str], cpus: int) -> Iterator[str]:
    """Start `marcorank serve` on a free port; gives its address."""
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "marcorank", "serve", "--port=0", f"--threads={cpus}", "--quiet", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603
        try:
            url = ""
            for line in server.stderr or ():
                if found := re.search(r" at (http://\S+)", line):
                    url = found[1]
                if "Ready." in line:
                    break
            else:
                sys.exit(f"The server did not start: {line}")
            yield url
        finally:
            server.terminate()


@contextmanager
def replica(settings: dict[str, str], cpus: int) -> Iterator[str]:
    """Start Ray and the server on a free port; gives its address."""
    import ray
    from ray import serve

    from marcorank.ray import build_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logging.disable(logging.INFO)
    ray.init("local", include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_app(settings | {"num_cpus": cpus, "max_replicas": 1}))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


SERVERS = {"process": process, "ray": replica}


async def measure(url: str, settings: dict[str, object], count: int, rounds: int) -> None:
    """Measure both sides in turn."""
    workload = Workload(str(settings["model"]))
    requests = [workload.passages(pair_lengths(CANDIDATES, 95, 414)) for _ in range(count)]
    limits = httpx.Limits(max_connections=AT_ONCE)
    with Reranker(**settings).warm_up() as reranker:  # type: ignore[arg-type]
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None) as client:  # noqa: S113
            turn = asyncio.Semaphore(AT_ONCE)

            async def here(passages: list[str]) -> dict[int, float]:
                async with turn:
                    ranking = await reranker.arank(QUERY, passages)
                return {one.index: one.logit for one in ranking}

            async def there(passages: list[str]) -> dict[int, float]:
                body = {"query": QUERY, "texts": passages, "raw_scores": True, "truncate": True}
                async with turn:
                    response = await client.post("/rerank", json=body)
                return {one["index"]: one["score"] for one in response.raise_for_status().json()}

            rates: dict[str, list[float]] = {"in process": [], "server": []}
            off_by = 0.0
            for number in range(rounds + 1):
                answers = []
                for name, side in zip(rates, (here, there), strict=True):
                    begin = time.perf_counter()
                    answers.append(await asyncio.gather(*map(side, requests)))
                    if number:  # the first round warms up
                        rates[name].append(count * CANDIDATES / (time.perf_counter() - begin))
                for one, other in zip(*answers, strict=True):
                    off_by = max(off_by, *(abs(one[index] - other[index]) for index in one))
                if number:
                    print(f"round {number}: " + ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items()))
    own, served = (median(rate) for rate in rates.values())
    print(f"medians, passages/s: in process {own:.1f}, server {served:.1f}: {served / own:.0%}; off by {off_by:.1e}")


if __name__ == "__main__":
    main()
