"""One call of a reranker on its way: what it asks for, and the steps of one that nobody lends a thread to."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from marcorank._calls.cache import join, split
from marcorank._inference.scorer import CrossEncoderScorer, PassageScores, StartingScorer
from marcorank.errors import ScoreError
from marcorank.ranking import Ranking, check_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from marcorank._calls.cache import ScoreCache
    from marcorank._calls.threads import Threads
    from marcorank._inference.scorer import Request, RequestScorer, Submission


# What no future can hold as an outcome of its own.
_UNFIT = (StopIteration, CancelledError, asyncio.CancelledError)


class Wanted:
    """The passages of one request, each different one once, and what is known of them."""

    def __init__(self, request: Request, cache: ScoreCache | None) -> None:
        self.query, self._passages = request
        self._cache = cache
        self._distinct = list(dict.fromkeys(self._passages))
        self._known = {} if cache is None else cache.find(self.query, self._distinct)
        self.asked = [passage for passage in self._distinct if passage not in self._known]

    def answer(self, scored: PassageScores, model: str) -> PassageScores:
        """Return the scores of all passages, in input order, from those of the passages that were asked for.

        Raises:
            ScoreError: A logit is not finite.
        """
        if self._known:
            known = self._known | dict(zip(self.asked, split(scored), strict=True))
            scores = join([known[passage] for passage in self._passages])
        else:
            place_of = {passage: place for place, passage in enumerate(self.asked)}
            scores = scored.take([place_of[passage] for passage in self._passages])
        check_finite(scores.logits, model=model)
        if self._cache is not None:
            self._cache.keep(self.query, self.asked, split(scored))
        return scores


def asked_of(wanted: Sequence[Wanted]) -> list[Request]:
    """Return the requests that are left to score, without those of which everything is known."""
    return [(one.query, one.asked) for one in wanted if one.asked]


def answers(wanted: Sequence[Wanted], scored: Iterable[PassageScores], model: str) -> list[PassageScores]:
    """Return the scores of each request; `scored` are those of the requests that ask for something."""
    left = iter(scored)
    return [one.answer(next(left) if one.asked else PassageScores.empty(), model) for one in wanted]


@dataclass(frozen=True, slots=True)
class Work:
    """What a call is to do.

    Attributes:
        requests: What was asked.
        cache: What is known already.
        model: Name of the model, for messages.
        load: Returns the scorer.
        rank: Makes rankings of the scores of the requests.
    """

    requests: Sequence[Request]
    cache: ScoreCache | None
    model: str
    load: Callable[[], RequestScorer]
    rank: Callable[[Sequence[PassageScores]], list[Ranking]]


class Call(Future[list[Ranking]]):
    """One call that waits for its rankings and is done by others.

    Each step runs in a thread of the reranker and ends where it would have to wait for the engine. So calls wait
    there side by side, in common batches, and none of it needs an event loop, which may be busy or closed.

    Attributes:
        working: Whether a thread is in a step of it.
    """

    def __init__(self, threads: Threads, work: Work) -> None:
        super().__init__()
        self.working = False
        self._threads = threads
        self._model = work.model
        self._work: Work | None = work
        self._wanted: list[Wanted] = []
        self._submission: Submission | None = None
        self._started: Future[list[PassageScores]] | None = None

    def begin(self) -> None:
        """Take the first step."""
        self._go_on(self._look_up)

    def cancel(self) -> bool:
        """Drop what has not been scored yet."""
        cancelled = super().cancel()
        if cancelled:
            self._drop()
        return cancelled

    def _go_on(self, step: Callable[[], None]) -> None:
        if self.done():
            return
        try:
            self._threads.submit(partial(self._take, step))
        except RuntimeError as error:  # the interpreter ends, or the reranker was closed behind a cancelled call
            self._fail(error)

    def _take(self, step: Callable[[], None]) -> None:
        if self.done():
            return
        self.working = True
        try:
            step()
        except BaseException as error:  # noqa: BLE001 -- it belongs to who waits
            self._fail(error)
        finally:
            self.working = False

    def _look_up(self) -> None:
        work = self._work
        if work is None:
            return
        self._wanted = [Wanted(request, work.cache) for request in work.requests]
        asked = asked_of(self._wanted)
        scorer = work.load() if asked else None
        if isinstance(scorer, CrossEncoderScorer):
            self._submission = scorer.submit(asked)
            if self.done():  # cancelled before there was anything to drop
                self._drop()
            self._wait_for_room()
        elif isinstance(scorer, StartingScorer):
            self._started = started = scorer.begin(asked)
            if self.done():
                self._drop()
            started.add_done_callback(lambda _: self._go_on(self._collect))
        else:
            self._end([] if scorer is None else scorer.score_requests(asked))

    def _wait_for_room(self) -> None:
        submission = self._submission
        if submission is None:
            return
        room = submission.room()
        if room.done():
            self._advance()
        else:
            room.add_done_callback(lambda _: self._go_on(self._advance))

    def _advance(self) -> None:
        submission = self._submission
        if submission is None:
            return
        if submission.advance():
            # Behind the first steps of other calls, which may be short.
            self._go_on(self._wait_for_room)
        else:
            submission.logits.add_done_callback(lambda _: self._go_on(self._finish))

    def _finish(self) -> None:
        submission = self._submission
        if submission is None:
            return
        job = submission.logits
        # Not raised: a traceback through this frame would keep the model.
        error = job.exception()
        if error is None:
            self._end(submission.scores(job.result()))
        else:
            self._fail(error)

    def _collect(self) -> None:
        started = self._started
        if started is None:
            return
        error = started.exception()
        if error is None:
            self._end(started.result())
        else:
            self._fail(error)

    def _end(self, scored: Sequence[PassageScores]) -> None:
        work, wanted = self._work, self._wanted
        self._drop()
        if work is None:
            return
        rankings = work.rank(answers(wanted, scored, work.model))
        with suppress(InvalidStateError):
            self.set_result(rankings)

    def _fail(self, error: BaseException) -> None:
        self._drop()
        if isinstance(error, _UNFIT):
            # asyncio would take them for something else, and never wake who waits.
            told = ScoreError(f"Model `{self._model}` raised {type(error).__name__}: {error}")
            told.__cause__ = error
            error = told
        with suppress(InvalidStateError):
            self.set_exception(error)

    def _drop(self) -> None:
        # The scheduler knows this call by its callbacks, and so does an event loop: to forget what was at work here is
        # also to break cycles.
        self._work, self._wanted = None, []
        submission, self._submission = self._submission, None
        started, self._started = self._started, None
        if submission is not None:
            submission.cancel()
        if started is not None:
            started.cancel()
