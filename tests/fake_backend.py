"""An engine for tests of what is above it: its answers are plain, and it runs a batch when it is told to."""

from __future__ import annotations

import gc
import threading
from weakref import WeakSet

import numpy as np

from marcorank._inference.scheduler import Job, Scheduler


class FakeBackend:
    """Gives each row its first token as logit, or one of another place; behind a gate it waits for leave each time.

    Attributes:
        batches: The logits of the batches that have begun.
        broken: Logits at which it fails.
    """

    device, precision = "cpu", "fp32"

    def __init__(
        self,
        *,
        name="fake",
        max_padded_tokens=1000,
        parallel_batches=1,
        runs_in_callers=False,
        gated=False,
        column=0,
    ):
        self.name = name
        self.max_padded_tokens = max_padded_tokens
        self.parallel_batches = parallel_batches
        self.runs_in_callers = runs_in_callers
        self.gated = gated
        self.column = column
        self.begun, self.leave = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.broken: set[int] = set()

    def logits(self, batch):
        rows = batch.input_ids[:, self.column]
        self.batches.append(rows.tolist())
        self.begun.release()
        if self.gated:
            assert self.leave.acquire(timeout=30)
        if self.broken & set(rows.tolist()):
            raise RuntimeError("a bad row")
        return rows.astype(np.float32)

    def wait_for_batch(self):
        assert self.begun.acquire(timeout=30)

    def open_gate(self):
        self.gated = False
        self.leave.release(8)


def threads_of(backend):
    """Return the threads that run batches of engines of this name."""
    return [thread for thread in threading.enumerate() if thread.name == f"marcorank-{backend.name}"]


def schedulers() -> WeakSet[Scheduler]:
    """Return those of all models that are loaded in this process."""
    return WeakSet(thing for thing in gc.get_objects() if issubclass(type(thing), Scheduler))


class WatchedScheduler(Scheduler):
    """A scheduler whose tests can wait for what its callers have done.

    Attributes:
        jobs: Every call, in the order in which they were opened.
    """

    def __init__(self, backend):
        super().__init__(backend)
        self.jobs: list[Job] = []
        self._seen = _Seen()

    @property
    def added(self):
        """How many slices have been handed over."""
        return self._seen.added

    def open(self, make_batch):
        job = super().open(make_batch)
        _watch(job, self._seen)
        self.jobs.append(job)
        return job

    def wait_until(self, *, added=0, refused=0):
        """Return when so many slices were handed over, and a call was told to wait for admission so many times."""
        seen = self._seen
        with seen.changed:
            assert seen.changed.wait_for(lambda: seen.added >= added and seen.refused >= refused, timeout=30)


class _Seen:
    def __init__(self):
        self.added = self.refused = 0
        self.changed = threading.Condition()

    def count(self, *, added=0, refused=0):
        with self.changed:
            self.added += added
            self.refused += refused
            self.changed.notify_all()


def _watch(job, seen):
    # Neither function knows the scheduler, which ends when its last user lets go of it.
    add, admission = job.add, job.admission

    def watched_add(pairs, lengths, *, last):
        add(pairs, lengths, last=last)
        if pairs:
            seen.count(added=1)

    def watched_admission():
        future = admission()
        if not future.done():
            seen.count(refused=1)
        return future

    job.add, job.admission = watched_add, watched_admission
