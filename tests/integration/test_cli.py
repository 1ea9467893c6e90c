"""The command line as its users meet it: arguments in; text, files and an exit status out."""

# ruff: noqa: S603 -- what runs here is this project's own program

from __future__ import annotations

import gzip
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hub_server import HubServer
from marcorank import Logistic, ModelLoadError, Reranker, __version__
from marcorank._models import loading
from marcorank._models.catalogue import BUNDLED_MODELS, CATALOGUE
from marcorank._models.selection import choose
from marcorank._text import cells
from marcorank.cli import main
from marcorank.settings import RerankerSettings
from patience import PATIENCE_S
from random_models import bundled_folder

QUERY = "How many people live in Berlin?"
PASSAGES = [
    "Berlin is well known for its museums.",
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "Zürich lies on a lake. 柏林",
]
MINILM_L6 = CATALOGUE[3]
COMMAND = [sys.executable, "-m", "marcorank"]


@pytest.fixture
def run(capsys):
    """Run the command line in this process; returns exit status, standard output and standard error."""

    def run_command(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


@pytest.fixture
def write(tmp_path):
    """Write a file of texts or rows, one a line, and return its path."""

    def write_file(lines, name="passages.txt"):
        path = tmp_path / name
        content = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write_file


@pytest.fixture
def hub(small_bert):
    """A hub on loopback that has one model of the catalogue, at its pinned commit."""
    server = HubServer()
    server.add(MINILM_L6.name, MINILM_L6.revision, small_bert)
    yield server
    server.stop()


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def process(*arguments, **environment):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where buffers are off, a forgotten flush and a second one at exit go unnoticed.
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )


def finish(child, given=b""):
    """Return exit status, standard output and standard error of a process."""
    try:
        out, error = child.communicate(given, timeout=PATIENCE_S)
    finally:
        child.kill()
    return child.returncode, out.decode(), error.decode()


def on_terminal(*arguments, columns, typed=b"", until=None, then=None):
    """Run the command line on a terminal of its own and return its exit status and what the terminal shows.

    Args:
        arguments: Of the command line.
        columns: Width of the terminal.
        typed: What the user types.
        until: What has to be shown before `then` is done to the process.
        then: Function of the process.
    """
    pty = pytest.importorskip("pty", reason="terminals are made otherwise on Windows")
    here, there = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    child = subprocess.Popen([*COMMAND, *map(str, arguments)], stdin=there, stdout=there, stderr=there, env=environment)
    os.close(there)
    os.write(here, typed)
    shown, deadline = b"", time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            if not select.select([here], [], [], 0.1)[0]:
                continue
            try:
                read = os.read(here, 4096)
            except OSError:  # how Linux says that the other end was closed
                break
            if not read:
                break
            shown += read
            if until is not None and until in shown:
                until = None
                then(child)
        return child.wait(PATIENCE_S), shown.decode().replace("\r\n", "\n")
    finally:
        child.kill()
        os.close(here)


# --- rerank


def test_rerank_says_what_the_core_says(run, write):
    """The command line adds nothing to a ranking and takes nothing away."""
    status, out, error = run("rerank", QUERY, write(PASSAGES))
    expected = [
        {"text": result.text, "index": result.index, "rank": result.rank, "score": result.score, "logit": result.logit}
        | {"truncated": False, "unknown_tokens": int("柏" in result.text)}
        for result in Reranker("bundled").rank(QUERY, PASSAGES)
    ]
    assert (status, error) == (0, "")
    assert rows(out) == expected
    assert expected[0]["index"] == 1


def test_every_option_reaches_the_core(run, write, small_bert):
    """Each option means what the argument of the same name means to a Reranker."""
    source = write([*PASSAGES, "berlin [SEP] " * 40])
    _, out, error = run(
        *("rerank", QUERY, source, "--model", small_bert, "--activation", "sigmoid", "--max-length", "32"),
        *("--long-passages", "windows", "--top-n", "3", "--score-threshold", "1e-9", "--backend", "torch"),
        *("--device", "cpu", "--precision", "fp32", "--offline", "--max-query-tokens", "2"),
        *("--special-tokens", "text"),
    )
    reranker = Reranker(
        small_bert,
        activation="sigmoid",
        max_length=32,
        max_query_tokens=2,
        long_passages="windows",
        special_tokens="text",
        backend="torch",
        device="cpu",
        precision="fp32",
    )
    expected = reranker.rank(QUERY, source.read_text().splitlines(), top_n=3, score_threshold=1e-9).to_dicts()
    assert "longer than 2 tokens and was truncated" in error
    assert rows(out) == [{"text": row.pop("text"), **row} for row in expected]
    assert all(row["span"] for row in rows(out))


