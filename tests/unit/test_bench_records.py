"""What a benchmark makes of raw times, and that its files keep them."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from marcorank import InvalidInputError
from marcorank.bench.flops import request_flops
from marcorank.bench.products import _onnx_product
from marcorank.bench.records import Contestant, Limit, Results, Row, Settings
from marcorank.bench.workload import Workload, pair_length, pair_lengths, read_tokenizer
from marcorank.cli.bench_report import change_lines, report_lines


def row(engine="marcorank", *, seconds=(1.0,), backend="onnx", precision="fp32", model="a", **more):
    backend = backend if engine == "marcorank" else ""
    found = Row(Contestant(model, engine, backend, precision), cold_start_s=[2.0], order=[1, 0, 2])
    found.rounds_s = [[second] for second in seconds]
    for name, value in more.items():
        setattr(found, name, value)
    return found


def results(*rows, **more):
    return Results(
        Settings(models=tuple(dict.fromkeys(found.contestant.model for found in rows))),
        machine={"processor": "Chip", "usable_cores": 2, "packages": {"marcorank": "1"}},
        workload={"query": "q", "passages": ["x", "y", "z"], "lengths": [8, 9, 10], "tokens": 27, "padded_tokens": 30},
        rows=list(rows),
        limits=more.get("limits", []),
        not_installed={"fastembed": "pip install fastembed"},
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
def test_speeds_are_relative_to_what_people_have_today(rows, baseline):
    """The faster of the frameworks' own rerankers is 1, else sentence-transformers, else the slowest."""
    seconds = {"langchain": 4, "llama-index": 3, "sentence-transformers": 2, "flashrank": 9, "marcorank": 1}
    found = results(*(row(engine, seconds=[seconds[engine]]) for engine in rows))
    assert found.baseline("a").contestant.engine == baseline
    assert found.figures(found.rows[-1])["speed"] == seconds[baseline]


def test_a_model_that_no_peer_can_load_is_measured_against_those_of_another():
    """The bundled model has no peers of its own; its speed is relative to the peers of the other model in the run."""
    found = results(row("langchain", seconds=[6]), row(seconds=[2]), row(seconds=[1], model="bundled"))
    figures = found.figures(found.rows[-1])
    assert figures["speed"] == 6
    assert figures["baseline"] == ["a", "langchain"]
    assert "speed: langchain with a = 1; off by" in "\n".join(report_lines(found))


def test_figures_are_medians_of_the_requests():
    """One slow request among many moves the 95th percentile, and not the median."""
    found = results(row(seconds=[0.1] * 9 + [5.0]))
    figures = found.figures(found.rows[0])
    assert figures["p50_ms"] == pytest.approx(100)
    assert figures["p95_ms"] == pytest.approx(float(np.percentile([0.1] * 9 + [5.0], 95)) * 1e3)
    assert figures["passages_per_s"] == pytest.approx(30)


def test_the_share_is_of_the_fastest_product_at_the_same_precision():
    """The limit is the best of all engines, sizes and rounds; another precision has another limit."""
    limits = [
        Limit("torch", "fp32", 1024, [80.0, 100.0, 90.0]),
        Limit("onnxruntime", "fp32", 2048, [70.0]),
        Limit("openvino", "int8", 1024, [900.0]),
        Limit("openvino", "bf16", reason="not there"),
    ]
    found = results(
        row(flops=50e9, least_flops=40e9),
        row(precision="bf16", flops=50e9),
        limits=limits,
    )
    assert found.figures(found.rows[0])["share_of_limit"] == pytest.approx(0.5)
    assert found.figures(found.rows[0])["least_share_of_limit"] == pytest.approx(0.4)
    assert found.figures(found.rows[1])["share_of_limit"] is None


def test_answers_are_compared_with_those_of_sentence_transformers():
    """A wrong order among the first three is shown, and how far a logit is off."""
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


def test_json_keeps_everything(tmp_path):
    """What is read again says the same, figures included."""
    found = results(
        row(seconds=[1.5, 2.5], logits=[0.5, 1.5, -2.0], scenarios={"lag": {"p99_s": 0.001}}, peak_memory_bytes=5),
        row("flashrank", reason="it is elsewhere", reason_kind="Unusable", seconds=[]),
        limits=[Limit("torch", "fp32", 1024, [99.5])],
    )
    path = tmp_path / "bench.json"
    found.write_json(path)
    again = Results.read_json(path)
    assert again == found
    assert json.loads(json.dumps(again.to_dict())) == json.loads(path.read_text())
    assert json.loads(path.read_text())["rows"][0]["figures"]["p50_ms"] == 2000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "holds no results of `marcorank bench --json`"),
        ("[]", "holds no results"),
        ('{"format": 1}', "holds no results .* KeyError"),
        ('{"format": 99}', "has format 99; this version reads 1"),
    ],
)
def test_a_file_that_is_no_result_is_refused(content, message, tmp_path):
    """Who compares with the wrong file learns which one, and what was expected."""
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInputError, match=f"old.json.*{message}"):
        Results.read_json(path)


