"""Continuous batching: pairs of concurrent calls are merged into shared batches whenever the backend is free.

A call is a `Job`. Jobs are queued in order of arrival, and a round takes some sequences of each, so that a short call
behind a long one waits for only a part of it. Worker threads take the batches of a round one by one; the thread that
finds none left forms the next round, without waiting for the running batches.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, OrderedDict, deque
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from traceback import walk_tb
from typing import TYPE_CHECKING

import numpy as np

from marcorank._exits import DaemonThread
from marcorank._forks import keep_in_child
from marcorank._inference.batching import MAX_PADDING, plan_batches
from marcorank._inference.parts import Part
from marcorank.errors import ClosedError, MarcoRankError, ScoreError
from marcorank.ranking import check_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from marcorank._inference.backends.base import Backend
    from marcorank._inference.pairs import TokenBatch
    from marcorank._inference.parts import Pair

    MakeBatch: TypeAlias = Callable[[Sequence[Pair]], TokenBatch]
    _Part: TypeAlias = "Part[Job]"
    # A part of a job, and the index of a pair in it.
    _Row: TypeAlias = tuple[_Part, int]

# What may raise an error in a forward pass.
_PACKAGES_OF_A_PASS = {"marcorank", "numpy", "onnxruntime", "openvino", "tokenizers"}
# Several, so that the last batch of a round, which may be small, matters little.
_BATCHES_PER_ROUND = 4
# For backends that run each pair alone: a few tenths of a second of work for a small model on two cores.
_MIN_ROUND_TOKENS = 4096
# Enough for a few rounds, and few enough to be tokenised in milliseconds.
_MIN_SLICE_TOKENS = 16384
# A job fills at most a quarter of a round before the next job in the queue is served.
_SHARES_PER_ROUND = 4
# Capacity of the queue in rounds, per job and in total. Passages beyond it are kept as text, which is smaller.
_MAX_ROUNDS_PER_JOB = 4
_MAX_ROUNDS = 32


class Scheduler:
    """Runs the batches of all scorers and threads that share a backend.

    The worker threads start with the first job and stop when the scheduler is garbage-collected.

    Attributes:
        backend: The backend that runs the batches.
        slice_tokens: How many tokens of a long call to add at a time.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        keep_in_child(backend)
        self._shared = _SharedState(backend)
        self.slice_tokens = max(2 * backend.max_padded_tokens, _MIN_SLICE_TOKENS)
        # The threads refer only to the state, else they would keep the scheduler alive.
        weakref.finalize(self, self._shared.stop).atexit = False  # see `DaemonThread`

    def open(self, make_batch: MakeBatch) -> Job:
        """Start a job.

        Args:
            make_batch: Builds a token batch from pairs. A batch mixes the pairs of several jobs, so the functions of
                all jobs must be equivalent.
        """
        return Job(self._shared, make_batch)


