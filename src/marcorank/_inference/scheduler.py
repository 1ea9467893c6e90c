"""Concurrent callers, one model: what waits is merged into common batches whenever the engine is free.

A call is a `Job`. Jobs wait in the order of their arrival; a round takes some of the sequences of each, so that a
short call behind a long one waits for a part of that only. The threads that run batches take them from the round one
by one, and whichever finds none left forms the next round: nobody waits for a round to be complete.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from marcorank._inference.batching import plan_batches
from marcorank.errors import ClosedError, MarcoRankError, ScoreError
from marcorank.ranking import check_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from marcorank._inference.backends.base import Backend
    from marcorank._inference.pairs import TokenBatch, Window

    Pair: TypeAlias = tuple[NDArray[np.int32], Window]
    MakeBatch: TypeAlias = Callable[[Sequence[Pair]], TokenBatch]
    # A part of a job, and the place of a pair in it.
    _Row: TypeAlias = "tuple[_Part, int]"

# A round is several batches, so that the last of them, which may be small, weighs little.
_BATCHES_IN_A_ROUND = 4
# On a CPU a batch may be a single pair. Tenths of a second of work for a small model on two cores.
_LEAST_ROUND_TOKENS = 4096
# Enough for a few rounds, few enough to be tokenised in some milliseconds.
_LEAST_SLICE_TOKENS = 16384
# What a call takes of a round before the next one has its turn, as a part of the round.
_PART_OF_A_CALL = 4
# How much may wait, in rounds: of one call, and of all. The rest stays text, which is smaller.
_ROUNDS_OF_A_CALL = 4
_ROUNDS_OF_ALL = 32


class Scheduler:
    """Runs the batches of several scorers and threads on a backend that they share.

    Its threads begin with the first work and end with the last user of this object.

    Attributes:
        backend: The engine.
        slice_tokens: How much of a long call should be handed over at a time.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._engine = _Engine(backend)
        self.slice_tokens = max(2 * backend.max_padded_tokens, _LEAST_SLICE_TOKENS)
        # The threads know the inner object only, else they would keep this one alive.
        weakref.finalize(self, self._engine.stop)

    def open(self, make_batch: MakeBatch) -> Job:
        """Begin a call.

        Args:
            make_batch: Makes a token batch of pairs. Batches mix the pairs of several calls, so all who share a
                backend have to make theirs alike.
        """
        return Job(self._engine, make_batch)


class Job(Future["NDArray[np.float32]"]):
    """One call: a future of the logits of all pairs that were added, in the order in which they were.

    Who opened a job has to `finish` or `cancel` it; cancelling drops what has not run yet.
    """

    def __init__(self, engine: _Engine, make_batch: MakeBatch) -> None:
        super().__init__()
        self._engine = engine
        # What follows is guarded by the lock of the engine, and read there.
        self.make_batch = make_batch
        self.parts: list[_Part] = []
        self.waiting_parts: deque[_Part] = deque()
        self.waiting_tokens = 0
        self.left = 0
        self.complete = False

    def room(self) -> Future[None]:
        """Return a future that is done when more may be added; it waits while too much waits already."""
        room: Future[None] = Future()
        freed: Future[None] | None = room
        engine = self._engine
        with engine.lock:
            if not self.done() and (engine.line or engine.turn or not engine.has_room(self)):
                engine.line[self] = room
                freed = engine.let_in()
        _let_go(freed)
        return room

    def add(self, pairs: Sequence[Pair], lengths: NDArray[np.int64]) -> None:
        """Hand over pairs, each with the tokens in its sequence. Shape of `lengths`: (pairs,), int64.

        Raises:
            ClosedError: The scheduler has ended.
        """
        part = _Part(self, pairs, lengths)
        engine = self._engine
        with engine.lock:
            if engine.stopping:
                raise ClosedError("The model was closed while passages waited for it.")
            if self.done():
                return
            self.parts.append(part)
            self.waiting_parts.append(part)
            if len(self.waiting_parts) == 1:
                engine.queue[self] = None
            self.waiting_tokens += part.waiting_tokens
            self.left += len(pairs)
            engine.waiting_tokens += part.waiting_tokens
            engine.wake(len(pairs))
            freed = engine.let_in(after=self)
        _let_go(freed)

    def finish(self) -> None:
        """Say that nothing more will be added."""
        with self._engine.lock:
            self.complete = True
            freed = self._engine.let_in(after=self)
            ended = not self.left
        _let_go(freed)
        if ended:
            self.end()

    def cancel(self) -> bool:
        """Drop what has not run yet. Returns False where the logits were there already."""
        cancelled = super().cancel()
        if cancelled:
            self._engine.drop([self])
        return cancelled

    def end(self) -> None:
        """Hand out the logits."""
        _settle(self, np.concatenate([np.empty(0, dtype=np.float32), *(part.logits for part in self.parts)]))


