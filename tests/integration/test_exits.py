"""The end of a process: in time and with its own status, whatever its threads and its engines are doing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from patience import PATIENCE_S
from random_models import QUERY

PASSAGES = ["The Spree flows through Berlin.", "Berlin has 3.8 million inhabitants."]
ENDS = {"": 0, "sys.exit(3)": 3, "raise ValueError('of the program')": 1}


def status(program, *arguments):
    """Run a program to its end; it must print "ranked" before."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.stdout == "ranked\n", done.stderr
    assert "terminate" not in done.stderr
    return done.returncode


# Calls that never leave C++ for long, as those of a model that is being loaded or of a scorer of one's own.
ENDLESS_CALLS = {
    "openvino": """
from openvino import Model, opset13 as ops
from marcorank._inference.backends.openvino import shared_core
x = ops.parameter([64, 64], np.float32)
request = shared_core().compile_model(Model([ops.result(ops.matmul(x, x, False, False))], [x]), "CPU")
request = request.create_infer_request()
call = lambda: request.infer([np.ones((64, 64), np.float32)])
""",
    "onnx": """
import onnxruntime, os
session = onnxruntime.InferenceSession(os.path.join(folder, "onnx/model.onnx"))
feed = {node.name: np.ones((1, 64), np.int64) for node in session.get_inputs()}
call = lambda: session.run(None, feed)
""",
    "torch": """
import torch
matrix = torch.ones(64, 64)
call = lambda: matrix @ matrix
""",
}
ABANDONED = """
import json, sys, threading
import numpy as np
from marcorank import Reranker
folder, query, passages = json.loads(sys.argv[1])
{call}
working = threading.Event()

class Hanging:
    def score(self, query, passages):
        while True:
            call()
            working.set()

reranker = Reranker(Hanging(), timeout_s=0.1, on_error="passthrough")
assert reranker.rank(query, passages).status is not None
assert working.wait(60)
print("ranked", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("engine", "end"), [("openvino", "sys.exit(3)"), *(("onnx", end) for end in ENDS), ("torch", "sys.exit(3)")]
)
def test_a_scorer_that_hangs_in_an_engine_changes_no_status(small_bert, engine, end):
    """Its thread is abandoned, and the program ends in time; it does not abort."""
    program = ABANDONED.format(call=ENDLESS_CALLS[engine], end=end)
    assert status(program, str(small_bert), QUERY, PASSAGES) == ENDS[end]


LOADING = """
import json, sys
from marcorank import Reranker
folder, query, passages, backend = json.loads(sys.argv[1])
reranker = Reranker(folder, backend=backend, device="cpu", timeout_s=0.02, on_error="passthrough")
assert reranker.rank(query, passages).status is not None
print("ranked", flush=True)
sys.exit(3)
"""


@pytest.mark.parametrize("backend", ["openvino", "onnx", "torch"])
def test_a_program_that_ends_while_a_model_loads_has_its_own_status(small_bert, backend):
    """The time limit passed while the model was being loaded, and the answer was the order of the input."""
    assert status(LOADING, str(small_bert), QUERY, PASSAGES, backend) == 3


def test_a_server_that_does_not_answer_changes_no_status():
    """The connection is dropped, and the program ends."""
    program = LOADING.replace('backend=backend, device="cpu", ', "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tei+http://127.0.0.1:{server.getsockname()[1]}"
        assert status(program, url, QUERY, PASSAGES, None) == 3


RESOLVING = """
import faulthandler, json, socket, sys, threading
from marcorank.remote import RemoteScorer
query, passages = json.loads(sys.argv[1])
resolving = threading.Event()

def resolve(*arguments, **options):
    resolving.set()
    threading.Event().wait()

socket.getaddrinfo = resolve
scorer = RemoteScorer("tei+http://slow.example")
abandoned = scorer.submit([(query, passages)])
assert resolving.wait(60)
print("ranked", flush=True)
faulthandler.dump_traceback_later(60, exit=True)
sys.exit(3)
"""


def test_a_lookup_that_hangs_does_not_keep_a_program_from_ending():
    """Nothing can interrupt it, so its thread is abandoned."""
    assert status(RESOLVING, QUERY, PASSAGES) == 3


CHILD = '''
import json, os, signal, sys, time, warnings
from marcorank import Reranker
warnings.simplefilter("ignore", DeprecationWarning)
folder, query, passages, backend = json.loads(sys.argv[1])
statuses = []

def wait_for_threads():
    """MKL, which torch uses, holds a lock while threads end, and no child may be forked then."""
    same, number = 0, -1
    while backend == "torch" and os.path.exists("/proc/self/task") and same < 50:
        found = len(os.listdir("/proc/self/task"))
        same, number = (same + 1, number) if found == number else (0, found)
        time.sleep(0.02)

for before in ("ranked", "closed"):
    reranker = Reranker(folder, backend=backend, device="cpu")
    expected = reranker.rank(query, passages)
    if before == "closed":
        reranker.close()
        reranker = Reranker(folder, backend=backend, device="cpu")
        wait_for_threads()
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        sys.exit(3 if reranker.rank(query, passages) == expected else 4)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    reranker.close()
print("ranked", flush=True)
sys.exit(3 if statuses == [3, 3] else f"children ended with {statuses}")
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("backend", ["openvino", "onnx", "torch"])
def test_a_forked_child_ends_with_its_own_status(small_bert, backend):
    """It ends as any program, with `sys.exit`, although the engine's threads exist only in its parent."""
    assert status(CHILD, str(small_bert), QUERY, PASSAGES, backend) == 3
