"""`Reranker` over the scheduler: what its callers share, and what is left when they give up or it is closed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from tokenizers import Tokenizer

from fake_backend import FakeBackend, WatchedScheduler, threads_of
from marcorank import Reranker, ScoreError
from marcorank._inference.pairs import PairEncoder
from marcorank._inference.scheduler import Scheduler
from marcorank._inference.scorer import CrossEncoderScorer
from random_models import bundled_folder

QUERY = "berlin"
# Where the first token of a passage stands behind a query of one token: its id is the logit.
COLUMN = 3
TOKENIZER = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))


def id_of(word) -> int:
    return TOKENIZER.token_to_id(word)


class CountingEncoder(PairEncoder):
    """Counts the passages that have been tokenised, and the windows; with its gate closed it stops after each part.

    Attributes:
        windows_before: How many windows there were when each call of `encode` began.
    """

    passages = 0
    windows = 0

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.windows_before: list[int] = []
        self.part_tokenised, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def encode(self, query, passages):
        self.windows_before.append(self.windows)
        self.passages += len(passages)
        return super().encode(query, passages)

    def encode_in_parts(self, query, passages):
        for part in super().encode_in_parts(query, passages):
            self.windows += len(part.windows)
            self.part_tokenised.set()
            assert self.gate.wait(timeout=30)
            yield part


class Watched:
    """A reranker on a fake engine, and what is seen of its work from outside."""

    def __init__(self, load, backend, long_passages="truncate"):
        self.backend = backend
        self.long_passages = long_passages
        load(self._make)  # again after a fork
        self.reranker = Reranker("bundled")

    def _make(self):
        tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
        self.encoder = CountingEncoder(tokenizer, max_length=512, long_passages=self.long_passages)
        self.scheduler = WatchedScheduler(self.backend)
        return CrossEncoderScorer(self.scheduler, self.encoder, name="fake")

    async def until(self, **seen):
        await asyncio.to_thread(self.scheduler.wait_until, **seen)


@pytest.fixture
def make(load):
    """Make a reranker that runs on a fake engine; each has a scheduler of its own."""

    def make_reranker(backend) -> Reranker:
        return Watched(load, backend).reranker

    return make_reranker


@pytest.fixture
def watched(load, request):
    """A reranker whose engine waits at its gate with a batch of somebody else."""
    backend = FakeBackend(gated=True, column=COLUMN)
    watched = Watched(load, backend, **getattr(request, "param", {}))
    thread = threading.Thread(target=watched.reranker.rank, args=(QUERY, ["wall"]))
    thread.start()
    backend.wait_for_batch()
    watched.scheduler.wait_until(added=1)
    yield watched
    backend.open_gate()
    thread.join(timeout=30)
    watched.reranker.close()


@pytest.fixture
def busy(watched):
    """The same as reranker and engine."""
    return watched.reranker, watched.backend


async def test_tasks_and_threads_share_a_batch(watched):
    """Requests of tasks and of a thread that wait for the engine run as one batch."""
    chosen, backend = watched.reranker, watched.backend
    tasks = [asyncio.create_task(chosen.arank(QUERY, [word])) for word in ("river", "museum")]
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(chosen.rank(QUERY, ["capital"])))
    thread.start()
    await watched.until(added=4)
    backend.open_gate()
    assert [ranking[0].logit for ranking in await asyncio.gather(*tasks)] == [id_of("river"), id_of("museum")]
    await asyncio.to_thread(thread.join, 30)
    assert found[0][0].logit == id_of("capital")
    assert [sorted(batch) for batch in backend.batches] == [
        [id_of("wall")],
        sorted(map(id_of, ("river", "museum", "capital"))),
    ]


def test_event_loops_share_a_batch(watched):
    """Tasks of several event loops in several threads run as one batch."""
    chosen, backend = watched.reranker, watched.backend
    words = ("river", "museum", "capital")
    found: dict[str, float] = {}

    def work(word):
        found[word] = asyncio.run(chosen.arank(QUERY, [word]))[0].logit

    threads = [threading.Thread(target=work, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    watched.scheduler.wait_until(added=4)
    backend.open_gate()
    for thread in threads:
        thread.join(timeout=30)
    assert found == {word: id_of(word) for word in words}
    assert len(backend.batches) == 2


async def test_a_cancelled_task_leaves_the_queue(watched):
    """What a task had waiting for the engine is dropped when it is cancelled or runs out of time."""
    chosen, backend = watched.reranker, watched.backend
    cancelled = asyncio.create_task(chosen.arank(QUERY, ["river"]))
    await watched.until(added=2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await cancelled
    with pytest.raises(asyncio.TimeoutError, match=r"^$"):
        await asyncio.wait_for(chosen.arank(QUERY, ["museum"]), timeout=0.05)
    assert all(job.cancelled() for job in watched.scheduler.jobs[1:])
    backend.open_gate()
    assert (await chosen.arank(QUERY, ["capital"]))[0].logit == id_of("capital")
    assert backend.batches == [[id_of("wall")], [id_of("capital")]]


async def test_a_long_request_holds_few_tokens_and_no_thread(watched):
    """Of 10,000 passages some are tokenised and wait; a short request passes through the same thread meanwhile."""
    chosen, backend, encoder = watched.reranker, watched.backend, watched.encoder
    backend.max_padded_tokens = 1
    long = asyncio.create_task(chosen.arank(QUERY, [f"river {number} " + "of " * 100 for number in range(10_000)]))
    await watched.until(refused=1)
    assert 0 < encoder.passages < 1000
    added = watched.scheduler.added
    short = asyncio.create_task(chosen.arank(QUERY, ["museum"]))
    await watched.until(added=added + 1)
    assert encoder.passages < 1000
    backend.open_gate()
    assert (await short)[0].logit == id_of("museum")
    assert not long.done()
    assert encoder.passages < 2000
    assert len(await long) == 10_000


@pytest.mark.parametrize("watched", [{"long_passages": "windows"}], indirect=True)
async def test_a_short_request_passes_a_passage_of_many_windows(watched):
    """One passage is tokenised and handed over in slices: all at once it would fill the queue for everybody."""
    chosen, backend, encoder = watched.reranker, watched.backend, watched.encoder
    backend.max_padded_tokens = 1
    long = asyncio.create_task(chosen.arank(QUERY, ["river wall museum capital " * 50_000]))
    await watched.until(refused=1)
    added = watched.scheduler.added
    short = asyncio.create_task(chosen.arank(QUERY, ["museum"]))
    await watched.until(added=added + 1)
    backend.open_gate()
    assert (await short)[0].logit == id_of("museum")
    assert not long.done()
    assert encoder.windows < 200
    assert (await long)[0].logit == max(map(id_of, ("river", "wall", "museum", "capital")))
    assert encoder.windows > 500


@pytest.mark.parametrize("watched", [{"long_passages": "windows"}], indirect=True)
async def test_a_short_request_passes_a_passage_that_is_being_tokenised(watched):
    """Also where all windows of a passage are one slice, other calls come between two parts of it."""
    chosen, encoder = watched.reranker, watched.encoder
    watched.scheduler.slice_tokens = 10**9
    encoder.part_tokenised.clear()
    encoder.gate.clear()
    long = asyncio.create_task(chosen.arank(QUERY, ["river wall museum capital " * 50_000]))
    assert await asyncio.to_thread(encoder.part_tokenised.wait, 30)
    short = asyncio.create_task(chosen.arank(QUERY, ["museum"]))
    await asyncio.sleep(0)  # the task has made its call
    encoder.gate.set()
    watched.backend.open_gate()
    assert (await short)[0].logit == id_of("museum")
    assert 0 < encoder.windows_before[-1] < 200
    assert (await long)[0].logit == max(map(id_of, ("river", "wall", "museum", "capital")))
    assert encoder.windows > 500


async def test_a_cancelled_long_request_stops_being_tokenised(watched):
    """What a task has not handed over yet when it is cancelled never is."""
    chosen, backend, encoder = watched.reranker, watched.backend, watched.encoder
    long = asyncio.create_task(chosen.arank(QUERY, [f"river {number} " + "of " * 100 for number in range(10_000)]))
    await watched.until(refused=1)
    long.cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await long
    backend.open_gate()
    assert (await chosen.arank(QUERY, ["museum"]))[0].logit == id_of("museum")
    assert encoder.passages < 1000
    assert [id_of("river")] * 5 not in [batch[:5] for batch in backend.batches]


async def test_a_request_of_many_slices_equals_one_of_few(make):
    """Where a request is cut for the tokenizer makes no difference to what comes out."""
    chosen = make(FakeBackend(column=COLUMN))
    passages = [f"{word} {number} " + "of " * (number % 300) for number in range(700) for word in ("wall", "river")]
    expected = [chosen.rank(QUERY, [passage])[0].logit for passage in passages[:50]]
    assert chosen.score(QUERY, passages)[:50].tolist() == expected
    ranking = await chosen.arank(QUERY, passages)
    assert sorted(result.index for result in ranking) == list(range(1400))
    assert ranking == chosen.rank_many([(QUERY, passages), (QUERY, ["wall"])])[0]


async def test_close_inside_the_event_loop_finishes_what_was_accepted(make):
    """It blocks the loop, as it says, but it does not hang: no step of a call needs the loop."""
    chosen = make(FakeBackend(column=COLUMN))
    long = [f"river {number} " + "of " * 100 for number in range(1000)]
    tasks = [asyncio.create_task(chosen.arank(QUERY, passages)) for passages in (long, ["wall"], [])]
    await asyncio.sleep(0)  # each task has made its call
    chosen.close()
    assert [len(ranking) for ranking in await asyncio.gather(*tasks)] == [1000, 1, 0]


@pytest.fixture
def no_garbage_collection():
    """What is gone in a test of this is gone at once, and not at some time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