def test_options_of_order_and_selection_reach_the_core(run, write):
    """With the first-stage scores of the input: in CSV they are texts. What was left out is counted in the table."""
    texts = [*PASSAGES, PASSAGES[1].upper()]
    scores = [0.2, 0.3, 0.9, 0.1]
    core = Reranker("bundled", skim="bundled", skim_keep=2, blend=0.4, max_similarity=0.9)
    ranking = core.rank(QUERY, texts, retrieval_scores=scores)
    assert len(ranking) == 3
    options = ("--skim", "bundled", "--skim-keep", 2, "--blend", 0.4, "--max-similarity", 0.9)
    given = [{"text": text, "retrieval_score": score} for text, score in zip(texts, scores, strict=True)]
    table = ["text,score", *(f'"{text}",{score}' for text, score in zip(texts, scores, strict=True))]
    for source in (write(given, "hits.jsonl"), write(table, "hits.csv")):
        _, out, _ = run("rerank", QUERY, source, *options)
        for row, result in zip(rows(out), ranking, strict=True):
            expected = {name: value for name, value in result.to_dict().items() if value is not None}
            assert row.items() >= expected.items()
            assert ("score" in row) == ("scored_by" not in row)
    _, out, _ = run("rerank", QUERY, write(given, "hits.jsonl"), *options, "--format", "table")
    head, header, *lines = out.splitlines()
    assert head == f"3 of 4 passages for '{QUERY}', ranked by bundled; near-duplicates left out: 1"
    assert header.split() == ["rank", "index", "blended", "score", "skim", "text"]
    assert lines[-1].split()[2:4] == ["-", "-"]
    fitted = ("--activation", "logistic:1,0", "--max-drop", 0.0, "--min-n", 2)
    assert len(rows(run("rerank", QUERY, write(PASSAGES), *fitted)[1])) == 2
    status, _, error = run("rerank", QUERY, write(PASSAGES), "--max-drop", 0.3)
    assert status == 1
    assert "`--max-drop` is 0.3 with `--activation identity`" in error


def test_fields_of_the_input_come_along(run, write):
    """Ids and first-stage scores are still there after reranking, and none of them is overwritten."""
    given = [
        {"id": number, "passage": text, "score": 9.5, "input_score": "older", "tags": ["a"]}
        for number, text in enumerate(PASSAGES)
    ]
    _, out, _ = run("rerank", QUERY, write(given, "hits.jsonl.gz"), "--top-n", 1)
    (row,) = rows(out)
    assert {name: row[name] for name in ("id", "passage", "tags")} == {"id": 1, "passage": PASSAGES[1], "tags": ["a"]}
    assert (row["input_input_score"], row["input_score"]) == (9.5, "older")
    assert row["score"] == row["logit"] != 9.5