class Job(Future["NDArray[np.float32]"]):
    """One call: a future of the logits of all added pairs, in the order in which they were added.

    Every job ends with an `add` that is the last, or with `cancel`, which drops the pairs that have not run yet.
    """

    def __init__(self, state: _SharedState, make_batch: MakeBatch) -> None:
        super().__init__()
        self._shared = state
        # The following attributes are guarded by the lock of the state.
        self.make_batch = make_batch
        self.parts: list[_Part] = []
        self.waiting_parts: deque[_Part] = deque()
        self.waiting_tokens = 0
        self.unscored = 0
        self.complete = False

    def admission(self) -> Future[None]:
        """Return a future that is done once there is capacity to add more pairs."""
        admission: Future[None] = Future()
        state = self._shared
        with state.lock:
            waits = not self.done() and bool(
                state.admission_queue or state.admitted_job or not state.has_capacity(self)
            )
            if waits:
                state.admission_queue[self] = admission
        if waits:
            state.admit_next()
        else:
            admission.set_result(None)
        return admission

    def add(self, pairs: Sequence[Pair], lengths: NDArray[np.int64], *, last: bool) -> None:
        """Queue pairs.

        Args:
            pairs: May be empty.
            lengths: Number of tokens in each sequence. Shape: (pairs,), int64.
            last: Whether no more pairs will be added.

        Raises:
            ClosedError: The scheduler has stopped.
        """
        part = Part(self, pairs, lengths)
        state = self._shared
        failure: Exception | None = None
        borrowed = False
        try:
            with state.lock:
                if state.stopping:
                    raise ClosedError("The model was closed while passages were waiting to be scored.")
                if self.done():
                    return
                self.complete = last
                if pairs:
                    self.parts.append(part)
                    self.unscored += len(pairs)
                    borrowed = last and len(pairs) == 1 and state.lends_a_turn()
                    state.idle -= int(borrowed)
                    if not borrowed:
                        state.enqueue(part)
                if state.admitted_job is self:
                    state.admitted_job = None
                ended = last and not self.unscored
            if state.admission_queue:
                state.admit_next()
            if ended:
                self.settle()
            if borrowed:
                failure = state.run_pair(part)
        finally:
            if borrowed:
                state.return_turn()
        try:
            if failure is not None and not self._fails_again(part) and _may_be_of_signal_handler(failure):
                raise failure
        finally:
            del failure  # its traceback refers to this frame

    def _fails_again(self, part: _Part) -> bool:
        """Run a pair again, in a worker, and return whether it fails there too."""
        with self._shared.lock:
            if self._shared.stopping:
                return False
            self._shared.enqueue(part)
        with suppress(CancelledError):
            return self.exception() is not None
        return True

    def cancel(self) -> bool:
        """Drop the pairs that have not run yet. Returns False if the job had already ended."""
        cancelled = super().cancel()
        if cancelled:
            self._shared.drop([self])
        return cancelled

    def settle(self, error: BaseException | None = None) -> None:
        """Set the logits, or an error, as the outcome; a job that was cancelled meanwhile has one already."""
        logits = np.concatenate([np.empty(0, dtype=np.float32), *(part.logits for part in self.parts)])
        # They refer to the job: such a cycle would keep the model alive until the garbage collector runs.
        self.parts.clear()
        with suppress(InvalidStateError):
            if error is None:
                self.set_result(logits)
            else:
                self.set_exception(error)


