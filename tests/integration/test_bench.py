"""`marcorank bench` from arguments to processes, tables and files."""

# ruff: noqa: S603 -- what runs here is this project's own program

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from marcorank import Reranker, cli
from marcorank._inference.cpu import cpu_features
from marcorank.bench.contestants import PEERS
from marcorank.bench.process import Child, ContestantError
from marcorank.bench.records import Results, Settings
from marcorank.bench.running import run_bench
from patience import PATIENCE_S
from random_models import predict

PAIR = {"contestant": "marcorank", "query": "how long", "passages": ["not long", "long"]}


def small(*models, **more):
    """Settings of a short benchmark."""
    given = {"candidates": 4, "lengths": (16, 40), "rounds": 2, "cold_starts": 1, "limit_sizes": (64,), **more}
    return Settings(models=tuple(map(str, models)), **given)


def setup(model):
    return [str(model), "onnx", "fp32", str(model), "", "cpu", None, None]


@pytest.fixture(scope="module")
def benched(small_bert):
    """Results of two backends and all peers with one small model, and the reported steps."""
    steps = []
    settings = small(small_bert, backends=("openvino", "onnx"), peers=tuple(PEERS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("marcorank.bench.running._MAX_REQUESTS_PER_TURN", 2)
        return run_bench(settings, steps.append), steps


@pytest.fixture(scope="module")
def scenarios(small_bert):
    """Results with every scenario."""
    settings = small(
        small_bert,
        backends=("onnx",),
        precisions=("fp32",),
        cold_starts=3,
        scenarios=("concurrent", "lag"),
        concurrency=3,
        lag_requests=3,
        limit_sizes=(),
    )
    return run_bench(settings)


def row_of(results, label):
    return next(row for row in results.rows if row.label == label)


def test_turns(benched, small_bert):
    """Contestants take turns: a round is over before the next begins, and its order changes."""
    results, steps = benched
    ran = [row.label for row in results.rows if row.measured]
    assert set(ran) >= {"sentence-transformers", "llama-index", "marcorank onnx fp32", "marcorank openvino fp32"}
    turns = [
        [text.removeprefix(start).split(" with ")[0] for text in steps if text.startswith(start) and " with " in text]
        for start in ("Round 1 of 2: ", "Round 2 of 2: ")
    ]
    assert turns[0] == ran
    assert turns[1] == [*ran[1:], ran[0]]
    order = [text[:7] for text in steps if text.startswith("Round")]
    assert order == sorted(order)
    for row in results.rows:
        assert not row.measured or (len(row.rounds_s) == 2 and all(row.rounds_s) and len(row.cold_start_s) == 1)


def test_same_request(benched, small_bert):
    """Logits and order match those of the weights for every contestant."""
    results, _ = benched
    query, passages = results.workload["query"], results.workload["passages"]
    expected = predict(small_bert, query, passages)
    order = sorted(range(4), key=lambda number: -expected[number])
    for label in ("sentence-transformers", "marcorank onnx fp32", "marcorank openvino fp32"):
        assert np.allclose(row_of(results, label).logits, expected, atol=3e-4)
    for label in ("sentence-transformers", "llama-index", "marcorank onnx fp32", "marcorank openvino fp32"):
        assert row_of(results, label).order == order
        assert results.figures(row_of(results, label))["same_top_3"]
    assert (
        list(Reranker(small_bert, backend="onnx", precision="fp32").score(query, passages))
        == row_of(results, "marcorank onnx fp32").logits
    )
    assert results.baseline(str(small_bert)).contestant in {"langchain", "llama-index", "llama-index-sbert"}
    assert results.reference(str(small_bert)).contestant == "sentence-transformers"


def test_reasons(benched):
    """A missing file is the reason of its row; an unsupported combination that nobody requested has no row."""
    results, _ = benched
    assert "no int8 ONNX file" in row_of(results, "marcorank onnx int8").reason
    assert [row for row in results.rows if row.label == "marcorank onnx bf16"] == []


def test_missing_peer(small_bert, monkeypatch):
    """A peer that is not installed is listed, and the others are measured."""
    missing = PEERS["fastembed"]._replace(packages=("not-a-package",))
    monkeypatch.setitem(PEERS, "fastembed", missing)
    results = run_bench(
        small(small_bert, peers=("fastembed",), backends=("onnx",), precisions=("fp32",), rounds=1, limit_sizes=())
    )
    assert results.not_installed == ["fastembed"]
    assert row_of(results, "marcorank onnx fp32").measured


def test_requested_combination(small_bert):
    """An unsupported combination has a row with the reason if both backend and precision were requested."""
    (row,) = run_bench(small(small_bert, backends=("onnx",), precisions=("bf16",))).rows
    assert not row.measured
    assert "onnx backend supports" in row.reason


def test_limit(benched):
    """Each library has a speed in each round for each precision that a contestant computes in."""
    results, steps = benched
    assert {"torch", "onnxruntime"} <= set(results.limits["fp32"])
    computed = {row.precision for row in results.rows if row.logits is not None}
    if "avx512_bf16" in cpu_features():
        assert "bf16" in computed
    assert all("torch" in results.limits[precision] for precision in computed)
    for speeds in (speeds for libraries in results.limits.values() for speeds in libraries.values()):
        assert len(speeds) == 2
        assert min(speeds) > 0
    assert "Round 2 of 2: matrix product of onnxruntime in fp32" in steps
    assert results.figures(row_of(results, "marcorank onnx fp32"))["share_of_limit"] > 0


def test_scenarios(scenarios):
    """Every scenario has its figures, and each cold start its time."""
    (row,) = scenarios.rows
    found = row.scenarios
    assert len(row.cold_start_s) == 3
    assert set(found) == {"concurrent", "lag"}
    assert {way: len(times) for way, times in found["concurrent"]["seconds"].items()} == {
        "one_call": 2,
        "threads": 2,
        "tasks": 2,
    }
    assert found["lag"]["ticks"] > 0


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="only Linux and macOS report peak memory")
def test_peak_memory(scenarios, benched):
    """A peer with torch needs more memory than onnxruntime alone, whatever this process uses."""
    (row,) = scenarios.rows
    assert 20e6 < row.peak_memory_bytes < row_of(benched[0], "sentence-transformers").peak_memory_bytes


def test_results_round_trip(benched, tmp_path):
    """The file of a run restores its results."""
    results, _ = benched
    results.write_json(tmp_path / "bench.json")
    assert Results.read_json(tmp_path / "bench.json") == results


def test_model_without_weights_for_peers():
    """Peers that cannot load the bundled model say which file they need."""
    results = run_bench(
        small("bundled", peers=("sentence-transformers",), backends=("onnx",), rounds=1, limit_sizes=())
    )
    assert row_of(results, "sentence-transformers").reason == "the model has no .safetensors file, which it reads"
    assert row_of(results, "marcorank onnx int8").measured


@pytest.mark.parametrize("peer", PEERS)
def test_peers_rank_the_same_weights(peer, benched):
    """Each peer loads this model and returns the order of its logits."""
    results, _ = benched
    assert results.not_installed == []
    row = row_of(results, peer)
    assert row.reason is None
    assert row.order == row_of(results, "marcorank onnx fp32").order


def test_timeout(small_bert):
    """A contestant that does not respond in time is ended, and the reason says so."""
    with Child(threads=None, timeout_s=PATIENCE_S) as child:
        child.ask("load", **PAIR, setup=setup(small_bert))
        child.ask("request", query="how long", passages=["not long", "long"])
        child._timeout_s = 1
        with pytest.raises(ContestantError, match="no response within 1 s; its process was ended"):
            child.ask("time", repeat=10**9)
        assert child._process.poll() is not None
        with pytest.raises(ContestantError, match="no response within 1 s"):
            child.ask("memory")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_crash(small_bert):
    """The reason of a process that the system ended names the signal."""
    with Child(threads=None, timeout_s=PATIENCE_S) as child:
        child.ask("load", **PAIR, setup=setup(small_bert))
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(ContestantError, match="ended by SIGKILL, perhaps because memory ran out"):
            child.ask("time", repeat=1)
        with pytest.raises(ContestantError, match="ended by SIGKILL"):
            child.ask("memory")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds children through Linux' /proc")
def test_descendants_end(tmp_path, monkeypatch):
    """A library's own processes, such as those that report its use, do not outlive the contestant."""
    sleeper = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])"
    (tmp_path / "openvino.py").write_text(sleeper)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Child(threads=None, timeout_s=PATIENCE_S) as child:
        with pytest.raises(ContestantError):
            child.ask("product", product=["openvino", "fp32", [64], "cpu", None])
        started = wait_for(lambda: children_of(child._process.pid))
    assert wait_for(lambda: not any(map(alive, started)))


