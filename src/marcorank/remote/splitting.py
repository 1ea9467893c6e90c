"""Long requests in parts that a server takes, side by side, and joined again."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marcorank._inference.scorer import PassageScores
from marcorank.remote.asking import ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from marcorank._inference.scorer import Request
    from marcorank.remote.address import Server
    from marcorank.remote.connection import Pool
    from marcorank.remote.keys import Key


class _Part(NamedTuple):
    """Passages of one request that are asked for at once, from `start` to `end`."""

    request: int
    start: int
    end: int


async def score_all(
    pool: Pool, server: Server, key: Key | None, requests: Sequence[Request], *, limit: int
) -> list[PassageScores]:
    """Score the passages of each request; one answer a request, in their order. The first failure ends all.

    Args:
        pool: Has the HTTP client.
        server: Whom to ask.
        key: The key that it wants.
        requests: Queries with their passages.
        limit: Most passages that the server takes at once.

    Raises:
        RemoteError: The server did not answer; `errors` tells the kinds.
    """
    parts = [
        _Part(place, start, min(start + limit, len(passages)))
        for place, (_, passages) in enumerate(requests)
        for start in range(0, len(passages), limit)
    ]
    answers: dict[_Part, PassageScores] = {}
    left = iter(parts)

    async def work() -> None:
        for part in left:
            query, passages = requests[part.request]
            answers[part] = await ask(pool, server, key, query, passages[part.start : part.end])

    # No more than can run, so that others have their turn beside a long call.
    await _all(asyncio.create_task(work()) for _ in range(min(pool.parallel, len(parts))))
    scores = [PassageScores.empty() for _ in requests]
    for place, of_request in groupby(parts, key=lambda part: part.request):
        scores[place] = _joined([answers[part] for part in of_request])
    return scores


async def _all(tasks: Iterator[asyncio.Task[None]]) -> None:
    """Wait for all tasks. None outlives this: the first that fails takes the others along."""
    begun = list(tasks)
    try:
        await asyncio.gather(*begun)
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


def _joined(answers: Sequence[PassageScores]) -> PassageScores:
    truncated = [answer.truncated for answer in answers if answer.truncated is not None]
    return PassageScores(
        np.concatenate([answer.logits for answer in answers]),
        np.concatenate(truncated) if len(truncated) == len(answers) else None,
    )