class _Part:
    """Pairs that were added at once.

    A round takes from one part of a job only. So the batches of a call that is alone are the same each time, however
    far it had come with the next part.

    Attributes:
        job: The call.
        pairs: Let go of once all are scored.
        lengths: Tokens in each sequence. Shape: (pairs,), int64.
        logits: Shape: (pairs,), float32.
        waiting_tokens: Of the pairs that no round has taken.
        left: How many pairs have no logit yet.
    """

    def __init__(self, job: Job, pairs: Sequence[Pair], lengths: NDArray[np.int64]) -> None:
        self.job = job
        self.pairs = pairs
        self.lengths = lengths
        self.logits = np.empty(len(pairs), dtype=np.float32)
        self.left = len(pairs)
        self._order = np.argsort(-lengths, kind="stable")
        self._ends = np.cumsum(lengths[self._order])
        self._taken = 0
        self.waiting_tokens = int(lengths.sum())

    def take(self, tokens: int) -> NDArray[np.int64]:
        """Return the places of the longest pairs that wait, as many as fit, and one at least."""
        before = int(self._ends[-1]) - self.waiting_tokens
        start = self._taken
        self._taken = max(int(np.searchsorted(self._ends, before + tokens, side="right")), start + 1)
        self.waiting_tokens = int(self._ends[-1] - self._ends[self._taken - 1])
        return self._order[start : self._taken]