def test_process_survives_a_failed_command(small_bert):
    """The error of a command is raised here, and the process carries out the next one."""
    with Child(threads=None, timeout_s=PATIENCE_S) as child:
        with pytest.raises(ContestantError, match="no such folder") as caught:
            child.ask("load", **PAIR, setup=setup("./nowhere"))
        assert caught.value.kind == "UnknownModelError"
        child.ask("load", **PAIR, setup=setup(small_bert))
        assert child.ask("request", query="how long", passages=["not long", "long"])["order"] in ([0, 1], [1, 0])
        assert len(child.ask("time", repeat=3)) == 3


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in a folder of its own; returns exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run_command(*arguments):
        try:
            status = cli.main(["bench", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


def test_command(run, small_bert, tmp_path):
    """The command prints the table and writes file and chart; a second run compares with the first."""
    options = ("--backend", "onnx", "--precision", "fp32", "int8", "--peers", "none", "--rounds", 1, "--candidates", 2)
    options += ("--cold-starts", 1, "--lengths", 16, 40, "--no-limit")
    status, out, error = run(small_bert, *options, "--json", "old.json", "--chart", "speed.png")
    assert (status, error) == (0, "")
    lines = out.splitlines()
    assert "2 passages of 16 to 40 tokens, 56 in all; rounds: 1" in lines[0]
    assert lines[3].split()[:2] == ["reranker", "p50"]
    assert lines[4].startswith("marcorank onnx fp32 ")
    assert lines[4].endswith(" yes")
    assert any(line.startswith("not measured: marcorank onnx int8: Model ") for line in lines)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    settings = Results.read_json(tmp_path / "old.json").settings
    assert (settings.candidates, settings.lengths, settings.peers) == (2, (16, 40), ())
    assert settings.limit_sizes == ()
    status, out, _ = run(small_bert, *options, "--compare", "old.json")
    assert status == 0
    text = out.partition("\nsince ")[2]
    assert "p50 ms before  p50 ms now" in text
    assert "marcorank onnx fp32" in text


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["./nowhere"], 1, "Model './nowhere' is unknown"),
        (["bundled", "--chart", "speed.pdf"], 1, "expected a name that ends in .png or .svg"),
        (["bundled", "--json", "no/bench.json"], 1, "'no/bench.json' cannot be written: its folder does not exist"),
        (["bundled", "--compare", "old.json"], 1, "'old.json' cannot be read"),
        (["bundled", "--lengths", "40", "20"], 2, "--lengths expects the minimum first"),
        (["bundled", "--peers", "none", "flashrank"], 2, "--peers none excludes other names"),
        (["bundled", "--rounds", "0"], 2, "found '0'; expected a whole number of at least 1"),
        (["cross-encoder/ms-marco-TinyBERT-L2-v2"], 1, "ms-marco-TinyBERT-L2-v2"),
    ],
)
def test_invalid_arguments(run, arguments, status, message):
    """Wrong names and paths fail before anything is measured, with the expected values."""
    found, out, error = run(*arguments)
    assert (found, out) == (status, "")
    assert message in error