def _may_be_of_signal_handler(error: Exception) -> bool:
    """Return whether a signal handler, which runs in the middle of any line of the main thread, may have raised it."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return (
        threading.current_thread() is threading.main_thread()
        and modules[-1].partition(".")[0] not in _PACKAGES_OF_A_PASS
    )


class _SharedState:
    """The state that the threads of a scheduler share.

    `lock` guards everything but `stopping`. No future is resolved while it is held, because that runs callbacks.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.round_tokens = max(_BATCHES_PER_ROUND * backend.max_padded_tokens, _MIN_ROUND_TOKENS)
        self.lock = threading.Lock()
        # Jobs with waiting parts.
        self.queue: OrderedDict[Job, None] = OrderedDict()
        self.waiting_tokens = 0
        # Remaining batches of the current round.
        self.round: deque[list[_Row]] = deque()
        # Jobs that wait for capacity, and the one that was admitted last and has not added its pairs yet.
        self.admission_queue: OrderedDict[Job, Future[None]] = OrderedDict()
        self.admitted_job: Job | None = None
        self.threads: list[threading.Thread] = []
        self.idle = 0
        # Unlike a lock, it is safe in a finalizer, which can interrupt any line of this file.
        self.wakeups: SimpleQueue[None] = SimpleQueue()
        self.stopping = False
        self._pid = os.getpid()

    def lends_a_turn(self) -> bool:
        """Whether the calling thread may run a pair in place of an idle worker; the caller holds the lock.

        Two hand-overs between threads can take longer than a pair. An engine in a daemon thread that is not ours would
        crash the process if it ended meanwhile.
        """
        return (
            self.backend.runs_in_callers
            and self.idle > 0
            and not self.queue
            and not self.round
            and not threading.current_thread().daemon
        )

    def return_turn(self) -> None:
        """End what `lends_a_turn` allowed: a worker is woken for what came meanwhile, or is idle again."""
        with self.lock:
            if self.queue or self.round:
                self.wakeups.put(None)
            else:
                self.idle += 1

    def run_pair(self, part: _Part) -> Exception | None:
        """Run the only pair of a job in this thread; return what went wrong."""
        try:
            found = self.backend.logits(part.job.make_batch(part.pairs))
            logits = check_shape(found, count=1, model=self.backend.name)
        except Exception as error:  # noqa: BLE001 -- engines raise anything
            return error
        self._deliver([(part, 0)], logits)
        return None

    def enqueue(self, part: _Part) -> None:
        """Queue the pairs of a part and wake workers for them; the caller holds the lock."""
        job = part.job
        job.waiting_parts.append(part)
        if len(job.waiting_parts) == 1:
            self.queue[job] = None
        job.waiting_tokens += part.waiting_tokens
        self.waiting_tokens += part.waiting_tokens
        if len(self.threads) < self.backend.parallel_batches:
            self.start_threads()
        for _ in range(min(len(part.pairs), self.idle)):
            self.wakeups.put(None)
            self.idle -= 1

    def start_threads(self) -> None:
        """Start the worker threads; the caller holds the lock."""
        while len(self.threads) < self.backend.parallel_batches:
            thread = DaemonThread(self._work, name=f"marcorank-{self.backend.name}", end=self._end)
            thread.start()
            self.threads.append(thread)

    def has_capacity(self, job: Job) -> bool:
        """Whether a job may add more pairs; the caller holds the lock."""
        return (
            self.waiting_tokens < _MAX_ROUNDS * self.round_tokens
            and job.waiting_tokens < _MAX_ROUNDS_PER_JOB * self.round_tokens
        )

    def admit_next(self) -> None:
        """Admit the job that has waited longest of those for which there is capacity.

        One job at a time, because its number of tokens is not known before it has added its pairs.
        """
        with self.lock:
            if self.admitted_job is not None:
                return
            job = next(filter(self.has_capacity, self.admission_queue), None)
            if job is None:
                return
            self.admitted_job = job
            admission = self.admission_queue.pop(job)
        admission.set_result(None)

    def drop(self, jobs: Collection[Job]) -> None:
        """Remove the waiting pairs of jobs that are done. Their pairs in the current round are skipped."""
        admissions: list[Future[None]] = []
        with self.lock:
            for job in jobs:
                if job in self.queue:
                    del self.queue[job]
                    self.waiting_tokens -= job.waiting_tokens
                job.waiting_parts.clear()
                job.waiting_tokens = 0
                job.parts.clear()
                if job is self.admitted_job:
                    self.admitted_job = None
                if job in self.admission_queue:
                    admissions.append(self.admission_queue.pop(job))
        for admission in admissions:
            admission.set_result(None)
        self.admit_next()

    def stop(self) -> None:
        """Stop the threads; waiting jobs fail.

        Runs as a finalizer, in any thread and between any two lines, so it must not take a lock.
        """
        if os.getpid() != self._pid:
            return  # the threads belong to the parent process
        self._end()
        # If a worker runs the finalizer, it cannot join itself, and the others may wait for a lock that it holds.
        if threading.current_thread() not in self.threads:
            for thread in self.threads:
                thread.join()

    def _end(self) -> None:
        self.stopping = True
        for _ in self.threads:
            self.wakeups.put(None)

    def _work(self) -> None:
        while not self.stopping:
            # Between batches this frame must not refer to a job, which would keep its callers alive.
            if not self._run_batch():
                self.wakeups.get()
        with self.lock:
            jobs = {*self.queue, *self.admission_queue}
            jobs.update(part.job for batch in self.round for part, _ in batch)
            self.round.clear()
        for job in jobs:
            job.settle(ClosedError("The model was closed while passages were waiting to be scored."))
        self.drop(jobs)

    def _run_batch(self) -> bool:
        """Run one batch; return False if there is none."""
        batch: list[_Row] = []
        with self.lock:
            while not batch and (self.round or self.queue):
                if not self.round:
                    self._form_round()
                batch = [row for row in self.round.popleft() if not row[0].job.done()]
            if not batch:
                self.idle += 1
        # A new round leaves capacity for others.
        if self.admission_queue:
            self.admit_next()
        if not batch:
            return False
        if not self._deliver(batch, self._logits(batch)):
            # Run each job alone, so that only the one that causes the error fails.
            for job in {part.job: None for part, _ in batch}:
                rows = [row for row in batch if row[0].job is job]
                self._deliver(rows, self._logits(rows))
                rows.clear()
            del job
        # The traceback of an error keeps this frame alive, which must not keep the job alive that holds the error.
        batch.clear()
        return True

    def _form_round(self) -> None:
        rows: list[_Row] = []
        lengths: list[NDArray[np.int64]] = []
        next_parts: list[Job] = []
        shares: Counter[Job] = Counter()
        capacity = self.round_tokens
        while self.queue and capacity > 0:
            job, _ = self.queue.popitem(last=False)
            part = job.waiting_parts[0]
            before = part.waiting_tokens
            indices = part.take(self.round_tokens // _SHARES_PER_ROUND)
            tokens = before - part.waiting_tokens
            capacity -= tokens
            shares[job] += tokens
            job.waiting_tokens -= tokens
            self.waiting_tokens -= tokens
            rows.extend((part, index) for index in indices.tolist())
            lengths.append(part.lengths[indices])
            if part.waiting_tokens:
                self.queue[job] = None
            else:
                job.waiting_parts.popleft()
                if job.waiting_parts:
                    next_parts.append(job)
        self.queue.update(dict.fromkeys(next_parts))
        counts = np.concatenate(lengths)
        budget, threads = self.backend.max_padded_tokens, self.backend.parallel_batches
        if threads > 1:
            # The threads share what waits, rather than that some compute large batches while others have none.
            budget = min(budget, max(1, int(counts.sum() * (1 + MAX_PADDING) / threads)))
        plan = plan_batches(counts, budget)
        if self.backend.max_padded_tokens == 1:
            # Pairs run one by one, so jobs with few tokens go first and need not wait for the longest sequences.
            plan.sort(key=lambda positions: shares[rows[positions[0]][0].job])
        self.round.extend([rows[position] for position in positions.tolist()] for positions in plan)

    def _logits(self, batch: list[_Row]) -> NDArray[np.float32] | BaseException:
        """Return one logit per row, or the error. Shape: (batch,), float32."""
        try:
            token_batch = batch[0][0].job.make_batch([part.pairs[index] for part, index in batch])
        except BaseException as error:  # noqa: BLE001 -- a bug, raised to the caller; the thread must go on
            return error
        try:
            return check_shape(self.backend.logits(token_batch), count=len(batch), model=self.backend.name)
        except MarcoRankError as error:
            return error
        except BaseException as error:  # noqa: BLE001 -- backends raise anything, and the thread must survive
            return self._failure(batch, error)

    def _failure(self, batch: list[_Row], cause: BaseException) -> ScoreError:
        # Not in `_logits`: the cause refers to that frame, which must not refer to the error that refers to the cause.
        tokens = max(int(part.lengths[index]) for part, index in batch)
        error = ScoreError(
            f"The {self.backend.name} backend failed on a batch of {len(batch)} x {tokens} tokens on "
            f"{self.backend.device}: {cause}"
        )
        error.__cause__ = cause
        return error

    def _deliver(self, batch: list[_Row], result: NDArray[np.float32] | BaseException) -> bool:
        """Resolve the jobs that the batch completes; return False if it failed and several jobs may be the cause."""
        if isinstance(result, BaseException):
            jobs = {part.job for part, _ in batch}
            if len(jobs) > 1:
                return False
            for job in jobs:
                job.settle(result)
            self.drop(jobs)
            return True
        completed: dict[Job, None] = {}
        with self.lock:
            for (part, index), logit in zip(batch, result.tolist(), strict=True):
                part.logits[index] = logit
                part.unscored -= 1
                part.job.unscored -= 1
                if not part.unscored:
                    part.pairs = ()
                if part.job.complete and not part.job.unscored:
                    completed[part.job] = None
        for job in completed:
            job.settle()
        return True
