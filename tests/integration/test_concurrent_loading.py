"""Several models at once: who waits for a load, who does not, and what those who wait get."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from marcorank import Reranker, RerankTimeoutError
from marcorank._forks import ProcessLock
from marcorank._inference.backends.onnx import OnnxBackend
from marcorank._once import Once
from patience import PATIENCE_S
from random_models import QUERY

PASSAGES = ["museum of history", "three million registered inhabitants of Berlin", "river spree"]


class Held:
    """Loading one model waits until it is told to go on.

    Attributes:
        begun: Set when the load begins.
        go_on: Ends the wait.
        loads: How many times the model was loaded.
    """

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.loads = 0


@pytest.fixture
def held(small_bert, monkeypatch):
    hold = Held()
    open_file = OnnxBackend.__init__

    def wait_and_open(self, file, **settings):
        if file.is_relative_to(small_bert):
            hold.loads += 1
            hold.begun.set()
            assert hold.go_on.wait(PATIENCE_S)
        open_file(self, file, **settings)

    monkeypatch.setattr(OnnxBackend, "__init__", wait_and_open)
    yield hold
    hold.go_on.set()


@pytest.fixture
def expected(small_bert):
    scores = Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES)
    gc.collect()
    return scores


@pytest.fixture
def in_thread():
    """Run functions in threads; returns a list that holds the result or the error of each at the end."""
    threads, results = [], []

    def start(function):
        def run():
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001 -- looked at by the test
                results.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return threads[-1]

    def finished():
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        return results

    start.finished = finished
    yield start
    finished()


def test_a_model_that_loads_does_not_hold_up_others(small_bert, expected, held, in_thread):
    """Another reranker loads and ranks although the load of the first one hangs."""
    in_thread(lambda: Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES))
    assert held.begun.wait(PATIENCE_S)
    other = in_thread(lambda: Reranker("bundled").score(QUERY, PASSAGES))
    other.join(PATIENCE_S)
    assert not other.is_alive()
    held.go_on.set()
    scores_of_other, scores = in_thread.finished()
    assert np.array_equal(scores, expected)
    assert np.array_equal(scores_of_other, Reranker("bundled").score(QUERY, PASSAGES))


@pytest.mark.parametrize("rank", ["rank", "arank"])
def test_a_fallback_loads_while_the_model_still_does(small_bert, expected, held, rank):
    """The call is answered by the fallback, the next ones by the model, whose load was not in vain."""
    reranker = Reranker(small_bert, backend="onnx", timeout_s=6, fallback="bundled")
    ranking = reranker.rank(QUERY, PASSAGES) if rank == "rank" else asyncio.run(reranker.arank(QUERY, PASSAGES))
    assert (ranking.model, ranking.status.outcome) == ("bundled", "fallback")
    assert ranking.status.reason == (
        f"Model `{small_bert}` did not answer within 3 s, its share of the `timeout_s` of 6 s because it was still "
        "loading. Increase `timeout_s`, or call `warm_up()` first."
    )
    held.go_on.set()
    reranker.timeout_s = 120
    ranking = reranker.rank(QUERY, PASSAGES)
    assert ranking.status is None
    assert [result.logit for result in ranking] == sorted(expected.tolist(), reverse=True)
    assert held.loads == 1


def test_the_same_model_is_loaded_once(small_bert, expected, held, in_thread):
    """Rerankers with other lengths that come while it loads wait for it and share its weights."""
    # Held to the end: otherwise the first could be gone, with its weights, before the last begins.
    rerankers = [Reranker(small_bert, backend="onnx", max_length=length) for length in (128, 256, 512)]
    for reranker in rerankers:
        in_thread(lambda reranker=reranker: reranker.score(QUERY, PASSAGES))
    assert held.begun.wait(PATIENCE_S)
    held.go_on.set()
    for scores in in_thread.finished():
        assert np.array_equal(scores, expected)
    assert held.loads == 1


def test_close_does_not_wait_for_a_load_that_was_given_up(small_bert, held, in_thread):
    """A load that hangs delays `close` no longer than a scorer that hangs."""
    reranker = Reranker(small_bert, backend="onnx", timeout_s=0.2)
    with pytest.raises(RerankTimeoutError, match=r"within 0\.2 s because it was still loading"):
        reranker.rank(QUERY, PASSAGES)
    closing = in_thread(reranker.close)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert not held.go_on.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_during_a_load_loads_for_itself(small_bert, expected, held, in_thread):
    """The thread that loads does not exist in the child, which does not wait for it."""
    in_thread(lambda: Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES))
    assert held.begun.wait(PATIENCE_S)
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        held.go_on.set()
        scores = Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES)
        os._exit(0 if np.array_equal(scores, expected) else 1)
    held.go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_lock_of_the_process_is_free_in_a_forked_child(in_thread):
    """Whichever thread of the parent held it."""
    lock, held, go_on = ProcessLock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            assert go_on.wait(PATIENCE_S)

    in_thread(hold)
    assert held.wait(PATIENCE_S)
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        with lock:
            os._exit(0)
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_torch_models_are_loaded_one_after_the_other(small_bert, monkeypatch, in_thread):
    """While it loads, transformers switches the default dtype of the process, which must not reach others."""
    import sentence_transformers

    make, inside = sentence_transformers.CrossEncoder, []
    both = threading.Barrier(2)

    def watched(*args, **settings):
        inside.append("enter")
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # for the other thread, which must not come
        made = make(*args, **settings)
        inside.append("leave")
        return made

    monkeypatch.setattr(sentence_transformers, "CrossEncoder", watched)
    for precision in ("bf16", "fp32"):
        in_thread(Reranker(small_bert, backend="torch", precision=precision).warm_up)
    assert all(isinstance(result, Reranker) for result in in_thread.finished())
    assert inside == ["enter", "leave"] * 2


def test_models_of_all_backends_load_at_once(small_bert):
    """In a fresh process, where the packages of the engines are imported meanwhile too; none waits for ever."""
    code = f"""
