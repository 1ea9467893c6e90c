"""The model of a reranker: loaded at the first use, with its score cache and its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from marcorank._calls.cache import ScoreCache
from marcorank._calls.failures import timeout_error
from marcorank._calls.requests import DeduplicatedRequest
from marcorank._calls.tasks import Tasks
from marcorank._inference.scorer import CrossEncoderScorer, PassageScores, score_steps
from marcorank._once import Once
from marcorank._steps import Wait
from marcorank.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marcorank._calls.failures import TimeLimit
    from marcorank._inference.backends.base import Backend
    from marcorank._inference.scorer import Request, RequestScorer
    from marcorank._steps import Steps

T = TypeVar("T")


class LazyModel:
    """Scores requests with one model.

    Args:
        name: Of the model, for messages.
        load: Returns its scorer.
        is_custom: Whether it is a scorer of the user.
        is_server: Whether it is a server, for which blank passages are not scored.
        cache_size: Maximum number of passages that are cached with their scores.
        max_workers: Maximum number of threads that run steps of its calls.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], RequestScorer],
        *,
        is_custom: bool,
        is_server: bool,
        cache_size: int,
        max_workers: int,
    ) -> None:
        self.name = name
        self._is_custom = is_custom
        self._is_server = is_server
        self.closed = False
        self._load = load
        self._loading = Once()
        self._scorer: RequestScorer | None = None
        self._cache_size = cache_size
        self._cache = ScoreCache(cache_size) if cache_size else None
        self._tasks = Tasks(max_workers)

    @property
    def backend(self) -> Backend | None:
        """What runs the model; None before it is loaded, and for a server or a scorer of the user."""
        return self._scorer.scheduler.backend if isinstance(self._scorer, CrossEncoderScorer) else None

    def _loaded_scorer(self) -> RequestScorer:
        """Return the scorer; the first call loads it, and others wait for it."""
        return self._loading.get(None, lambda: self._scorer, self._load_and_keep)

    def _load_and_keep(self) -> RequestScorer:
        self._scorer = scorer = self._load()
        # `close` sets both in the other order. If closed meanwhile, only this last call needs the scorer.
        if self.closed:
            self._scorer = None
        return scorer

    def score(self, requests: Sequence[Request]) -> Steps[list[PassageScores]]:
        """Score the distinct passages of each request, except those whose scores are cached."""
        deduplicated = [DeduplicatedRequest(request, self._cache, is_server=self._is_server) for request in requests]
        uncached = [(request.query, request.uncached) for request in deduplicated if request.uncached]
        scored: Sequence[PassageScores] = ()
        if uncached:
            scorer = self._scorer
            if scorer is None:
                scorer = self._loaded_scorer()
            scored = yield from score_steps(scorer, uncached)
        remaining = iter(scored)
        return [
            request.merge(
                next(remaining) if request.uncached else PassageScores.empty(), self.name, is_custom=self._is_custom
            )
            for request in deduplicated
        ]

    def run(
        self,
        steps: Steps[T],
        limit: TimeLimit | None,
        *,
        may_block: bool = True,
        at_work: Callable[[], LazyModel] | None = None,
    ) -> Steps[T]:
        """Run steps in the calling thread, or as a task if that thread must not be blocked or may give up.

        Args:
            steps: The steps.
            limit: How long they may take; None for no limit.
            may_block: Whether they may run in the calling thread.
            at_work: Returns the model that is at work, for the error; None if it is always this one.

        Raises:
            ClosedError: The reranker was closed.
            RerankTimeoutError: The time is over; what has not been scored by then is dropped.
        """
        self.check_open()
        if limit is None and may_block:
            return (yield from steps)
        task = self._tasks.start(steps)
        try:
            yield Wait(task, None if limit is None else limit.seconds)
            if limit is None or task.done():
                return task.result()
            late = self if at_work is None else at_work()
            raise timeout_error(late.name, limit, loading=late._scorer is None)  # noqa: SLF001 -- of this class
        finally:
            self._tasks.abandon(task)
            # It refers to its error, whose traceback refers to this frame.
            del task

    def check_open(self) -> None:
        """Check that the model was not closed.

        Raises:
            ClosedError: It was.
        """
        if self.closed:
            raise ClosedError(f"The reranker of `{self.name}` was closed; make a new Reranker.")

    def close(self) -> None:
        """Finish the running calls and release the model."""
        self.closed = True
        self._tasks.close()
        self._scorer = None
        if self._cache is not None:
            self._cache = ScoreCache(self._cache_size)
