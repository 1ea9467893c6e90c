"""Kills, forks, hangs and exits at random moments: every process ends, with its own status and the right answers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from marcorank import Reranker
from random_models import QUERY

PASSAGES = ["The Spree flows through Berlin.", "Berlin has 3.8 million inhabitants.", "Lists are mutable.", ""]
ROUNDS = 4
# Many times what a round takes on a busy machine.
LIMIT_S = 120

PROGRAM = """
import json, os, random, signal, sys, threading, time, warnings
from marcorank import MarcoRankError, Reranker
warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about a fork with threads
folder, query, passages, backend, seed, expected = json.loads(sys.argv[1])
settings = {"backend": backend, "device": "cpu"}
chance = random.Random(seed)

def check(reranker):
    ranking = reranker.rank(query, passages)
    found = sorted([passage.index, passage.logit] for passage in ranking)
    if ranking.status is None and found != expected:
        print(f"a wrong answer: {found} instead of {expected}", file=sys.stderr)
        os._exit(7)

class Hanging:
    def score(self, query, passages):
        threading.Event().wait()

def work(number):
    while True:
        try:
            check(kept)
            with Reranker(folder, **settings, threads=1 + number % 2) as reranker:
                check(reranker)
        except MarcoRankError:  # the program ends
            return

def in_child():
    signal.alarm(LIMIT)
    check(kept)
    check(Reranker(folder, **settings))
    sys.exit(5)

kept, closed = Reranker(folder, **settings), Reranker(folder, **settings, threads=1)
check(kept)
check(closed)
closed.close()
for number in range(3):
    threading.Thread(target=work, args=(number,), daemon=True).start()
Reranker(Hanging(), timeout_s=0.01, on_error="passthrough").rank(query, passages)
children = []
for _ in range(2):
    time.sleep(chance.random() / 10)
    children.append(os.fork())
    if children[-1] == 0:
        in_child()
killed = os.fork()
if killed == 0:
    in_child()
time.sleep(chance.random() / 10)
os.kill(killed, signal.SIGKILL)
os.waitpid(killed, 0)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert statuses == [5, 5], statuses
check(Reranker(folder, **settings, timeout_s=chance.random(), on_error="passthrough"))
print("done", flush=True)
sys.exit(3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_processes_end_with_their_status_and_the_right_answers(small_bert, backend):
    """Threads rank, load and close while children are forked and killed; some programs are killed as well."""
    ranking = Reranker(small_bert, backend=backend, device="cpu").rank(QUERY, PASSAGES)
    expected = sorted([passage.index, passage.logit] for passage in ranking)
    chance = random.Random(0)  # noqa: S311
    for seed in range(ROUNDS):
        arguments = json.dumps([str(small_bert), QUERY, PASSAGES, backend, seed, expected])
        with subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", PROGRAM.replace("LIMIT", str(LIMIT_S)), arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as program:
            kill = seed == 2
            try:
                if kill:
                    time.sleep(chance.random() * 3)
                    program.send_signal(signal.SIGTERM)
                out, err = program.communicate(timeout=3 * LIMIT_S)
            finally:
                if program.poll() is None:
                    os.killpg(program.pid, signal.SIGKILL)
        assert "a wrong answer" not in err
        assert program.returncode == 3 or (kill and program.returncode == -signal.SIGTERM), err
        assert kill or out == "done\n"