def test_a_column_of_a_table_is_ranked(run, tmp_path):
    """Rows of CSV are passages with their columns; the header is none of them."""
    path = tmp_path / "passages.csv"
    path.write_text("id,body\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(PASSAGES)))
    status, out, _ = run("rerank", QUERY, path, "--text-field", "body")
    assert status == 0
    assert {row["id"]: row["body"] for row in rows(out)} == {str(n): text for n, text in enumerate(PASSAGES)}
    assert rows(out)[0]["body"] == PASSAGES[1]
    status, out, error = run("rerank", QUERY, path, "--input-format", "lines")
    assert (status, len(rows(out)), error) == (0, len(PASSAGES) + 1, "")
    (tmp_path / "passages").write_text(path.read_text())
    status, out, error = run("rerank", QUERY, tmp_path / "passages")
    assert (status, len(rows(out))) == (0, len(PASSAGES) + 1)
    assert "note: the input looks like a table of 2 columns" in error


def test_every_line_of_output_is_valid_json(run, write):
    """Numbers of the input that JSON lacks are null, and the row says so."""
    given = [{"text": text, "price": float("nan")} for text in PASSAGES]
    _, out, _ = run("rerank", QUERY, write(given, "hits.jsonl"))
    for line in out.splitlines():
        row = json.loads(line, parse_constant=pytest.fail)
        assert (row["price"], row["not_finite"]) == (None, ["price"])


def test_its_own_output_can_be_reranked(run, write):
    """Two stages of reranking in a row are a pipe."""
    _, first, _ = run("rerank", QUERY, write(PASSAGES))
    _, second, _ = run("rerank", QUERY, write(first.splitlines(), "first.jsonl"))
    assert [row["text"] for row in rows(second)] == [row["text"] for row in rows(first)]
    assert [row["input_rank"] for row in rows(second)] == [1, 2, 3]


def test_requests_are_answered_line_by_line(run, write):
    """Each line of requests has its line of results, in the same order, also if nothing is in it."""
    requests = [
        {"qid": "a", "query": QUERY, "passages": PASSAGES},
        {
            "qid": "b",
            "query": "lake",
            "passages": [{"text": text, "doc": place} for place, text in enumerate(PASSAGES)],
        },
        {"qid": "c", "query": "nothing", "passages": []},
    ]
    status, out, _ = run("rerank", "--requests", write(requests, "requests.jsonl"), "--top-n", 2)
    answers = rows(out)
    assert status == 0
    assert [answer["qid"] for answer in answers] == ["a", "b", "c"]
    assert [len(answer["results"]) for answer in answers] == [2, 2, 0]
    assert answers[0]["results"] == rows(run("rerank", QUERY, write(PASSAGES), "--top-n", 2)[1])
    assert (answers[1]["results"][0]["doc"], answers[1]["query"]) == (2, "lake")


def test_requests_are_answered_while_more_come():
    """A stream of requests needs no end, and no memory for all of them."""
    child = process("rerank", "--requests", "-")
    watchdog = threading.Timer(PATIENCE_S, child.kill)
    watchdog.start()
    try:
        for number in range(40):
            # So short that the answers to a chunk do not fill a buffer, which would send them on anyway.
            child.stdin.write(json.dumps({"id": number, "query": "q", "passages": ["p"]}).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["id"] == 0
        assert child.poll() is None
        child.stdin.close()
        assert [row["id"] for row in rows(child.stdout.read().decode())] == list(range(1, 40))
        assert child.wait(PATIENCE_S) == 0
    finally:
        watchdog.cancel()
        child.kill()
        child.stdout.close()
        child.stderr.close()


def test_passages_come_through_a_pipe():
    """Without a file the passages are read from standard input, and results are UTF-8 whatever the locale is."""
    given = "\n\n".join(PASSAGES).encode()
    status, out, error = finish(process("rerank", "lake", PYTHONUTF8="0", PYTHONIOENCODING="latin-1"), given)
    assert (status, error) == (0, "marcorank: note: blank lines skipped: 2\n")
    assert rows(out)[0]["text"] == PASSAGES[2]


def test_a_threshold_may_leave_nothing(run, write):
    """No result is no error."""
    assert run("rerank", QUERY, write(PASSAGES), "--score-threshold", 100) == (0, "", "")


def test_an_empty_input_is_told(run, write):
    """Nothing in, nothing out, and a word about it: the pipe before may be broken."""
    status, out, error = run("rerank", QUERY, write([]))
    assert (status, out, error) == (0, "", "marcorank: note: the input has no passages\n")


def test_a_cut_passage_is_told(run, write):
    """Truncation is never silent."""
    _, out, error = run("rerank", QUERY, write(["berlin " * 600]))
    assert error.startswith("marcorank: note: bundled: A passage does not fit into 512 tokens")
    assert rows(out)[0]["truncated"] is True


def test_the_table_fits_the_terminal(write):
    """On a terminal the default is a table, clipped to its width, with nothing in it that steers the terminal."""
    source = write([*PASSAGES, "柏林" * 60, "red \x1b[31m text"])
    status, shown = on_terminal("rerank", QUERY, source, columns=60)
    note, head, header, *lines = shown.splitlines()
    assert status == 0
    assert note.startswith("marcorank: note: bundled: Half or more of the tokens of a passage are unknown")
    assert head == f"5 of 5 passages for '{QUERY}', ranked by bundled"
    assert header.split() == ["rank", "index", "score", "text"]
    assert lines[0].split()[:2] == ["1", "1"]
    assert 59 <= max(map(cells, lines)) <= 60
    assert "\x1b" not in shown


def test_a_table_of_sigmoid_scores_shows_the_logits_too(run, write):
    """Scores near 1 all look alike; the logits tell them apart. A window shows what was found in it."""
    long = "museum " * 700 + "Berlin has 3,520,031 inhabitants."
    _, out, _ = run(
        *("rerank", QUERY, write([long]), "--format", "table"),
        *("--activation", "sigmoid", "--long-passages", "windows"),
    )
    _, header, line = out.splitlines()
    assert header.split() == ["rank", "index", "score", "logit", "text"]
    assert re.fullmatch(r" +1 +0 +0\.\d{4} +-?\d+\.\d{4}  museum.*…", line)


def test_a_fitted_map_is_given_by_its_numbers(run, write):
    """`logistic:A,B` is the activation Logistic(A, B)."""
    status, out, _ = run("rerank", QUERY, write(PASSAGES), "--activation", "logistic:0.8,-1.2")
    expected = Reranker("bundled", activation=Logistic(0.8, -1.2)).rank(QUERY, PASSAGES)
    assert status == 0
    assert [row["score"] for row in rows(out)] == [result.score for result in expected]


@pytest.mark.parametrize(
    "value", ["softmax", "logistic", "logistic:1", "logistic:0,1", "logistic:1,x", "logistic:1,2,3"]
)
def test_an_activation_that_means_nothing_is_wrong_usage(run, write, value):
    """The message says what was found and what is allowed."""
    status, _, error = run("rerank", QUERY, write(PASSAGES), "--activation", value)
    assert status == 2
    assert f"found '{value}'; expected identity, sigmoid, or logistic:A,B with two numbers, A above 0" in error


def test_a_table_of_requests_names_each_query(run, write):
    """Several rankings can be told apart."""
    requests = [{"query": "Berlin", "passages": PASSAGES}, {"query": "lake", "passages": PASSAGES}]
    _, out, _ = run("rerank", "--requests", write(requests, "r.jsonl"), "--format", "table")
    assert re.findall(r"passages for '(\w+)'", out) == ["Berlin", "lake"]


def test_a_terminal_as_input_says_what_it_waits_for():
    """Who forgets the file sees that passages are expected, and may type them."""
    status, shown = on_terminal("rerank", QUERY, columns=80, typed=b"museums\n3,520,031 people\n\x04")
    assert status == 0
    assert f"reading passages for the query '{QUERY}', one per line; end with Ctrl-D" in shown
    assert "2 of 2 passages" in shown


def test_output_goes_to_a_file(run, write, tmp_path):
    """--output writes what standard output would get in a pipe, and nothing to the terminal."""
    source, target = write(PASSAGES), tmp_path / "best.jsonl"
    assert run("rerank", QUERY, source, "--output", target) == (0, "", "")
    assert target.read_text() == run("rerank", QUERY, source)[1]


def test_a_failed_run_leaves_the_old_output(run, write, tmp_path):
    """An error in the middle of the input does not cost the result of the last run."""
    good = {"query": QUERY, "passages": PASSAGES}
    target = tmp_path / "answers.jsonl"
    target.write_text("old")
    source = write([*[good] * 40, "{broken"], "requests.jsonl")
    status, _, error = run("rerank", "--requests", source, "--output", target)
    assert (status, target.read_text()) == (1, "old")
    assert error.startswith(f"marcorank: error: {str(source)!r}, line 41 is not JSON")
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl", "requests.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rerank"], "give either QUERY, or --requests"),
        (["rerank", "q", "--requests", "f"], "give either QUERY, or --requests"),
        (["rerank", "--requests", "f", "--input-format", "lines"], "--requests reads JSONL"),
        (["rerank", "q", "--top-n", "0"], "argument --top-n: found '0'; expected a whole number of at least 1"),
        (["rerank", "q", "--top-n", "x"], "argument --top-n: found 'x'; expected a whole number of at least 1"),
        (
            ["rerank", "q", "--max-length", "15"],
            "argument --max-length: found 15; expected a whole number of at least 16",
        ),
        (["rerank", "q", "--score-threshold", "nan"], "argument --score-threshold: found 'nan'; expected a number"),
        (["rerank", "q", "--backend", "tpu"], "argument --backend: invalid choice: 'tpu'"),
        (
            ["rerank", "q", "--activ", "sigmoid"],
            "unrecognized arguments: --activ sigmoid. Did you mean '--activation'?",
        ),
        (
            ["rerank", "q", "f", "--topn", "1"],
            "marcorank rerank: error: unrecognized arguments: --topn 1. Did you mean '--top-n'?",
        ),
        (["rerank", "q", "f", "--top_n=1"], "unrecognized arguments: --top_n=1. Did you mean '--top-n'?"),
        (["rerank", "q", "f", "--zzz"], "unrecognized arguments: --zzz\n"),
        (
            ["rerank", "how", "to", "open", "a", "file"],
            "unrecognized arguments: open a file. Put a query of several words in quotes.",
        ),
        (["rerank", __file__, "a query"], "QUERY comes before FILE: "),
        (
            ["models", "list", "--jsn"],
            "marcorank models list: error: unrecognized arguments: --jsn. Did you mean '--json'?",
        ),
        (["bench", "bundled", "--Rounds"], "Did you mean '--rounds'?"),
        (["--versoin"], "marcorank: error: unrecognized arguments: --versoin. Did you mean '--version'?"),
        (["models", "download"], "the following arguments are required: NAME"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "usage: marcorank"),
    ],
)
def test_wrong_usage_is_told(run, arguments, complaint):
    """Wrong usage ends with status 2, the usage, and what is wrong."""
    status, out, error = run(*arguments)
    assert (status, out) == (2, "")
    assert error.startswith("usage: marcorank")
    assert complaint in error


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["q", "none.txt"], "'none.txt' cannot be read: No such file or directory."),
        (["q", "FILE", "--model", "some/model", "--offline"], "the network is off (`--offline`)"),
        (["q", "FILE", "--model", "minilm"], "Model 'minilm' is unknown"),
        (["q", "FILE", "--precision", "fp32"], "int8 ONNX file; found `--backend auto` and `--precision fp32`."),
        (
            ["q", "FILE", "--model", "tei+http://host", "--threads", "2"],
            "`--threads` is 2, which has no effect on the server",
        ),
        ([" ", "FILE"], "`query` is blank"),
    ],
)
def test_an_error_is_one_line(run, write, arguments, complaint):
    """Whatever goes wrong: status 1, one line, no traceback, nothing on standard output."""
    source = write(PASSAGES)
    status, out, error = run("rerank", *(source if argument == "FILE" else argument for argument in arguments))
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert error.startswith("marcorank: error: ")
    assert complaint in error


