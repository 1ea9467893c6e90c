"""Processes: whatever a parent did with a model, its children rank, and end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest

from patience import PATIENCE_S
from random_models import QUERY

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ENGINES = {
    "openvino": {"backend": "openvino", "precision": "fp32"},
    "openvino-auto": {"backend": "openvino"},
    "openvino-int8": {"backend": "openvino", "precision": "int8"},
    "openvino-1-thread": {"backend": "openvino", "threads": 1},
    "onnx": {"backend": "onnx"},
    "torch": {"backend": "torch", "device": "cpu", "precision": "fp32"},
}
PASSAGES = ["The Spree flows through Berlin.", "Berlin has 3.8 million inhabitants.", "Lists are mutable.", ""]
# A child that hangs is killed by its alarm; much longer than it takes on a busy machine.
LIMIT_S = 120
METHODS = ["fork", "spawn", "forkserver"]

PROGRAM = """
import json, os, signal, sys, threading, time, warnings
from marcorank import MarcoRankError, Reranker
warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about a fork with threads
folder, broken, settings, query, passages = json.loads(sys.argv[1])

def logits(reranker):
    return [(passage.index, passage.logit) for passage in reranker.rank(query, passages)]

def child_of(reranker):
    child = os.fork()
    if child == 0:
        signal.alarm({limit})
        inherited, own = logits(reranker), logits(Reranker(folder, **settings))
        os._exit(0 if inherited == own == expected else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def wait_for_threads():
    # MKL, which torch uses, holds a lock while threads end, and no child may be forked then.
    same, number = 0, -1
    while settings["backend"] == "torch" and os.path.exists("/proc/self/task") and same < 50:
        counted = len(os.listdir("/proc/self/task"))
        same, number = (same + 1, number) if counted == number else (0, counted)
        time.sleep(0.02)

found = {{}}
try:
    Reranker(broken, **settings).warm_up()
except MarcoRankError:
    failed = Reranker(folder, **settings)
    expected = None
    child = os.fork()
    if child == 0:
        signal.alarm({limit})
        os._exit(0 if len(logits(failed)) == len(passages) else 1)
    found["after a failed load"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
reranker = Reranker(folder, **settings)
expected = logits(reranker)
found["after a call"] = child_of(reranker)
other = Reranker(folder, **settings).warm_up()
reranker.close()
wait_for_threads()
found["after one of two was closed"] = child_of(other)
other.close()
wait_for_threads()
found["after close"] = child_of(Reranker(folder, **settings))
busy, stop = Reranker(folder, **settings).warm_up(), threading.Event()

def rank_until_stopped():
    while not stop.is_set():
        busy.rank(query, passages)

threads = [threading.Thread(target=rank_until_stopped) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(3):
    found[f"while threads rank, {{number}}"] = child_of(busy)
stop.set()
for thread in threads:
    thread.join()
found["in the parent"] = int(logits(busy) != expected)
print(json.dumps(found))
"""


def run(program, *arguments, timeout=PATIENCE_S):
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.fixture(scope="module")
def broken(small_bert, tmp_path_factory):
    """A model whose weights cannot be read."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(small_bert, folder)
    for weights in (folder / "onnx/model.onnx", folder / "model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:5000])
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_ranks_whatever_its_parent_did(small_bert, broken, engine):
    """After calls, after `close`, after a failed load and while threads rank, children answer as their parent does."""
    arguments = json.dumps([str(small_bert), str(broken), ENGINES[engine], QUERY, PASSAGES])
    done = run(PROGRAM.format(limit=LIMIT_S), arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == dict.fromkeys(found, 0)
    assert len(found) == 8


def test_a_fork_waits_for_a_forward_pass_of_torch():
    """A lock of MKL that is held at this moment would never be released in the child."""
    from marcorank._inference.backends.torch import computing

    entered, ended = threading.Event(), []

    def compute():
        with computing:
            entered.set()
            time.sleep(0.2)
            ended.append(True)

    thread = threading.Thread(target=compute)
    thread.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        with computing:
            os._exit(0)
    assert ended
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


WITH_MULTIPROCESSING = """
import json, multiprocessing, sys, warnings
from marcorank import Reranker
warnings.simplefilter("ignore", DeprecationWarning)

def rank(reranker, query, passages, answers):
    answers.put([passage.logit for passage in reranker.rank(query, passages)])

if __name__ == "__main__":
    folder, settings, query, passages, method = json.loads(sys.argv[1])
    context = multiprocessing.get_context(method)
    Reranker(folder, **settings).warm_up().close()
    reranker = Reranker(folder, **settings)
    expected = [passage.logit for passage in reranker.rank(query, passages)]
    answers = context.Queue()
    processes = [context.Process(target=rank, args=(reranker, query, passages, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout={limit}) for _ in processes]
    for process in processes:
        process.join({limit})
        exit_code = process.exitcode
        process.kill()
        assert exit_code == 0, exit_code
    assert found == [expected, expected], (found, expected)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_processes_of_multiprocessing_rank(small_bert, tmp_path, engine, method):
    """A reranker that has ranked is passed to processes, which rank with it and end with status 0."""
    program = tmp_path / "program.py"
    program.write_text(WITH_MULTIPROCESSING.format(limit=LIMIT_S))
    arguments = json.dumps([str(small_bert), ENGINES[engine], QUERY, PASSAGES, method])
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(program), arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr


APPLICATION = """
import json, os
from marcorank import Reranker

folder, settings, query, passages = json.loads(os.environ["ARGUMENTS"])
Reranker(folder, **settings).warm_up().close()
reranker = Reranker(folder, **settings).warm_up()

def application(environ, start_response):
    logits = [passage.logit for passage in reranker.rank(query, passages)]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), logits]).encode()]
"""


@contextmanager
def gunicorn(folder, arguments):
    """Serve the application with two workers that are forked after it was loaded."""
    (folder / "reranking_app.py").write_text(APPLICATION)
    command = [sys.executable, "-m", "gunicorn", "reranking_app:application", "--preload", "--workers", "2"]
    options = ["--bind", "127.0.0.1:0", "--chdir", str(folder), "--timeout", str(LIMIT_S)]
    process = subprocess.Popen(  # noqa: S603
        [*command, *options],
        env={**os.environ, "ARGUMENTS": arguments},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("engine", ["openvino", "onnx", "torch"])
def test_gunicorn_with_preload_serves(small_bert, tmp_path, engine):
    """The model is loaded before the workers are forked; each of them answers, and all end with status 0."""
    from marcorank import Reranker

    expected = [passage.logit for passage in Reranker(small_bert, **ENGINES[engine]).rank(QUERY, PASSAGES)]
    arguments = json.dumps([str(small_bert), ENGINES[engine], QUERY, PASSAGES])
    with gunicorn(tmp_path, arguments) as server:
        for line in server.stderr:
            if "Listening at: " in line:
                url = line.partition("Listening at: ")[2].split()[0]
                break
        answers = {}
        while len(answers) < 2:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as response:  # noqa: S310
                pid, logits = json.load(response)
            answers[pid] = logits
        assert list(answers.values()) == [expected, expected]
        server.send_signal(signal.SIGTERM)
        assert server.wait(LIMIT_S) == 0