import threading
from marcorank import Reranker
settings = [
    *(dict(backend="openvino", precision=name, threads=number) for name in ("fp32", "int8") for number in (1, 2)),
    dict(backend="onnx"), dict(backend="torch", precision="fp32"), dict(backend="torch", precision="bf16"),
]
rerankers = [Reranker({str(small_bert)!r}, **each) for each in settings] + [Reranker("bundled")]
def load(reranker):
    everyone.wait()
    reranker.warm_up()
everyone = threading.Barrier(len(rerankers))
threads = [threading.Thread(target=load, args=(reranker,)) for reranker in rerankers]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for reranker, each in zip(rerankers, settings):
    found, = reranker.score({QUERY!r}, ["museum"])
    reranker.close()
    expected, = Reranker({str(small_bert)!r}, **each).score({QUERY!r}, ["museum"])
    assert abs(found - expected) < 1e-3
print("done")
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "done"


class Waiting:
    """A thing that three threads ask for, of which the first one makes it when the others wait.

    Args:
        make: Makes it.
    """

    def __init__(self, make):
        self.once = Once()
        self.make = make
        self.asked = 0
        self.all_asked = threading.Event()
        self.made = None

    def find(self):
        self.asked += 1
        if self.asked == 3:
            self.all_asked.set()
        return self.made

    def make_for_all(self):
        assert self.all_asked.wait(PATIENCE_S)
        self.made = self.make()
        return self.made

    def get(self):
        return self.once.get("thing", self.find, self.make_for_all)


def test_a_load_that_fails_fails_for_all_who_wait(in_thread):
    """Nobody tries again in turn what may take long to fail; who comes later does."""
    error, tries = OSError("no such disk"), []

    def fail():
        tries.append(1)
        raise error

    thing = Waiting(fail)
    for _ in range(3):
        in_thread(thing.get)
    assert in_thread.finished() == [error] * 3
    assert len(tries) == 1
    with pytest.raises(OSError, match="no such disk"):
        thing.get()
    assert len(tries) == 2


def test_an_interrupt_of_the_thread_that_loads_concerns_no_other(in_thread):
    """One of those who wait loads instead."""
    tries = []

    def interrupted_at_first():
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt
        return "thing"

    thing = Waiting(interrupted_at_first)
    for _ in range(3):
        in_thread(thing.get)
    results = in_thread.finished()
    assert results.count("thing") == 2
    assert sum(isinstance(result, KeyboardInterrupt) for result in results) == 1
    assert len(tries) == 2
