"""The model behind a reranker: loaded when it is first needed, with its score cache and its tasks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from marcorank._calls.cache import ScoreCache
from marcorank._calls.failures import timeout_error
from marcorank._calls.requests import DeduplicatedRequest
from marcorank._calls.tasks import Tasks
from marcorank._inference.scorer import PassageScores, score_steps
from marcorank._steps import Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marcorank._inference.scorer import Request, RequestScorer
    from marcorank._steps import Steps

T = TypeVar("T")


class LazyModel:
    """Scores requests with one model.

    Args:
        name: Of the model, for messages.
        load: Returns its scorer.
        cache_size: How many passages are remembered with their scores.
        max_workers: How many threads may run steps of its calls at once.
    """

    def __init__(self, name: str, load: Callable[[], RequestScorer], *, cache_size: int, max_workers: int) -> None:
        self.name = name
        self.closed = False
        self._load = load
        self._loading = threading.Lock()
        self._scorer: RequestScorer | None = None
        self._cache_size = cache_size
        self._cache = ScoreCache(cache_size) if cache_size else None
        self._tasks = Tasks(max_workers)

    def scorer(self) -> RequestScorer:
        """Return the scorer; the first call loads it."""
        with self._loading:
            scorer = self._scorer
            if scorer is None:
                scorer = self._load()
                # Closed meanwhile, this last call is the only one that needs it.
                self._scorer = None if self.closed else scorer
            return scorer

    def score(self, requests: Sequence[Request]) -> Steps[list[PassageScores]]:
        """Score requests: each different passage once, and only those whose score is not cached."""
        deduplicated = [DeduplicatedRequest(request, self._cache) for request in requests]
        uncached = [(request.query, request.uncached) for request in deduplicated if request.uncached]
        scored = iter((yield from score_steps(self.scorer(), uncached)) if uncached else ())
        return [
            request.merge(next(scored) if request.uncached else PassageScores.empty(), self.name)
            for request in deduplicated
        ]

    def limited(self, steps: Steps[T], seconds: float | None, *, in_thread: bool = False) -> Steps[T]:
        """Run steps in a thread of ours where the caller must not be blocked or may give up, else in the caller's.

        Raises:
            RerankTimeoutError: The time is over; what has not been scored by then is dropped.
        """
        if seconds is None and not in_thread:
            return (yield from steps)
        task = self._tasks.start(steps)
        try:
            yield Wait(task, seconds)
            if task.done():
                return task.result()
            raise timeout_error(self.name, seconds)
        finally:
            self._tasks.abandon(task)
            # It keeps its error, and that this frame.
            del task

    def close(self) -> None:
        """Finish the calls under way, and let go of the model."""
        self.closed = True
        self._tasks.close()
        with self._loading:
            self._scorer = None
        if self._cache is not None:
            self._cache = ScoreCache(self._cache_size)