def test_debug_shows_where_an_error_came_from(run):
    """A report of a bug needs the traceback; --debug shows it above the same line."""
    status, _, error = run("rerank", "q", "none.txt", "--debug")
    assert status == 1
    assert error.startswith("Traceback (most recent call last)")
    assert error.endswith("marcorank: error: 'none.txt' cannot be read: No such file or directory.\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("count", [1, 64])
def test_a_reader_may_leave_early(write, count):
    """`| head` ends the command without a word, whether or not its output fills a buffer."""
    source = write([{"query": QUERY, "passages": PASSAGES}] * count, "requests.jsonl")
    child = process("rerank", "--requests", source)
    child.stdout.close()
    with child.stdin, child.stderr:
        assert (child.wait(PATIENCE_S), child.stderr.read()) == (141, b"")


def test_ctrl_c_ends_it_with_one_line():
    """An interrupted command says so and exits as shells expect."""
    status, shown = on_terminal(
        "rerank", QUERY, columns=80, until=b"Ctrl-D\r\n", then=lambda child: child.send_signal(signal.SIGINT)
    )
    assert status == 130
    assert shown.splitlines()[-1] == "marcorank: interrupted"
    assert "Traceback" not in shown


# --- models


def test_models_lists_the_catalogue(run):
    """The table has each model with its published figures; a bare `models` lists."""
    status, out, _ = run("models")
    first, second, _ = out.split("\n\n")
    assert status == 0
    assert run("models", "list")[1] == out
    ms_marco, others = ([line.split() for line in table.splitlines()] for table in (first, second))
    assert ms_marco[0] == ["model", "size", "DL19", "V100/s", "MTEB", "CPU/s", "here"]
    assert others[0] == ["model", "size", "lang", "max", "MTEB", "CPU/s", "here"]
    assert [row[0] for row in ms_marco[1:] + others[1:]] == [
        *BUNDLED_MODELS,
        *(info.name.split("/")[1] for info in CATALOGUE),
    ]
    assert ms_marco[6][1:6] == ["22.7M", "74.30", "1800", "0.5082", "143.9"]
    assert others[1][1:6] == ["16.9M", "en", "7999", "0.5576", "267.4"]
    assert [row[2] for row in others[-3:]] == ["14", "2", "many"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_of_models_fits_the_terminal(columns):
    """Nothing is broken over two lines."""
    _, shown = on_terminal("models", columns=columns)
    assert max(map(len, shown.splitlines())) <= columns


@pytest.mark.parametrize("arguments", [["models", "--json"], ["models", "list", "--json"]])
def test_models_as_json(run, arguments, tmp_path):
    """Programs read the same list; nothing of a model is on a machine whose cache is empty."""
    _, out, _ = run(*arguments, "--cache-folder", tmp_path)
    bundled, tiny, *others = json.loads(out)
    assert (bundled["name"], bundled["layers"], bundled["present"]) == ("bundled", 6, ["bundled"])
    assert (tiny["name"], tiny["layers"], tiny["present"]) == ("bundled-tiny", 2, ["bundled"])
    assert [entry["name"] for entry in others] == [info.name for info in CATALOGUE]
    assert others[3] == {
        "name": MINILM_L6.name,
        "aliases": ["cross-encoder/ms-marco-MiniLM-L-6-v2"],
        "revision": MINILM_L6.revision,
        "licence": "Apache-2.0",
        "languages": ["en"],
        "max_length": 512,
        "layers": 6,
        "hidden_size": 384,
        "parameters": 22713601,
        "ndcg_dl19": 74.30,
        "mrr_dev": 39.01,
        "passages_per_s_v100": 1800,
        "ndcg_mteb": 0.5082,
        "pairs_per_s_cpu": 143.9,
        "pairs_per_s_h100": 3817,
        "ndcg_beir": 48.64,
        "ndcg_mkqa": None,
        "present": [],
    }
    assert [entry["present"] for entry in others] == [[]] * len(CATALOGUE)


def test_a_download_is_all_that_offline_use_needs(run, hub, tmp_path, write):
    """After `models download` the model runs without network, and the list says that it is here."""
    folder = ("--cache-folder", tmp_path / "cache")
    status, out, error = finish(
        process(
            *("models", "download", "ms-marco-MiniLM-L6-v2", "--backend", "onnx", *folder),
            HF_ENDPOINT=hub.url,
            HF_HUB_OFFLINE="0",
        )
    )
    assert (status, error) == (0, "")
    assert out == f"{MINILM_L6.name} runs; on this machine: fp32 onnx\n"
    assert not any("safetensors" in request for request in hub.requests)
    hub.stop()
    status, out, _ = run("rerank", QUERY, write(PASSAGES), "--model", "ms-marco-MiniLM-L-6-v2", "--offline", *folder)
    assert (status, len(rows(out))) == (0, 3)
    assert json.loads(run("models", "--json", *folder)[1])[5]["present"] == ["fp32 onnx"]


def test_an_exported_model_is_found_by_its_name(hub, small_bert, tmp_path, write):
    """`models export` makes an ONNX file of a hub model that has none, where a Reranker of that name looks."""
    # The ONNX file, in a folder of its own, stays away.
    files = {path.name: path.read_bytes() for path in small_bert.iterdir() if path.is_file()}
    hub.add(MINILM_L6.name, MINILM_L6.revision, files)
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    ranking = ("rerank", QUERY, write(PASSAGES), "--model", MINILM_L6.name, "--backend", "onnx")
    status, _, error = finish(process(*ranking, **settings))
    assert status == 1
    assert f"`marcorank models export {MINILM_L6.name}`" in error

    status, out, error = finish(process("models", "export", MINILM_L6.name, **settings))
    assert (status, error) == (0, "")
    assert out.startswith(f"Wrote {tmp_path}")
    listed = json.loads(finish(process("models", "--json", **settings))[1])
    assert listed[5]["present"] == ["torch", "exported onnx"]
    hub.stop()
    status, out, error = finish(process(*ranking, "--offline", **settings))
    assert (status, error) == (0, "")
    expected = Reranker(small_bert, backend="onnx").rank(QUERY, PASSAGES)
    assert [row["logit"] for row in rows(out)] == pytest.approx([result.logit for result in expected], abs=3e-4)


def test_a_folder_is_exported_in_place_or_elsewhere(run, small_bert, tmp_path):
    """Without --output the ONNX file lies in the model's folder; with it, in a complete model of its own."""
    source = tmp_path / "model"
    shutil.copytree(small_bert, source, ignore=shutil.ignore_patterns("onnx"))
    status, out, error = run("models", "export", source)
    assert (status, error) == (0, "")
    assert out.splitlines()[1] == f"Use it with: --model {source}"
    assert (source / "onnx" / "model.onnx").is_file()

    target = tmp_path / "with blank"
    _, out, _ = run("models", "export", source, "--output", target)
    assert out.splitlines()[1] == f"Use it with: --model '{target}'"
    expected = Reranker(source, backend="torch", precision="fp32").score(QUERY, PASSAGES)
    assert Reranker(target, backend="onnx").score(QUERY, PASSAGES) == pytest.approx(expected, abs=3e-4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["download", "."], "is on this machine already"),
        (["download", "no-such-model"], "Model 'no-such-model' is unknown"),
        (["export", "bundled"], "'bundled' is an ONNX file already"),
        (["export", "bundled-tiny"], "'bundled-tiny' is an ONNX file already"),
        (["export", "some/model", "--offline"], "is not cached and the network is off"),
    ],
)
def test_what_cannot_be_fetched_or_exported_is_told(run, arguments, complaint):
    """One line, status 1."""
    status, out, error = run("models", *arguments)
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert complaint in error


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_a_bundled_model_counts_as_downloaded(run, name):
    """A script that downloads all models it needs may name it; nothing happens, and the status is 0."""
    out = f"{name} is part of the package; there is nothing to download.\n"
    assert run("models", "download", name) == (0, out, "")


