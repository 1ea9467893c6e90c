"""Figures, files, reports and requests of the benchmark."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from marcorank import InvalidInputError
from marcorank.bench.limit import onnx_product
from marcorank.bench.records import Results, Row, Settings
from marcorank.bench.workload import QUERY, Workload, pair_length, pair_lengths, read_tokenizer, request_flops
from marcorank.cli.bench_report import change_lines, report_lines


def row(contestant="marcorank", *, seconds=(1.0,), backend="onnx", model="a", **more):
    backend = backend if contestant == "marcorank" else ""
    rounds_s = [[second] for second in seconds]
    given = {"cold_start_s": [2.0], "order": [1, 0, 2], "rounds_s": rounds_s, **more}
    return Row(model, contestant, backend, **given)


def results(*rows, limits=None):
    return Results(
        Settings(models=tuple(dict.fromkeys(found.model for found in rows))),
        machine={"processor": "Chip", "usable_cores": 2, "packages": {"marcorank": "1"}},
        workload={"query": "q", "passages": ["x", "y", "z"], "lengths": [8, 9, 10], "tokens": 27},
        rows=list(rows),
        limits=limits or {},
        not_installed=["fastembed"],
        date="2026-01-02T03:04:05+00:00",
    )


@pytest.mark.parametrize(
    ("rows", "baseline"),
    [
        (["langchain", "llama-index", "sentence-transformers", "marcorank"], "llama-index"),
        (["langchain", "flashrank", "marcorank"], "langchain"),
        (["flashrank", "sentence-transformers", "marcorank"], "sentence-transformers"),
        (["flashrank", "marcorank"], "flashrank"),
    ],
)
def test_baseline(rows, baseline):
    """The faster of the frameworks' own rerankers is 1, else sentence-transformers, else the slowest."""
    seconds = {"langchain": 4, "llama-index": 3, "sentence-transformers": 2, "flashrank": 9, "marcorank": 1}
    found = results(*(row(contestant, seconds=[seconds[contestant]]) for contestant in rows))
    assert found.baseline("a").contestant == baseline
    assert found.figures(found.rows[-1])["speed"] == seconds[baseline]


def test_baseline_of_another_model():
    """The bundled model has no peers of its own; its speed is relative to the peers of the other model in the run."""
    found = results(row("langchain", seconds=[6]), row(seconds=[2]), row(seconds=[1], model="bundled"))
    figures = found.figures(found.rows[-1])
    assert figures["speed"] == 6
    assert figures["baseline"] == "langchain with a"
    assert "speed: langchain with a = 1; off by" in "\n".join(report_lines(found))


def test_percentiles():
    """One slow request among many moves the 95th percentile, not the median."""
    found = results(row(seconds=[0.1] * 9 + [5.0]))
    figures = found.figures(found.rows[0])
    assert figures["p50_ms"] == pytest.approx(100)
    assert figures["p95_ms"] == pytest.approx(float(np.percentile([0.1] * 9 + [5.0], 95)) * 1e3)
    assert figures["passages_per_s"] == pytest.approx(30)


def test_share_of_limit():
    """The limit is the fastest product of all libraries and rounds; each precision has its own."""
    limits = {"fp32": {"torch": [80.0, 100.0, 90.0], "onnxruntime": [70.0]}, "int8": {"openvino": [900.0]}}
    found = results(row(flops=50e9), row(precision="bf16", flops=50e9), limits=limits)
    assert found.figures(found.rows[0])["share_of_limit"] == pytest.approx(0.5)
    assert found.figures(found.rows[1])["share_of_limit"] is None
    assert "limit in fp32: 100 GFLOP/s (torch)" in list(report_lines(found))


def test_comparison_with_sentence_transformers():
    """The table shows another order of the best three, and the largest difference of a logit."""
    right = row("sentence-transformers", logits=[0.0, 5.0, -1.0])
    wrong = row(precision="int8", logits=[6.0, 5.0, -1.0], order=[0, 1, 2])
    silent = row("langchain")
    found = results(right, wrong, silent)
    assert found.figures(wrong)["largest_difference"] == 6
    assert not found.figures(wrong)["same_top_3"]
    assert found.figures(silent)["largest_difference"] is None
    assert found.figures(silent)["same_top_3"]
    lines = list(report_lines(found))
    assert next(line for line in lines if line.startswith("marcorank onnx int8")).endswith("NO")


