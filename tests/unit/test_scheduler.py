"""Who shares a batch, who waits for whom, and what becomes of those that give up; the engine is a fake."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_backend import FakeBackend, threads_of
from marcorank import ClosedError, ScoreError
from marcorank._inference.pairs import TokenBatch
from marcorank._inference.scheduler import Scheduler
from marcorank._steps import Wait, run


def make_batch(pairs) -> TokenBatch:
    """Pairs are numbers here."""
    ids = np.array(pairs, dtype=np.int64)[:, np.newaxis]
    return TokenBatch(ids, np.ones_like(ids), np.zeros_like(ids))


def begin(scheduler, numbers, *, tokens=10):
    job = scheduler.open(make_batch)
    job.add(list(numbers), np.full(len(numbers), tokens), last=True)
    return job


def finish(job):
    job.add([], np.array([], dtype=np.int64), last=True)


def wait_until_closed(job):
    """Return when the scheduler has begun to stop, from which on nothing can be added."""
    while True:
        try:
            job.add([], np.array([], dtype=np.int64), last=False)
        except ClosedError:
            return
        os.sched_yield()


def result(job):
    return job.result(timeout=30).tolist()


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left():
    """Whatever these tests do, the threads of their schedulers end."""
    yield
    gc.collect()
    assert not threads_of(FakeBackend())


@pytest.fixture
def gated():
    """A scheduler whose engine is busy with a batch of somebody else, and waits at its gate."""
    backend = FakeBackend(gated=True)
    scheduler = Scheduler(backend)
    first = begin(scheduler, [0])
    backend.wait_for_batch()
    yield scheduler, backend
    backend.open_gate()
    assert result(first) == [0]


def test_logits_come_in_the_order_in_which_pairs_were_added():
    """Batches go by length; the result does not show it."""
    scheduler = Scheduler(FakeBackend(max_padded_tokens=100))
    job = scheduler.open(make_batch)
    job.add([1, 2, 3], np.array([5, 90, 40]), last=False)
    job.add([4], np.array([70]), last=True)
    assert result(job) == [1, 2, 3, 4]
    assert job.result().dtype == np.float32


def test_a_job_without_pairs_ends_at_once():
    """Nothing to score is no reason to wait, and starts no thread."""
    scheduler = Scheduler(FakeBackend())
    job = scheduler.open(make_batch)
    finish(job)
    assert result(job) == []


def test_a_lone_request_waits_for_nobody():
    """The engine begins with the first pair, although its batch is not full and the job not finished."""
    backend = FakeBackend(gated=True)
    scheduler = Scheduler(backend)
    job = scheduler.open(make_batch)
    job.add([7], np.array([10]), last=False)
    backend.wait_for_batch()
    backend.open_gate()
    finish(job)
    assert result(job) == [7]
    assert backend.batches == [[7]]


def test_what_waits_shares_a_batch(gated):
    """While the engine is busy calls pile up; then they run as one batch, in the order of their arrival."""
    scheduler, backend = gated
    jobs = [begin(scheduler, [10 * number, 10 * number + 1]) for number in (3, 1, 2)]
    backend.open_gate()
    assert [result(job) for job in jobs] == [[30, 31], [10, 11], [20, 21]]
    assert backend.batches == [[0], [30, 31, 10, 11, 20, 21]]


def test_batches_run_side_by_side():
    """As many batches run at once as the engine allows: each waits until the other is there too."""
    backend = FakeBackend(name="two", max_padded_tokens=10, parallel_batches=2)
    both = threading.Barrier(2, timeout=30)
    logits = backend.logits
    backend.logits = lambda batch: both.wait() is not None and logits(batch)
    scheduler = Scheduler(backend)
    assert result(begin(scheduler, range(6))) == list(range(6))
    assert len(threads_of(backend)) == 2


def test_the_threads_share_a_small_call():
    """A call that would fit into one batch is split, so that each thread has its part of it."""
    backend = FakeBackend(max_padded_tokens=1000, parallel_batches=3)
    assert result(begin(Scheduler(backend), range(6))) == list(range(6))
    assert sorted(backend.batches) == [[0, 1], [2, 3], [4, 5]]


def test_a_short_call_passes_a_long_one():
    """Behind 1,000 passages 20 wait for a round of 4,096 tokens, and then share the engine with the long call."""
    backend = FakeBackend(max_padded_tokens=1, gated=True)
    scheduler = Scheduler(backend)
    long = begin(scheduler, range(1000), tokens=128)
    backend.wait_for_batch()
    short = begin(scheduler, range(5000, 5020), tokens=128)
    backend.open_gate()
    assert result(short) == list(range(5000, 5020))
    assert result(long) == list(range(1000))
    order = [number for batch in backend.batches for number in batch]
    # 32 pairs a round: one round of the long call alone, then 8 pairs of each in turn.
    assert order.index(5000) == 32 + 8
    assert order.index(5019) < 3 * 32


def test_long_calls_take_turns():
    """Two long calls advance side by side, the one that came first ahead."""
    backend = FakeBackend(max_padded_tokens=1, gated=True)
    scheduler = Scheduler(backend)
    first, second = (begin(scheduler, range(start, start + 200), tokens=128) for start in (0, 1000))
    backend.open_gate()
    assert result(first) == list(range(200))
    assert result(second) == list(range(1000, 1200))
    order = [number for batch in backend.batches for number in batch]
    assert order.index(199) < order.index(1199) < len(order) == 400
    assert order.index(1100) < order.index(199)


def test_a_call_that_is_alone_has_the_same_batches_each_time():
    """What has been added meanwhile does not change them, so that the last bits of logits do not either."""
    seen = []
    for at_once in (True, False):
        backend = FakeBackend(max_padded_tokens=300, gated=True)
        scheduler = Scheduler(backend)
        job = scheduler.open(make_batch)
        for part in range(5):
            job.add(
                list(range(40 * part, 40 * part + 40)), np.random.default_rng(part).integers(10, 200, 40), last=False
            )
            if not at_once:
                backend.open_gate()
                while sum(map(len, backend.batches)) < 40 * part + 40:
                    backend.wait_for_batch()
        finish(job)
        backend.open_gate()
        result(job)
        seen.append(backend.batches)
    assert seen[0] == seen[1]


def test_a_call_may_hold_little_of_what_waits():
    """There is room until enough waits, and again once a round has taken of it; others are let in meanwhile."""
    backend = FakeBackend(gated=True)
    scheduler = Scheduler(backend)
    long, other = (scheduler.open(make_batch) for _ in range(2))
    begin(scheduler, [0])
    backend.wait_for_batch()
    assert long.admission().done()
    long.add(list(range(100)), np.full(100, 500), last=False)
    waiting = long.admission()
    assert not waiting.done()
    assert other.admission().done()
    other.add([1], np.array([10]), last=True)
    for _ in range(60):
        backend.leave.release()
    waiting.result(timeout=30)
    finish(long)
    backend.open_gate()
    assert result(long) == list(range(100))
    assert result(other) == [1]


def test_where_much_waits_callers_are_let_in_one_after_the_other(gated):
    """Beyond the bound every caller waits, the first in the line comes first, the next when that one has added."""
    scheduler, backend = gated
    crowd = [begin(scheduler, [number], tokens=10_000) for number in range(100, 114)]
    late = [scheduler.open(make_batch) for _ in range(3)]
    admissions = [job.admission() for job in late]
    assert not any(room.done() for room in admissions)
    backend.open_gate()
    for place, job in enumerate(late):
        admissions[place].result(timeout=30)
        assert not any(room.done() for room in admissions[place + 1 :])
        job.add([place], np.array([10]), last=False)
    for job in late:
        finish(job)
    assert [result(job) for job in late] == [[0], [1], [2]]
    assert [result(job) for job in crowd] == [[number] for number in range(100, 114)]


def test_who_gives_up_in_the_line_does_not_hold_it_up(gated):
    """One that is cancelled while it waits for room, and one with its turn, make way for the next."""
    scheduler, backend = gated
    crowd = begin(scheduler, range(100), tokens=2000)
    in_line, with_turn, last = (scheduler.open(make_batch) for _ in range(3))
    admissions = [with_turn.admission(), in_line.admission(), last.admission()]
    assert in_line.cancel()
    assert admissions[1].done()
    backend.open_gate()
    admissions[0].result(timeout=30)
    assert not admissions[2].done()
    assert with_turn.cancel()
    admissions[2].result(timeout=30)
    last.add([5], np.array([10]), last=True)
    assert result(last) == [5]
    assert result(crowd) == list(range(100))


def test_what_is_cancelled_never_runs(gated):
    """Neither what waits in the queue nor what may be added afterwards; the neighbours get their logits."""
    scheduler, backend = gated
    before, dropped, after = (begin(scheduler, [number]) for number in (1, 2, 3))
    growing = scheduler.open(make_batch)
    growing.add([4], np.array([10]), last=False)
    assert dropped.cancel()
    assert growing.cancel()
    growing.add([5], np.array([10]), last=True)
    assert growing.admission().done()
    backend.open_gate()
    assert (result(before), result(after)) == ([1], [3])
    assert backend.batches == [[0], [1, 3]]
    for job in (dropped, growing):
        with pytest.raises(CancelledError, match=r"^$"):
            job.result(timeout=30)


def test_the_round_forgets_what_is_cancelled():
    """Of a job in the middle of its round the batch that runs is the last."""
    backend = FakeBackend(max_padded_tokens=1, gated=True)
    scheduler = Scheduler(backend)
    job = begin(scheduler, range(20))
    backend.wait_for_batch()
    assert job.cancel()
    backend.open_gate()
    assert result(begin(scheduler, [99])) == [99]
    assert backend.batches == [[0], [99]]


def test_a_result_cannot_be_cancelled():
    """What is there already stays, and a job that is cancelled while its last batch runs stays cancelled."""
    backend = FakeBackend()
    scheduler = Scheduler(backend)
    job = begin(scheduler, [1])
    assert result(job) == [1]
    assert not job.cancel()
    backend.gated = True
    running = begin(scheduler, [2])
    backend.wait_for_batch()
    backend.wait_for_batch()
    assert running.cancel()
    backend.open_gate()
    assert result(begin(scheduler, [3])) == [3]
    assert running.cancelled()


def test_only_the_job_at_fault_fails(gated):
    """A batch that fails is run again job by job; what the one at fault has left is dropped."""
    scheduler, backend = gated
    backend.broken = {20}
    good, bad, other = (begin(scheduler, numbers) for numbers in ([10, 11], [20, 21], [30]))
    backend.open_gate()
    assert (result(good), result(other)) == ([10, 11], [30])
    with pytest.raises(ScoreError, match="fake backend failed on a batch of 2 x 10 tokens on cpu: a bad row") as caught:
        bad.result(timeout=30)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert backend.batches == [[0], [10, 11, 20, 21, 30], [10, 11], [20, 21], [30]]


def test_a_failure_ends_the_whole_job():
    """The rest of a job that failed does not run, and what is added to it is ignored."""
    backend = FakeBackend(max_padded_tokens=1)
    backend.broken = {0}
    scheduler = Scheduler(backend)
    job = begin(scheduler, range(50), tokens=500)
    with pytest.raises(ScoreError, match="a bad row"):
        job.result(timeout=30)
    job.add([60], np.array([10]), last=False)
    assert result(begin(scheduler, [99])) == [99]
    assert backend.batches == [[0], [99]]


def test_logits_of_another_shape_are_an_error():
    """One number a row is what an engine owes."""
    backend = FakeBackend()
    backend.logits = lambda batch: np.zeros((len(batch.input_ids), 2))
    scheduler = Scheduler(backend)
    with pytest.raises(ScoreError, match=r"returned logits of shape \(3, 2\) for 3 passages"):
        begin(scheduler, range(3)).result(timeout=30)


def test_an_error_of_one_batch_is_none_of_the_next():
    """The threads outlive what an engine raises."""
    backend = FakeBackend()
    scheduler = Scheduler(backend)
    backend.broken = {1}
    with pytest.raises(ScoreError, match="a bad row"):
        begin(scheduler, [1]).result(timeout=30)
    assert result(begin(scheduler, [2])) == [2]


def test_threads_begin_with_the_first_work_and_end_with_the_last_user():
    """A scheduler without work has none, and one that nobody holds leaves none."""
    backend = FakeBackend(name="lazy", parallel_batches=3)
    scheduler = Scheduler(backend)
    assert not threads_of(backend)
    assert result(begin(scheduler, [1])) == [1]
    assert len(threads_of(backend)) == 3
    del scheduler
    assert not threads_of(backend)


def test_what_waits_at_the_end_fails():
    """Jobs that outlive their scheduler end with an error, in the queue, in the round, in the line or later."""
    backend = FakeBackend(max_padded_tokens=1, gated=True)
    scheduler = Scheduler(backend)
    in_round, in_queue, in_line, later = (scheduler.open(make_batch) for _ in range(4))
    in_round.add(list(range(3)), np.full(3, 5000), last=False)
    backend.wait_for_batch()
    in_queue.add(list(range(10, 110)), np.full(100, 2000), last=False)
    room = in_line.admission()
    assert not room.done()
    dropping = threading.Thread(target=lambda drop: drop.clear(), args=([scheduler],))
    del scheduler
    dropping.start()
    wait_until_closed(later)
    backend.open_gate()
    dropping.join(timeout=30)
    room.result(timeout=30)
    with pytest.raises(ClosedError, match="closed while passages were waiting"):
        later.add([1], np.array([1]), last=True)
    for job in (in_round, in_queue, in_line):
        with pytest.raises(ClosedError, match="closed while passages were waiting"):
            job.result(timeout=30)


def test_the_last_user_may_end_in_a_thread_of_the_scheduler():
    """A callback that lets go of everything runs there; the thread does not wait for itself."""
    backend = FakeBackend(name="last")
    holder = [Scheduler(backend)]
    job = holder[0].open(make_batch)
    job.add_done_callback(lambda _: holder.clear())
    job.add([1], np.array([10]), last=False)
    (thread,) = threads_of(backend)
    finish(job)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert holder == []


def test_tasks_of_several_event_loops_share_a_batch(gated):
    """A job can be awaited from any loop."""
    scheduler, backend = gated
    answers: dict[int, list[float]] = {}
    jobs = {number: begin(scheduler, [number]) for number in (1, 2)}

    def work(number):
        async def ask():
            return await asyncio.wrap_future(jobs[number])

        answers[number] = asyncio.run(ask()).tolist()

    threads = [threading.Thread(target=work, args=(number,)) for number in jobs]
    for thread in threads:
        thread.start()
    backend.open_gate()
    for thread in threads:
        thread.join(timeout=30)
    assert answers == {1: [1.0], 2: [2.0]}
    assert backend.batches == [[0], [1, 2]]


async def test_a_time_limit_drops_the_work(gated):
    """`asyncio.wait_for` on a job cancels it."""
    scheduler, backend = gated
    job = begin(scheduler, [1])
    with pytest.raises(asyncio.TimeoutError, match=r"^$"):
        await asyncio.wait_for(asyncio.wrap_future(job), timeout=0.001)
    assert job.cancelled()
    backend.open_gate()
    assert result(begin(scheduler, [2])) == [2]
    assert [1] not in backend.batches


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_can_let_go():
    """Its parent's threads do not exist there, so it does not wait for them."""
    backend = FakeBackend(name="forked")
    scheduler = Scheduler(backend)
    assert result(begin(scheduler, [1])) == [1]
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        gone = weakref.ref(scheduler)
        del scheduler
        os._exit(0 if gone() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_program_ends_although_work_waits():
    """Daemon threads that wait for their logits do not hold up the interpreter, and nothing is printed."""
    code = """
import threading, sys
sys.path[:0] = {folders!r}
import numpy as np
from test_scheduler import FakeBackend, Scheduler, begin
backend = FakeBackend(max_padded_tokens=1)
scheduler = Scheduler(backend)
job = begin(scheduler, range(1_000_000))
threading.Thread(target=job.exception, daemon=True).start()
backend.wait_for_batch()
print("end")
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code.format(folders=[str(Path(__file__).parents[place]) for place in (0, 1)])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("end\n", "")


def ready(backend) -> Scheduler:
    """Return a scheduler whose workers are idle."""
    scheduler = Scheduler(backend)
    assert result(begin(scheduler, range(4))) == list(range(4))
    while scheduler._shared.idle < backend.parallel_batches:
        os.sched_yield()
    backend.batches.clear()
    return scheduler


def test_a_lone_pair_runs_in_the_thread_of_its_caller():
    """Only there it needs no hand-over. Several pairs, and those of daemon threads, run in workers."""
    backend = FakeBackend(name="lent", runs_in_callers=True, parallel_batches=2)
    scheduler = ready(backend)
    found: list[threading.Thread] = []
    logits = backend.logits
    backend.logits = lambda batch: found.append(threading.current_thread()) or logits(batch)
    assert result(begin(scheduler, [7])) == [7]
    assert found.pop() is threading.current_thread()
    assert result(begin(scheduler, [8, 9])) == [8, 9]
    assert set(found) <= set(threads_of(backend))
    found.clear()
    daemon = threading.Thread(target=begin, args=(scheduler, [10]), daemon=True)
    daemon.start()
    daemon.join()
    assert result(begin(scheduler, [11, 12])) == [11, 12]
    assert daemon not in found


def test_a_caller_that_runs_its_pair_takes_the_turn_of_a_worker():
    """No more batches run at once than the engine allows, and what waited for the turn runs right after it."""
    backend = FakeBackend(name="turns", runs_in_callers=True, gated=False)
    scheduler = ready(backend)
    backend.begun = threading.Semaphore(0)
    backend.gated = True
    jobs = []
    caller = threading.Thread(target=lambda: jobs.append(begin(scheduler, [1])))
    caller.start()
    backend.wait_for_batch()
    other = begin(scheduler, [2, 3])
    third = begin(scheduler, [4])
    assert not backend.begun.acquire(blocking=False)
    backend.open_gate()
    caller.join()
    assert [result(job) for job in (*jobs, other, third)] == [[1], [2, 3], [4]]
    assert backend.batches[0] == [1]


def test_a_lone_pair_that_fails_gives_the_error_of_a_worker():
    backend = FakeBackend(name="lent", runs_in_callers=True)
    scheduler = ready(backend)
    backend.broken = {3}
    with pytest.raises(ScoreError, match="failed on a batch of 1 x 10 tokens on cpu: a bad row"):
        result(begin(scheduler, [3]))
    assert result(begin(scheduler, [4])) == [4]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
@pytest.mark.parametrize("raised", [TimeoutError("the task took too long"), KeyboardInterrupt()])
def test_what_a_signal_handler_raises_meanwhile_is_raised(raised):
    """It is no failure of the model, and the turn of the worker comes back."""
    backend = FakeBackend(name="lent", runs_in_callers=True)
    scheduler = ready(backend)
    logits = backend.logits

    def interrupted(batch):
        backend.logits = logits
        signal.raise_signal(signal.SIGUSR1)
        return logits(batch)

    def handler(*_):
        raise raised

    backend.logits = interrupted
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(type(raised)) as found:
            begin(scheduler, [5])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found.value is raised
    assert [result(begin(scheduler, [number])) for number in (6, 7)] == [[6], [7]]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_what_a_signal_handler_raises_while_a_call_waits_is_raised(timeout_s):
    """Also if it is a `TimeoutError`, which is what a limit of the program itself usually raises."""

    def handler(*_):
        raise TimeoutError("the task took too long")

    def steps():
        yield Wait(Future(), timeout_s)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(TimeoutError, match="the task took too long"):
            run(steps())
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_an_engine_that_fails_once_on_a_lone_pair_gives_its_score(in_main_thread):
    """The pair ran again in a worker; the error of the engine never reaches the caller as it is."""
    backend = FakeBackend(name="lent", runs_in_callers=True)
    scheduler = ready(backend)
    logits = backend.logits
    engine: dict[str, Any] = {"__name__": "openvino.engine"}
    exec("def fail():\n    raise RuntimeError('out of memory')", engine)  # noqa: S102

    def once(batch):
        backend.logits = logits
        engine["fail"]()

    backend.logits = once
    found = []
    thread = threading.Thread(target=lambda: found.append(result(begin(scheduler, [5]))))
    if in_main_thread:
        found.append(result(begin(scheduler, [5])))
    else:
        thread.start()
        thread.join()
    assert found == [[5]]