# --- doctor


def test_doctor_says_what_would_run_and_why(run):
    """All that a bug report needs, and a real run of the bundled model, with status 0."""
    status, out, error = run("doctor", "--json")
    found = json.loads(out)
    assert (status, error, found["problems"]) == (0, "", [])
    assert found["marcorank"] == __version__
    assert found["cache"]["offline"] is True
    assert found["backends"]["onnx"]["onnxruntime"]
    bundled, default = found["models"]
    assert (bundled["backend"], bundled["precision"], bundled["present"]) == ("onnx", "int8", ["int8 onnx"])
    assert default["reason"]
    assert bundled["trial"]["logits"][0] > bundled["trial"]["logits"][1]
    assert bundled["trial"]["rank_ms"] > 0
    assert bundled["trial"]["unknown_tokens"] == 0
    assert default["trial"] is None


def test_doctor_reads_well_on_a_terminal():
    """The report has a label a line, fits 80 columns, and ends with the verdict."""
    status, shown = on_terminal("doctor", columns=80)
    lines = shown.splitlines()
    assert status == 0
    assert lines[0].startswith(f"marcorank   {__version__} on Python 3.")
    assert lines[-1] == "result      no problems found"
    assert max(map(len, lines)) <= 80


def test_doctor_tries_the_model_that_is_asked_for(run, small_bert, tmp_path):
    """A model without an ONNX file ends at torch: the report says what ran, not only what was meant to."""
    folder = tmp_path / "model"
    shutil.copytree(small_bert, folder, ignore=shutil.ignore_patterns("onnx"))
    _, out, _ = run("doctor", "--model", folder, "--json")
    found = json.loads(out)
    assert [entry["present"] for entry in found["models"]] == [["int8 onnx"], ["torch"]]
    torch = choose(RerankerSettings(str(folder), backend="torch"))
    assert [entry["trial"]["backend"] for entry in found["models"]] == [
        "onnx on cpu in int8",
        f"torch on cpu in {torch.precision}",
    ]