def test_changes_name_what_got_faster_and_what_the_machine_did():
    """Each contestant of both runs has its speed-up; the machine's own change stands beside it."""
    before = results(row(seconds=[3.0]), row("fastembed"), limits=[Limit("torch", "fp32", 1024, [50.0])])
    after = results(row(seconds=[2.0]), row(precision="int8"), limits=[Limit("torch", "fp32", 1024, [100.0])])
    after.machine["processor"] = "Other"
    lines = list(change_lines(before, after))
    text = "\n".join(lines)
    assert "since 2026-01-02T03:04:05+00:00 (marcorank 1)" in text
    assert "note: that was another processor, Chip" in text
    assert [line for line in lines if "onnx" in line] == [line for line in lines if "1.50x" in line]
    assert "the machine itself in fp32: 50 GFLOP/s then, 100 now" in text
    assert "only then: fastembed with a" in text


def test_reasons_stand_once_for_all_that_they_stopped():
    """A package that is missing for three precisions is one line."""
    reason = {"reason": "openvino is not there", "reason_kind": "MissingExtraError", "seconds": []}
    found = results(row(), *(row(backend="openvino", precision=p, **reason) for p in ("fp32", "bf16", "int8")))
    text = "\n".join(report_lines(found))
    assert (
        "not measured: marcorank openvino fp32, marcorank openvino bf16, marcorank openvino int8: openvino is not there"
        in text
    )
    assert "not installed: fastembed" in text


def test_scenarios_are_told_in_a_sentence():
    """Each scenario has a line for each contestant, also one that failed."""
    scenarios = {
        "concurrent": {"requests": 8, "threads_of_one_call": 0.95, "tasks_of_one_call": 0.9},
        "scale": {"few": 100, "many": 1000, "time_per_passage_ratio": 1.05},
        "memory": {"few": 200, "many": 1000, "few_bytes": 100, "many_bytes": 110e6, "peak_memory_ratio": 1.1},
        "lag": {"requests": 9, "p99_s": 0.0123, "p50_s": 0.0001},
    }
    text = "\n".join(report_lines(results(row(scenarios=scenarios))))
    assert "8 requests at once have 95% (threads) and 90% (tasks) of the throughput of one call" in text
    assert "a passage among 1,000 takes 1.05 times as long as among 100" in text
    assert "1,000 passages of 512 tokens take 110 MB, 1.10 times as much as 200" in text
    assert "the event loop was late by 12.3 ms (p99)" in text
    failed = "\n".join(report_lines(results(row(scenarios={"lag": {"reason": "it kept silent"}}))))
    assert "lag: marcorank onnx fp32: it kept silent" in failed


def test_the_request_is_that_of_the_field_notes():
    """Twenty pairs have the lengths that were asked for, to the token, and are the same each time."""
    settings = Settings(models=("bundled",))
    lengths = pair_lengths(20, 95, 414)
    passages = Workload(settings, "bundled").passages(lengths)
    tokenizer = read_tokenizer("bundled", None)
    counted = [pair_length(tokenizer, Workload.query, passage) for passage in passages]
    assert sorted(counted) == lengths
    assert counted != lengths
    assert sum(lengths) == pytest.approx(4535, abs=20)
    assert max(lengths) * 20 == 8280
    assert passages == Workload(settings, "bundled").passages(lengths)
    assert len(set(passages)) == 20


def test_many_short_passages_are_all_different():
    """When texts of a length run out there are still as many as were asked for: equal ones would be scored once."""
    passages = Workload(Settings(models=("bundled",)), "bundled").passages([16] * 300)
    assert len(set(passages)) == 300


def test_operations_are_counted_from_the_shape(small_bert):
    """Two layers of width 32 and 64: weights twice a token, attention by the square of the tokens."""
    tokenizer = read_tokenizer(str(small_bert), None)
    tokens = pair_length(tokenizer, "how long", "not very long")
    found = request_flops(str(small_bert), "how long", ["not very long"] * 3, None)
    layer = 2 * (4 * 32**2 + 2 * 32 * 64) * tokens + 4 * tokens**2 * 32
    last = 2 * (2 * 32**2 * tokens + 2 * 32**2 + 2 * 32 * 64) + 4 * tokens * 32
    assert found.whole == 3 * 2 * layer
    assert found.least == 3 * (layer + last)


def test_operations_of_an_unknown_shape_are_not_guessed(small_bert, tmp_path):
    """A model of another architecture has no share of the limit rather than a wrong one."""
    (tmp_path / "tokenizer.json").write_bytes((small_bert / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "modernbert", "hidden_size": 32}')
    assert request_flops(str(tmp_path), "how", ["so"], None) is None


@pytest.mark.parametrize("whole", [False, True])
def test_the_product_that_is_timed_is_the_product(whole):
    """The ONNX model that is written by hand multiplies, in fp32 and in int8."""
    left = np.arange(12, dtype=np.uint8 if whole else np.float32).reshape(3, 4)
    right = np.arange(8, dtype=np.int8 if whole else np.float32).reshape(4, 2) - 4
    session = onnxruntime.InferenceSession(_onnx_product(left, right), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"left": left})
    assert np.array_equal(product, left.astype(np.int64) @ right.astype(np.int64))
