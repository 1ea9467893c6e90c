"""`marcorank eval`: input files, output files, tables and exit status."""

# ruff: noqa: S603 -- what runs here is this project's own program

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from marcorank import cli
from marcorank.cli.eval import _ScoringStatus
from marcorank.evaluation import evaluate, read_collection, read_run
from patience import PATIENCE_S

ROWS = [
    {
        "query": "How many people live in Berlin?",
        "passages": [
            "Berlin is well known for its museums.",
            "Berlin had a population of 3,520,031 registered inhabitants.",
            "Zürich lies on a lake.",
        ],
        "relevant": [1],
    },
    {"query": "how to open a file", "passages": ["lists are mutable", "open() opens a file"], "relevant": [1]},
    {"query": "what is a tuple", "passages": ["a list that cannot change", "rain"], "relevant": [0]},
]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in a new folder; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments):
        try:
            status = cli.main(["eval", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


@pytest.fixture
def candidates(tmp_path):
    """JSONL of queries with their passages."""
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def beir(tmp_path):
    """The same as a BEIR folder, and a run beside it."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    passages = {f"{index}-{n}": text for index, row in enumerate(ROWS) for n, text in enumerate(row["passages"])}
    write_rows(folder / "corpus.jsonl", [{"_id": key, "title": "", "text": text} for key, text in passages.items()])
    write_rows(folder / "queries.jsonl", [{"_id": f"{index}", "text": row["query"]} for index, row in enumerate(ROWS)])
    qrels = "".join(f"{index}\t{index}-{row['relevant'][0]}\t1\n" for index, row in enumerate(ROWS))
    (folder / "qrels" / "dev.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t0-1\t1\n")
    (tmp_path / "first.trec").write_text(
        "".join(f"{key.partition('-')[0]} Q0 {key} 1 {9 - int(key[-1])} bm25\n" for key in passages)
    )
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_times(rows):
    return [{name: value for name, value in row.items() if not name.startswith("latency")} for row in rows]


def test_one_line_is_enough(run, candidates, tmp_path):
    """With only a file of queries and passages, the bundled model is evaluated and all output files are written."""
    status, out, error = run(candidates.name)
    expected = evaluate(candidates)
    folder = tmp_path / "candidates-eval"
    assert status == 0
    assert "marcorank: wrote candidates-eval/report.html" in error
    assert out.startswith("candidates: 3 judged queries, up to 3 candidates each\n\nbundled\n")
    assert [line for line in out.splitlines() if "median latency" not in line] == [
        line for line in f"{expected}".splitlines() if "median latency" not in line
    ]
    assert (folder / "report.html").read_text().lower().startswith("<!doctype html>")
    assert json.loads((folder / "results.json").read_text())["models"][0]["label"] == "bundled"
    assert [path.name for path in (folder / "runs").iterdir()] == ["bundled.top10.trec"]
    logits = expected.models[0].logits["1"]
    best_first = dict(sorted(logits.items(), key=lambda pair: -pair[1]))
    assert list(read_run(folder / "runs" / "bundled.top10.trec")["1"].items()) == list(best_first.items())


def test_every_option_reaches_the_evaluation(run, beir, tmp_path, small_bert):
    """Each option has the effect of the argument with the same name."""
    queries, corpus = tmp_path / "queries.jsonl.gz", tmp_path / "corpus.jsonl"
    queries.write_bytes(gzip.compress((beir / "queries.jsonl").read_bytes().replace(b"Berlin", b"Bern")))
    corpus.write_text((beir / "corpus.jsonl").read_text().replace("museums", "towers"))
    status, out, error = run(
        *(beir, "--run", tmp_path / "first.trec", "--queries", queries, "--corpus", corpus, "--split", "dev"),
        *("--top-k", 1, 2, "--measures", "nDCG@3", "RR@2", "--relevant-grade", 1, "--output", "out", "--offline"),
        *("--format", "json", "--model", small_bert, "--backend", "onnx", "torch", "--device", "cpu"),
        *("--precision", "fp32", "--max-length", 40, "--max-query-tokens", 8, "--long-passages", "windows"),
    )
    assert (status, error) == (0, "marcorank: wrote out/report.html, results.json, runs and scores\n")
    rows = json.loads(out)
    assert [(row["model"], row["top_k"], row["measure"]) for row in rows] == [
        (f"{small_bert} ({backend})", top_k, measure)
        for backend in ("onnx", "torch")
        for top_k in (1, 2)
        for measure in ("nDCG@3", "RR@2")
    ]
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    settings = content["models"][1]["settings"]
    assert {name: settings[name] for name in ("max_length", "max_query_tokens", "long_passages", "device")} == {
        "max_length": 40,
        "max_query_tokens": 8,
        "long_passages": "windows",
        "device": "cpu",
    }
    collection = read_collection(beir, run=tmp_path / "first.trec", queries=queries, corpus=corpus, split="dev")
    assert "Bern" in collection.queries["0"]
    assert "towers" in collection.passages["0-0"]
    from marcorank import Reranker

    model = Reranker(
        small_bert, backend="onnx", max_length=40, max_query_tokens=8, long_passages="windows", device="cpu"
    )
    expected = evaluate(collection, model, top_k=(1, 2), measures=["nDCG@3", "RR@2"]).rows()
    assert [{**row, "model": None} for row in without_times(rows[:4])] == [
        {**row, "model": None} for row in without_times(expected)
    ]


def test_notes_of_the_collection_are_told(run, beir):
    """Notes on the input go to standard error, not to standard output."""
    status, out, error = run(beir, "--top-k", 2)
    assert status == 0
    assert "marcorank: note: There is no run; the first stage is BM25" in error
    assert "note" not in out


def test_ids_that_are_spelled_in_two_ways_are_an_error(run, tmp_path):
    """Where no judged passage is in the corpus, a table of zeros would say that reranking is useless."""
    (tmp_path / "data" / "qrels").mkdir(parents=True)
    write_rows(tmp_path / "data" / "corpus.jsonl", [{"_id": 7, "text": "honey"}, {"_id": 8, "text": "wax"}])
    write_rows(tmp_path / "data" / "queries.jsonl", [{"_id": "q", "text": "bees"}])
    (tmp_path / "data" / "run.trec").write_text("q 7 2.0\nq 8 1.0\n")
    (tmp_path / "data" / "qrels" / "test.tsv").write_text("q 0 007 1\nq 0 008 1\n")
    status, out, err = run(tmp_path / "data")
    assert (status, out) == (1, "")
    assert "error: 2 of 2 judged passages, such as '007', are not in the corpus of collection 'data'" in err
    assert "only others such as '7'; expected the same doc ids in both" in err
    (tmp_path / "data" / "qrels" / "test.tsv").write_text("q 0 7 1\nq 0 008 1\n")
    status, _, err = run(tmp_path / "data")
    assert status == 0
    assert "Judged passages that are not in the corpus, counted as not found: 1 of 2, such as '008'." in err


def test_the_second_time_nothing_is_scored(run, candidates, tmp_path):
    """The same command prints the same results and latencies again, and does not change the scores."""
    first = run(candidates, "--format", "json")
    (scores,) = (tmp_path / "candidates-eval" / "scores").iterdir()
    content = scores.read_bytes()
    assert run(candidates, "--format", "json") == first
    assert scores.read_bytes() == content


def test_combinations_that_cannot_be_had_are_named_before_anything_is_scored(run, candidates, tmp_path, small_bert):
    """One error names all combinations that cannot run."""
    status, out, error = run(candidates, "--model", "bundled", small_bert, "--precision", "auto", "fp32", "fp16")
    assert (status, out) == (1, "")
    assert "error: 2 of 6 models cannot be run, and nothing was scored.\n" in error
    assert "Reranker('bundled', precision='fp32')" in error
    assert "Reranker('bundled', precision='fp16')" in error
    assert not (tmp_path / "candidates-eval").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "required: SOURCE"),
        (("no-such-file",), 1, "error: 'no-such-file' does not exist"),
        (("candidates.jsonl", "--top-k", "ten"), 2, "found 'ten'; expected a whole number"),
        (("candidates.jsonl", "--top-k", "0"), 2, "argument --top-k: found '0'; expected a whole number of at least 1"),
        (("candidates.jsonl", "--measures", "nDGC@10"), 1, "Measure 'nDGC@10' cannot be computed"),
        (("candidates.jsonl", "--model", "no-such-model"), 1, "error: .*'no-such-model'"),
        (("candidates.jsonl", "--precision", "int4"), 2, "invalid choice: 'int4'"),
        (("candidates.jsonl", "--output", "candidates.jsonl"), 1, "is a file; expected a folder"),
        (("candidates.jsonl", "--max-length", "3"), 2, "argument --max-length: found 3; expected a whole number"),
    ],
)
def test_what_is_wrong_is_named(run, candidates, arguments, status, message):
    """Each message has the value found; there is no traceback, and no file is written."""
    found, out, error = run(*arguments)
    assert (found, out) == (status, "")
    assert re.search(message, error)
    assert "Traceback" not in error
    assert sorted(path.name for path in candidates.parent.iterdir()) == ["candidates.jsonl"]


def test_the_traceback_is_there_for_who_asks(run):
    """`--debug` shows where an error comes from."""
    _, _, error = run("missing.jsonl", "--debug")
    assert "Traceback" in error


def test_help_has_examples(run):
    """The help text has examples."""
    status, out, _ = run("--help")
    assert status == 0
    assert "marcorank eval candidates.jsonl" in out


# --- interruptions


@pytest.fixture
def long_work(tmp_path):
    """A file whose scoring takes some seconds."""
    return write_long_work(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What one command prints for that file that runs to its end."""
    path = write_long_work(tmp_path_factory.mktemp("uninterrupted"))
    out, error = started(path, "--format", "json").communicate(timeout=PATIENCE_S)
    assert out, error
    return json.loads(out)


def write_long_work(folder):
    path = folder / "long.jsonl"
    passages = [f"{number} " + "a long passage about many things " * 60 for number in range(4)]
    write_rows(path, [{"query": f"what is {n}", "passages": passages, "relevant": [n % 4]} for n in range(15)])
    return path


def started(path, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "marcorank", "eval", str(path), "--top-k", "2", "4", *arguments],
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )


def wait_for_scores(child, folder, lines):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and child.poll() is None:
        for path in folder.glob("*.jsonl"):
            if path.read_bytes().count(b"\n") > lines:
                return path
        time.sleep(0.01)
    raise AssertionError(f"no scores: {child.communicate(timeout=PATIENCE_S)}")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_an_interrupted_command_goes_on_where_it_stopped(run, long_work, uninterrupted, sent):
    """Ctrl-C and a kill lose no saved score, and the next run ends like one that was not interrupted."""
    folder = long_work.with_name("long-eval") / "scores"
    child = started(long_work)
    try:
        path = wait_for_scores(child, folder, lines=5)
        child.send_signal(sent)
        out, error = child.communicate(timeout=PATIENCE_S)
    finally:
        child.kill()
    assert child.returncode == (130 if sent == signal.SIGINT else -sent)
    assert out == ""
    before = path.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    saved = [len(json.loads(line)["logits"]) for line in whole.splitlines()[1:]]
    assert 10 <= sum(saved) < 60
    if sent == signal.SIGINT:
        message = r"(\d+) of 60 pairs are scored and saved in long-eval/scores; run the same command to resume"
        # The signal may come between the write of a line and its count.
        assert int(re.search(message, error)[1]) in {sum(saved), sum(saved[:-1])}
        assert error.endswith("marcorank: interrupted\n")
    status, out, _ = run(long_work, "--top-k", 2, 4, "--format", "json")
    assert status == 0
    assert path.read_bytes().startswith(whole)
    rows = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    scored = [(row["query_id"], doc_id) for row in rows for doc_id in row["doc_ids"]]
    assert len(scored) == len(set(scored)) == 60
    assert without_times(json.loads(out)) == without_times(uninterrupted)


def test_two_commands_do_not_share_a_file(run, long_work):
    """A second command on the same folder is refused, and the first continues."""
    child = started(long_work)
    try:
        wait_for_scores(child, long_work.with_name("long-eval") / "scores", lines=1)
        status, _, error = run(long_work)
        assert status == 1
        assert "is in use by another evaluation" in error
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate(timeout=PATIENCE_S)


def test_the_line_tells_pairs_and_time_left(monkeypatch):
    """Pairs that an earlier run scored do not count for the time left."""
    now = iter((100.0, 110.0, 160.0, 4000.0, 4001.0))
    monkeypatch.setattr("marcorank.cli.eval.time.monotonic", lambda: next(now))
    shown = _ScoringStatus()
    assert shown.line(5000, 10_000, "bundled") == "Scoring with bundled: 5,000 of 10,000 pairs"
    assert shown.line(5100, 10_000, "bundled") == "Scoring with bundled: 5,100 of 10,000 pairs, 8 min 10 s left"
    assert shown.line(8000, 10_000, "bundled") == "Scoring with bundled: 8,000 of 10,000 pairs, 40 s left"
    assert shown.line(8001, 10_000, "bundled") == "Scoring with bundled: 8,001 of 10,000 pairs, 43 min 18 s left"
    assert shown.line(10_000, 10_000, "bundled") == "Measuring"


def test_a_skimming_model_is_swept(run, candidates, tmp_path, small_bert):
    """`--skim` scores all candidates with that model too, and the report and the JSON say what it would keep."""
    rows = [{**row, "query": f"{row['query']} {number}"} for number in range(8) for row in ROWS]
    long = [{**row, "passages": [*row["passages"], *(f"filler {number}" for number in range(10))]} for row in rows]
    write_rows(candidates, long)
    status, out, _ = run(candidates.name, "--skim", small_bert, "--max-length", 48)
    assert status == 0
    folder = tmp_path / "candidates-eval"
    assert len(list((folder / "scores").iterdir())) == 2
    (model,) = json.loads((folder / "results.json").read_text())["models"]
    choices = model["choices"]
    assert [option["option"] for option in choices["options"]] == ["blend", "top_k", "skim_keep"]
    assert [point["skim_keep"] for point in choices["sweep"] if point["skim_keep"]] == [10]
    page = (folder / "report.html").read_text()
    for option in choices["options"]:
        assert option["reason"] in " ".join(out.split())
        assert option["reason"].replace("&", "&amp;") in page
    assert "one skim_keep after" in page
    # The tables of measures are as wide as before; what was added fits into 100 columns.
    assert all(len(line) <= 100 for line in out[out.index("Settings.") :].splitlines())