def test_doctor_fails_where_the_bundled_model_does_not_run(run, tmp_path, monkeypatch):
    """A damaged installation ends with status 1 and the command that repairs it."""
    damaged = tmp_path / "bundled"
    shutil.copytree(bundled_folder(), damaged)
    (damaged / "onnx" / "model_int8.onnx").write_bytes(b"damaged")
    monkeypatch.setattr(loading, "_PACKAGE_FOLDER", tmp_path)
    status, out, _ = run("doctor")
    assert status == 1
    told = " ".join(out.split())
    assert re.search(r"PROBLEM bundled does not run: .*model_int8.onnx.* pip install --force-reinstall marcorank", told)
    assert out.endswith("result      there are problems, see above\n")


def test_doctor_fails_where_files_of_a_folder_are_missing(run, tmp_path, monkeypatch):
    """A bundled model without its files, or an empty model folder, is a problem and not a model to download."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(loading, "_PACKAGE_FOLDER", tmp_path / "gone")
    status, out, _ = run("doctor", "--model", tmp_path / "empty", "--json")
    assert status == 1
    bundled, empty = json.loads(out)["problems"]
    assert bundled.startswith("bundled does not run: ")
    assert empty.startswith(f"{tmp_path / 'empty'} does not run: ")


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("adapter", r"is a LoRA adapter \(adapter_config.json\), not a model. Merge it into its base model first"),
        ("quantized", r"only an int8 ONNX file \(onnx/model_quantized.onnx\).* `backend='onnx', precision='int8'`"),
        ("config only", "has no weights: expected .*, found 'config.json', 'tokenizer.json'"),
    ],
)
def test_doctor_says_why_a_folder_cannot_be_used(run, tmp_path, folder, problem):
    """The reason is a problem, and nothing is suggested that does not help."""
    path = tmp_path / folder
    (path / "onnx").mkdir(parents=True)
    if folder == "adapter":
        (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (path / "adapter_model.safetensors").write_bytes(b"")
    else:
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(bundled_folder() / name, path)
    if folder == "quantized":
        shutil.copy(bundled_folder() / "onnx" / "model_int8.onnx", path / "onnx" / "model_quantized.onnx")
    elif folder == "config only":
        (path / "onnx").rmdir()
    status, out, _ = run("doctor", "--model", path, "--json")
    assert status == 1
    (found,) = json.loads(out)["problems"]
    assert re.search(problem, found)
    status, out, _ = run("doctor", "--model", path)
    assert status == 1
    assert "marcorank models download" not in out
    if folder == "quantized":
        assert len(Reranker(path, backend="onnx", precision="int8").rank("query", ["a", "b"])) == 2


def test_doctor_names_pickled_weights_in_the_cache(run, tmp_path):
    """A cached model that has only pickled weights is a problem, not a model that is yet to be downloaded."""
    cached = tmp_path / "models--somebody--pickled"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1" * 40)
    shutil.copytree(bundled_folder(), cached / "snapshots" / ("1" * 40), ignore=shutil.ignore_patterns("onnx"))
    (cached / "snapshots" / ("1" * 40) / "pytorch_model.bin").write_bytes(b"pickle")
    status, out, _ = run("doctor", "--model", "somebody/pickled", "--cache-folder", tmp_path, "--json")
    found = json.loads(out)
    assert (status, found["models"][1]["present"]) == (1, ["pickled torch"])
    assert "has only pickled weights (pytorch_model.bin)" in found["problems"][0]


def test_an_adapter_is_named_whatever_the_settings(tmp_path):
    """The settings for an int8 file do not hide that the folder is no model."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="is a LoRA adapter"):
        Reranker(tmp_path, backend="onnx", precision="int8").warm_up()


