"""Splits long requests into parts that the server accepts, sends them in parallel, and joins the results."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marcorank._inference.scorer import PassageScores
from marcorank.remote.client import request_scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from marcorank._inference.scorer import Request
    from marcorank.remote.address import Server
    from marcorank.remote.connection import Pool
    from marcorank.remote.keys import Key


class _Part(NamedTuple):
    """Passages `start` to `end` of one request, sent together."""

    request: int
    start: int
    end: int


async def score_all(
    pool: Pool, server: Server, key: Key | None, requests: Sequence[Request], *, limit: int
) -> list[PassageScores]:
    """Score the passages of each request; returns one result per request, in order. The first failure cancels the rest.

    Args:
        pool: Holds the HTTP client.
        server: The server.
        key: API key of the server.
        requests: Queries and their passages.
        limit: Maximum number of passages per HTTP request.

    Raises:
        RemoteError: The server sent no valid response; see `errors` for the subclasses.
    """
    parts = [
        _Part(position, start, min(start + limit, len(passages)))
        for position, (_, passages) in enumerate(requests)
        for start in range(0, len(passages), limit)
    ]
    results: dict[_Part, PassageScores] = {}
    waiting = iter(parts)

    async def work() -> None:
        for part in waiting:
            query, passages = requests[part.request]
            results[part] = await request_scores(pool, server, key, query, passages[part.start : part.end])

    # No more tasks than can run, so that a long call does not block others.
    await _all(asyncio.create_task(work()) for _ in range(min(pool.parallel, len(parts))))
    scores = [PassageScores.empty() for _ in requests]
    for position, request_parts in groupby(parts, key=lambda part: part.request):
        scores[position] = _joined([results[part] for part in request_parts])
    return scores


async def _all(tasks: Iterator[asyncio.Task[None]]) -> None:
    """Wait for all tasks; cancel the others if one fails, and return only when all have ended."""
    started = list(tasks)
    try:
        await asyncio.gather(*started)
    finally:
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)


def _joined(parts: Sequence[PassageScores]) -> PassageScores:
    truncated = [part.truncated for part in parts if part.truncated is not None]
    return PassageScores(
        np.concatenate([part.logits for part in parts]),
        np.concatenate(truncated) if len(truncated) == len(parts) else None,
    )