class _Engine:
    """What the threads of a scheduler share.

    `lock` guards everything but `stopping`. No future is settled while it is held: that runs code of others.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.round_tokens = max(_BATCHES_IN_A_ROUND * backend.max_padded_tokens, _LEAST_ROUND_TOKENS)
        self.lock = threading.Lock()
        # Jobs with parts that wait.
        self.queue: OrderedDict[Job, None] = OrderedDict()
        self.waiting_tokens = 0
        # What is left of the current round: batches of parts and places in them.
        self.round: deque[list[_Row]] = deque()
        # Who waits for room, and who has been let in from there and has not added yet.
        self.line: OrderedDict[Job, Future[None]] = OrderedDict()
        self.turn: Job | None = None
        self.threads: list[threading.Thread] = []
        self.idle = 0
        # Unlike a lock it may be used from a finalizer, which can interrupt any line of this file.
        self.alarm: SimpleQueue[None] = SimpleQueue()
        self.stopping = False
        self._pid = os.getpid()

    def wake(self, count: int) -> None:
        """Let threads look for work, at most as many as there are pairs for."""
        while len(self.threads) < self.backend.parallel_batches:
            thread = threading.Thread(target=self._work, name=f"marcorank-{self.backend.name}", daemon=True)
            thread.start()
            self.threads.append(thread)
        for _ in range(min(count, self.idle)):
            self.alarm.put(None)
            self.idle -= 1

    def has_room(self, job: Job) -> bool:
        """Whether a job may add to what waits."""
        return (
            self.waiting_tokens < _ROUNDS_OF_ALL * self.round_tokens
            and job.waiting_tokens < _ROUNDS_OF_A_CALL * self.round_tokens
        )

    def let_in(self, after: Job | None = None) -> Future[None] | None:
        """Return the future of the next in the line who may add, if nobody else has the turn.

        One at a time: what they will add is not known before.
        """
        if after is not None and after is self.turn:
            self.turn = None
        if self.turn is None:
            for job in self.line:
                if self.has_room(job):
                    self.turn = job
                    return self.line.pop(job)
        return None

    def drop(self, jobs: Collection[Job]) -> None:
        """Forget what has not run yet of jobs that are done. What the round holds of them is skipped."""
        freed: list[Future[None] | None] = []
        with self.lock:
            for job in jobs:
                if job in self.queue:
                    del self.queue[job]
                    self.waiting_tokens -= job.waiting_tokens
                job.waiting_parts.clear()
                job.waiting_tokens = 0
                job.parts.clear()
                freed += [self.line.pop(job, None), self.let_in(after=job)]
        for room in freed:
            _let_go(room)

    def stop(self) -> None:
        """End the threads; what still waits fails.

        Runs as a finalizer: in any thread and between any two lines, so it takes no lock.
        """
        if os.getpid() != self._pid:
            return  # the threads are those of the parent
        self.stopping = True
        for _ in self.threads:
            self.alarm.put(None)
        # A thread that lets go of the last user cannot wait for itself, nor the others for a lock that it holds.
        if threading.current_thread() not in self.threads:
            for thread in self.threads:
                thread.join()

    def _work(self) -> None:
        while not self.stopping:
            # Between two calls this frame holds nothing of a job, and so none of its users.
            if not self._run_batch():
                self.alarm.get()
        with self.lock:
            left = {*self.queue, *self.line}
            left.update(part.job for batch in self.round for part, _ in batch)
            self.round.clear()
        for job in left:
            _settle(job, ClosedError("The model was closed while passages waited for it."))
        self.drop(left)

    def _run_batch(self) -> bool:
        """Run one batch; False where there is none."""
        with self.lock:
            batch, freed = self._next_batch()
            if not batch:
                self.idle += 1
        _let_go(freed)
        if not batch:
            return False
        if not self._hand_out(batch, self._logits(batch)):
            # Only the job at fault is to fail.
            for job in {part.job: None for part, _ in batch}:
                rows = [row for row in batch if row[0].job is job]
                self._hand_out(rows, self._logits(rows))
                rows.clear()
            del job
        # The traceback of an error keeps the frames around it, which are not to keep the job that keeps the error.
        batch.clear()
        return True

    def _next_batch(self) -> tuple[list[_Row], Future[None] | None]:
        freed = None
        while self.round or self.queue:
            if not self.round:
                self._form_round()
                freed = freed or self.let_in()
            batch = [row for row in self.round.popleft() if not row[0].job.done()]
            if batch:
                return batch, freed
        return [], freed

    def _form_round(self) -> None:
        rows: list[_Row] = []
        lengths: list[NDArray[np.int64]] = []
        seen: list[Job] = []
        shares: Counter[Job] = Counter()
        room = self.round_tokens
        while self.queue and room > 0:
            job, _ = self.queue.popitem(last=False)
            part = job.waiting_parts[0]
            before = part.waiting_tokens
            places = part.take(self.round_tokens // _PART_OF_A_CALL)
            tokens = before - part.waiting_tokens
            room -= tokens
            shares[job] += tokens
            job.waiting_tokens -= tokens
            self.waiting_tokens -= tokens
            rows.extend((part, place) for place in places.tolist())
            lengths.append(part.lengths[places])
            if part.waiting_tokens:
                self.queue[job] = None
            else:
                job.waiting_parts.popleft()
                if job.waiting_parts:
                    seen.append(job)
        self.queue.update(dict.fromkeys(seen))
        plan = plan_batches(np.concatenate(lengths), self.backend.max_padded_tokens)
        if self.backend.max_padded_tokens == 1:
            # Nothing is merged, so calls that take little of the round need not wait for its longest sequences.
            plan.sort(key=lambda places: shares[rows[places[0]][0].job])
        self.round.extend([rows[place] for place in places.tolist()] for places in plan)

    def _logits(self, batch: list[_Row]) -> NDArray[np.float32] | BaseException:
        """Return one logit a row, or why there are none. Shape: (batch,), float32."""
        try:
            token_batch = batch[0][0].job.make_batch([part.pairs[place] for part, place in batch])
        except BaseException as error:  # noqa: BLE001 -- a fault of ours, for whoever waits; a dead thread serves nobody
            return error
        try:
            return check_shape(self.backend.logits(token_batch), count=len(batch), model=self.backend.name)
        except MarcoRankError as error:
            return error
        except BaseException as error:  # noqa: BLE001 -- each engine raises its own; a dead thread serves nobody
            return self._failure(batch, error)

    def _failure(self, batch: list[_Row], cause: BaseException) -> ScoreError:
        tokens = max(int(part.lengths[place]) for part, place in batch)
        error = ScoreError(
            f"The {self.backend.name} backend failed on a batch of {len(batch)} x {tokens} tokens on "
            f"{self.backend.device}: {cause}"
        )
        error.__cause__ = cause
        return error

    def _hand_out(self, batch: list[_Row], found: NDArray[np.float32] | BaseException) -> bool:
        """Settle what the batch completes; False where it failed and it is not known whose fault that is."""
        if isinstance(found, BaseException):
            jobs = {part.job for part, _ in batch}
            if len(jobs) > 1:
                return False
            for job in jobs:
                _settle(job, found)
            self.drop(jobs)
            return True
        ended: dict[Job, None] = {}
        with self.lock:
            for (part, place), logit in zip(batch, found.tolist(), strict=True):
                part.logits[place] = logit
                part.left -= 1
                part.job.left -= 1
                if not part.left:
                    part.pairs = ()
                if part.job.complete and not part.job.left:
                    ended[part.job] = None
        for job in ended:
            job.end()
        return True


def _let_go(room: Future[None] | None) -> None:
    if room is not None:
        room.set_result(None)


def _settle(job: Job, outcome: NDArray[np.float32] | BaseException) -> None:
    # Cancelled meanwhile, it has an outcome already.
    with suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            job.set_exception(outcome)
        else:
            job.set_result(outcome)