def test_nothing_measured(run, small_bert):
    """If nothing can be measured, the command prints the reason and exits with status 1."""
    status, out, _ = run(small_bert, "--backend", "onnx", "--precision", "int8", "--peers", "none", "--no-limit")
    assert status == 1
    assert "not measured: marcorank onnx int8: Model " in out


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds children through Linux' /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_remains(ending, small_bert, tmp_path):
    """After Ctrl-C, and even when the command itself is killed, every contestant ends."""
    # Two contestants: one of them waits whenever the end comes, and waiting must not be for ever.
    command = [sys.executable, "-m", "marcorank", "bench", str(small_bert), "bundled", "--rounds", "100000"]
    command += ["--backend", "onnx", "--precision", "fp32", "int8", "--peers", "none", "--cold-starts", "1"]
    started = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        # Where this suite itself is in the background, Ctrl-C would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        children = wait_for(lambda: len(found := children_of(started.pid)) > 1 and found)
        started.send_signal(ending)
        _, error = started.communicate(timeout=PATIENCE_S)
    finally:
        started.kill()
    assert wait_for(lambda: not any(map(alive, children)))
    assert started.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    assert error.decode() == ("marcorank: interrupted\n" if ending == signal.SIGINT else "")


def children_of(pid):
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return tasks.read_text().split() if tasks.exists() else []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.05)
    return found


def test_file_named_as_a_package(run, small_bert, tmp_path):
    """A file named as a package in the current folder is not imported by the contestants."""
    if sys.version_info < (3, 11):
        pytest.skip("PYTHONSAFEPATH needs Python 3.11")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('the wrong file')")
    shutil.copytree(small_bert, tmp_path / "model")
    options = ("--backend", "onnx", "--precision", "fp32", "--peers", "none", "--rounds", 1, "--no-limit")
    status, out, _ = run("model", *options)
    assert status == 0
    assert "wrong file" not in out