def test_doctor_does_not_check_servers(run):
    """The address of a server is named as what it is."""
    status, out, _ = run("doctor", "--model", "tei+http://localhost:8080", "--json")
    assert status == 1
    assert json.loads(out)["problems"] == [
        "tei+http://localhost:8080 is the address of a server; expected a model that runs on this machine."
    ]


def test_doctor_notices_a_vocabulary_without_english(run, tmp_path, monkeypatch):
    """A tokenizer that does not know the words of the trial is a problem, whatever the order of the passages."""
    folder = tmp_path / "bundled"
    shutil.copytree(bundled_folder(), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]
    kept = special | {"how", "many", "people", "live", "in", "berlin", "?", ".", "query", "passage"}
    tokenizer["model"]["vocab"] = {word: token_id for word, token_id in vocabulary.items() if word in kept}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    monkeypatch.setattr(loading, "_PACKAGE_FOLDER", tmp_path)
    status, out, _ = run("doctor")
    told = " ".join(out.split())
    assert status == 1
    assert re.search(r"trial bundled: .*, \d+ unknown tokens", told)
    assert re.search(r"PROBLEM The tokenizer of bundled has \d+ unknown tokens in two English passages", told)


def test_doctor_notices_a_wrong_order(run, tmp_path, monkeypatch):
    """A bundled model that runs but ranks the wrong passage first is broken too."""
    onnx = pytest.importorskip("onnx", reason="makes the model that ranks upside down")
    reversed_model = tmp_path / "bundled"
    shutil.copytree(bundled_folder(), reversed_model)
    file = reversed_model / "onnx" / "model_int8.onnx"
    graph = onnx.load(file)
    (last,) = (node for node in graph.graph.node if "logits" in node.output)
    last.output[0] = "upright"
    graph.graph.node.append(onnx.helper.make_node("Neg", ["upright"], ["logits"]))
    onnx.save(graph, file)
    monkeypatch.setattr(loading, "_PACKAGE_FOLDER", tmp_path)
    status, out, _ = run("doctor", "--json")
    assert status == 1
    assert re.fullmatch(
        "bundled scores 'Berlin is well known .*' above the passage that answers .*", json.loads(out)["problems"][0]
    )


def test_doctor_names_an_unknown_model(run):
    """A wrong name is a problem like others; the rest of the report still comes."""
    status, out, _ = run("doctor", "--model", "minilm")
    assert status == 1
    assert "PROBLEM     Model 'minilm' is unknown" in out


# --- the program itself


def test_help_is_light():
    """Neither an engine nor a framework is loaded to show the help of any command."""
    script = (
        "import contextlib, io, sys\n"
        "from marcorank.cli import main\n"
        "for command in ([], ['rerank'], ['models'], ['doctor']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*command, '--help'])\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'tokenizers', 'huggingface_hub', 'langchain_core'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", [[], ["rerank"], ["models"], ["models", "export"], ["doctor"]])
def test_help_fits_80_columns(run, monkeypatch, command):
    """Help reads well on the smallest usual terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(*command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80


def test_it_is_installed_as_a_program():
    """`marcorank` and `python -m marcorank` are the same program."""
    script = shutil.which("marcorank", path=Path(sys.executable).parent)
    assert script, "the package is not installed"
    for command in ([script], COMMAND):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"marcorank {__version__}\n"