def test_json_round_trip(tmp_path):
    """The file keeps everything, and adds the figures of each row."""
    found = results(
        row(seconds=[1.5, 2.5], logits=[0.5, 1.5, -2.0], scenarios={"lag": {"p99_s": 0.001}}, peak_memory_bytes=5),
        row("flashrank", reason="it has other weights", reason_kind="UnusableError", seconds=[]),
        limits={"fp32": {"torch": [99.5]}},
    )
    path = tmp_path / "bench.json"
    found.write_json(path)
    assert Results.read_json(path) == found
    assert json.loads(path.read_text())["rows"][0]["figures"]["p50_ms"] == 2000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not a result of `marcorank bench --json`"),
        ("[]", "is not a result"),
        ('{"format": 2}', "is not a result .* KeyError"),
        ('{"format": 99}', "has format 99; this version reads 2"),
    ],
)
def test_invalid_result_file(content, message, tmp_path):
    """The error names the file and what was expected."""
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInputError, match=f"old.json.*{message}"):
        Results.read_json(path)


def test_changes():
    """Each contestant of both runs has its speed-up; the change of the machine's own limit is below it."""
    before = results(row(seconds=[3.0]), row("fastembed"), limits={"fp32": {"torch": [50.0]}})
    after = results(row(seconds=[2.0]), row(precision="int8"), limits={"fp32": {"torch": [100.0]}})
    after.machine["processor"] = "Other"
    lines = list(change_lines(before, after))
    text = "\n".join(lines)
    assert "since 2026-01-02T03:04:05+00:00 (marcorank 1)" in text
    assert "note: the earlier run was on another processor, Chip" in text
    assert [line for line in lines if "onnx" in line] == [line for line in lines if "1.50x" in line]
    assert "the machine's limit in fp32: 50 GFLOP/s before, 100 now" in text
    assert "only in the earlier run: fastembed with a" in text


def test_reasons():
    """Contestants that fail for the same reason share a line."""
    reason = {"reason": "openvino is missing", "reason_kind": "MissingExtraError", "seconds": []}
    found = results(row(), *(row(backend="openvino", precision=p, **reason) for p in ("fp32", "bf16", "int8")))
    text = "\n".join(report_lines(found))
    assert (
        "not measured: marcorank openvino fp32, marcorank openvino bf16, marcorank openvino int8: openvino is missing"
        in text
    )
    assert "not installed: fastembed" in text


def test_scenario_lines():
    """Each scenario has a line for each contestant, also for one that failed."""
    scenarios = {
        "concurrent": {"requests": 8, "threads_of_one_call": 0.95, "tasks_of_one_call": 0.9},
        "lag": {"requests": 9, "p99_ms": 12.34, "p50_ms": 0.1},
    }
    text = "\n".join(report_lines(results(row(scenarios=scenarios))))
    assert "8 concurrent requests reach 95% (threads) and 90% (tasks) of the throughput of one call" in text
    assert "during 9 requests, the event loop was late by 12.3 ms (p99)" in text
    failed = "\n".join(report_lines(results(row(scenarios={"lag": {"reason": "it timed out"}}))))
    assert "lag: marcorank onnx fp32: it timed out" in failed


def test_passages():
    """The pairs have the requested lengths to the token, and are the same in each run."""
    lengths = pair_lengths(20, 95, 414)
    passages = Workload("bundled").passages(lengths)
    tokenizer = read_tokenizer("bundled", None)
    counted = [pair_length(tokenizer, QUERY, passage) for passage in passages]
    assert sorted(counted) == lengths
    assert counted != lengths
    assert sum(lengths) == pytest.approx(4535, abs=20)
    assert max(lengths) * 20 == 8280
    assert passages == Workload("bundled").passages(lengths)
    assert len(set(passages)) == 20


def test_many_short_passages_are_all_different():
    """Duplicates would be scored once, so there are none even when texts of a length run out."""
    assert len(set(Workload("bundled").passages([16] * 300))) == 300


def test_flops(small_bert):
    """Two layers of width 32 and 64: twice the weights per token, and attention by the square of the tokens."""
    tokens = pair_length(read_tokenizer(str(small_bert), None), QUERY, "not very long")
    layer = 2 * (4 * 32**2 + 2 * 32 * 64) * tokens + 4 * tokens**2 * 32
    assert request_flops(str(small_bert), ["not very long"] * 3, None) == 3 * 2 * layer


def test_flops_of_an_unknown_architecture(small_bert, tmp_path):
    """A model of another architecture has no share of the limit rather than a wrong one."""
    (tmp_path / "tokenizer.json").write_bytes((small_bert / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "modernbert", "hidden_size": 32}')
    assert request_flops(str(tmp_path), ["so"], None) is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnx_product(precision):
    """The ONNX model multiplies."""
    left_type, right_type = (np.uint8, np.int8) if precision == "int8" else (np.float32, np.float32)
    left = np.arange(12, dtype=left_type).reshape(3, 4)
    right = np.arange(8, dtype=right_type).reshape(4, 2) - 4
    session = onnxruntime.InferenceSession(onnx_product(precision), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"left": left, "right": right.astype(right_type)})
    assert np.array_equal(product, left.astype(np.int64) @ right.astype(np.int64))