def test_close_leaves_no_thread_and_no_model(load):
    """Also after errors of the engine, cancelled and finished calls, sync and async."""
    backend = FakeBackend(name="closing", column=COLUMN)
    backend.broken = {id_of("river")}
    schedulers: list[weakref.ref[Scheduler]] = []

    def make():
        scheduler = Scheduler(backend)
        schedulers.append(weakref.ref(scheduler))
        encoder = PairEncoder(Tokenizer.from_str(TOKENIZER.to_str()), max_length=512)
        return CrossEncoderScorer(scheduler, encoder, name="fake")

    load(make)
    chosen = Reranker("bundled")
    name, threads = FakeBackend(name="closing"), set(threading.enumerate())

    async def ask():
        await asyncio.gather(*(chosen.arank(QUERY, ["wall", "museum"]) for _ in range(5)))
        task = asyncio.create_task(chosen.arank(QUERY, ["wall"]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(ScoreError, match="a bad row"):
            await chosen.arank(QUERY, ["river"])

    chosen.rank(QUERY, ["wall"])
    with pytest.raises(ScoreError, match="a bad row"):
        chosen.rank(QUERY, ["river"])
    asyncio.run(ask())
    assert threads_of(name)
    chosen.close()
    assert [scheduler() for scheduler in schedulers] == [None]
    assert set(threading.enumerate()) <= threads


async def test_only_the_request_at_fault_fails(watched):
    """In a common batch a logit that is not finite, or an engine that fails, is the fault of one request."""
    chosen, backend = watched.reranker, watched.backend
    logits = backend.logits
    backend.logits = lambda batch: np.where(batch.input_ids[:, COLUMN] == id_of("museum"), np.nan, logits(batch))
    backend.broken = {id_of("river")}
    tasks = [asyncio.create_task(chosen.arank(QUERY, [word])) for word in ("river", "museum", "capital")]
    await watched.until(added=4)
    backend.open_gate()
    failed, broken, fine = await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(ScoreError, match="a bad row"):
        raise failed
    with pytest.raises(ScoreError, match=r"returned nan for `passages\[0\]`"):
        raise broken
    assert fine[0].logit == id_of("capital")


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
def test_an_interrupt_drops_the_work(make):
    """Ctrl-C in a caller that waits for the engine cancels what that caller has there."""
    backend = FakeBackend(gated=True, column=COLUMN, max_padded_tokens=1)
    chosen = make(backend)

    main = threading.main_thread().ident

    def interrupt():
        backend.wait_for_batch()
        # Python loses a signal that arrives between two instructions of a thread that begins to wait for a lock.
        while sys._current_frames()[main].f_code.co_name != "wait":
            time.sleep(0.01)
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        chosen.rank(QUERY, ["wall", "river", "museum"])
    thread.join(timeout=30)
    backend.open_gate()
    assert chosen.rank(QUERY, ["capital"])[0].logit == id_of("capital")
    assert backend.batches[1:] == [[id_of("capital")]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_from_a_busy_engine_can_go_on(busy):
    """Neither the batch that runs at the fork nor what waits behind it is waited for in the child."""
    chosen, backend = busy
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        backend.gated = False
        in_thread = chosen.rank(QUERY, ["river"])[0].logit
        in_task = asyncio.run(chosen.arank(QUERY, ["museum"]))[0].logit
        chosen.close()
        os._exit(0 if (in_thread, in_task) == (id_of("river"), id_of("museum")) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
