"""`marcorank rerank --input`: the rows of `--requests`, whatever happens on the way."""

# ruff: noqa: S603 -- what runs here is this project's own program

from __future__ import annotations

import gzip
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from marcorank import InvalidInputError, Logistic, Reranker
from marcorank.cli import main
from marcorank.jobs.planning import plan
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S

WORDS = ["berlin", "museum", "lake", "house", "river", "bread", "open", "file", "people", "city", "known", "population"]
COMMAND = [sys.executable, "-m", "marcorank", "rerank"]


def make_rows(count, *, seed=1):
    chance = random.Random(seed)  # noqa: S311
    return [
        {
            "id": number,
            "query": " ".join(chance.sample(WORDS, 3)),
            "passages": [
                {"text": " ".join(chance.choices(WORDS, k=8)), "doc": f"d{chance.randrange(99)}"}
                for _ in range(chance.randrange(7))
            ],
        }
        for number in range(count)
    ]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shards_of(folder):
    return sorted(path for path in folder.iterdir() if path.name.startswith("part-"))


def jsonl_of(folder):
    return "".join(path.read_text(encoding="utf-8") for path in shards_of(folder))


@pytest.fixture
def candidates(tmp_path):
    """A folder of 60 requests in three files."""
    folder = tmp_path / "candidates"
    folder.mkdir()
    rows = make_rows(60)
    for index, start in enumerate((0, 23, 40)):
        write_jsonl(folder / f"in-{index}.jsonl", rows[start : (23, 40, 60)[index]])
    return folder


@pytest.fixture
def expected(candidates, tmp_path):
    """The rows that `--requests` writes for them."""
    write_jsonl(tmp_path / "all.jsonl", make_rows(60))
    assert main(["rerank", "--requests", str(tmp_path / "all.jsonl"), "--output", str(tmp_path / "one.jsonl")]) == 0
    return (tmp_path / "one.jsonl").read_text(encoding="utf-8")


@pytest.fixture
def run(capsys):
    """Run `marcorank rerank` in this process; returns exit status and standard error."""

    def run_command(*arguments):
        try:
            status = main(["rerank", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        assert printed.out == ""
        return status, printed.err

    return run_command


def test_the_rows_are_those_of_one_process(candidates, expected, tmp_path, run):
    """Byte by byte the same as `--requests` writes, in shards; a second start has nothing left to do."""
    command = ("--input", candidates, "--output", tmp_path / "out", "--shard-size", 8)
    status, stderr = run(*command)
    pairs = sum(len(row["passages"]) for row in make_rows(60))
    assert status == 0
    assert re.fullmatch(
        rf"marcorank: ranked 8 shards \(60 queries, {pairs} pairs in \d+ s, [\d,]+ a second\); '.*out' holds all 8\n",
        stderr,
    )
    assert jsonl_of(tmp_path / "out") == expected
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    status, stderr = run(*command)
    assert (status, stderr) == (
        0,
        f"marcorank: skipped 8 shards of an earlier run; {str(tmp_path / 'out')!r} holds all 8\n",
    )
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_parquet_and_jsonl_go_both_ways(candidates, expected, tmp_path, run):
    """Input and output of either kind hold the same rows and scores."""
    table = pa.Table.from_pylist(make_rows(60))
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=7)
    wanted = [json.loads(line) for line in expected.splitlines()]
    options = ("--shard-size", 25, "--input")
    assert run("--output", tmp_path / "p-p", *options, tmp_path / "all.parquet")[0] == 0
    assert run("--output", tmp_path / "p-j", "--output-format", "jsonl", *options, tmp_path / "all.parquet")[0] == 0
    assert run("--output", tmp_path / "j-p", "--output-format", "parquet", *options, candidates)[0] == 0
    assert [json.loads(line) for line in jsonl_of(tmp_path / "p-j").splitlines()] == wanted
    for row in wanted:
        for result in row["results"]:
            result.setdefault("span", None)
    for name in ("p-p", "j-p"):
        assert [path.suffix for path in shards_of(tmp_path / name)] == [".parquet"] * 3
        found = pyarrow.dataset.dataset([str(path) for path in shards_of(tmp_path / name)]).to_table()
        assert found.to_pylist() == wanted
        assert found.schema.field("id").type == pa.int64()


def test_options_of_a_ranking_are_those_of_one_process(candidates, tmp_path, run):
    """`--top-n`, `--score-threshold`, `--activation` and `--text-field` mean what they mean with `--requests`."""
    options = ["--top-n", "2", "--score-threshold", "0.3", "--activation", "sigmoid", "--text-field", "text"]
    write_jsonl(tmp_path / "all.jsonl", make_rows(60))
    assert run("--requests", tmp_path / "all.jsonl", "--output", tmp_path / "one.jsonl", *options) == (0, "")
    assert run("--input", candidates, "--output", tmp_path / "out", *options)[0] == 0
    assert jsonl_of(tmp_path / "out") == (tmp_path / "one.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line)["results"] for line in jsonl_of(tmp_path / "out").splitlines()]
    assert {len(results) for results in found} == {0, 1, 2}


def test_names_that_are_taken_move_aside_in_parquet_too(tmp_path, run):
    """A field of a passage that is named as a column of results is kept under another name."""
    passage = {"text": "a lake", "span": "x", "truncated": "y", "score": 7}
    write_jsonl(tmp_path / "in.jsonl", [{"query": "lake", "passages": [passage]}])
    assert run("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--output-format", "parquet")[0] == 0
    (row,) = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    (result,) = row["results"]
    assert (result["input_span"], result["input_truncated"], result["input_score"]) == ("x", "y", 7)
    assert (result["span"], result["truncated"], result["index"]) == (None, False, 0)
    assert result["unknown_tokens"] == 0


def test_what_json_lacks_becomes_text(tmp_path, run):
    """A date in Parquet is written to JSONL as text."""
    rows = pa.table({"query": ["lake"], "passages": [["a lake"]], "day": pa.array([19782], pa.date32())})
    pq.write_table(rows, tmp_path / "in.parquet")
    assert run("--input", tmp_path / "in.parquet", "--output", tmp_path / "out", "--output-format", "jsonl")[0] == 0
    assert json.loads(jsonl_of(tmp_path / "out"))["day"] == "2024-02-29"


def test_a_run_with_its_queries_and_corpus(tmp_path, run):
    """Candidates are those of the run, in its order, with ids and first-stage scores; a second start ranks nothing."""
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": WORDS[n]} for n in range(5)])
    write_jsonl(
        tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "title": "On", "text": word} for n, word in enumerate(WORDS)]
    )
    (tmp_path / "run.trec").write_text(
        "".join(f"q{query} Q0 d{query + rank} {rank + 1} {9 - rank}.5 tag\n" for query in (3, 1) for rank in range(4))
    )
    command = ["--run", tmp_path / "run.trec", "--queries", tmp_path / "queries.jsonl", "--corpus"]
    command += [tmp_path / "corpus.jsonl", "--output", tmp_path / "out", "--shard-size", 1]
    assert run(*command)[0] == 0
    rows = [json.loads(line) for line in jsonl_of(tmp_path / "out").splitlines()]
    assert [(row["query_id"], row["query"]) for row in rows] == [("q3", WORDS[3]), ("q1", WORDS[1])]
    with Reranker("bundled") as reranker:
        for row, first in zip(rows, (3, 1), strict=True):
            texts = [f"On {WORDS[first + rank]}" for rank in range(4)]
            wanted = [
                {"id": f"d{first + one.index}", "retrieval_score": 9.5 - one.index, **one.to_dict()}
                for one in reranker.rank(row["query"], texts)
            ]
            assert [result | {"span": None} for result in row["results"]] == wanted
    (joined,) = (tmp_path / "out").glob("_candidates-*")
    before = joined.stat().st_mtime_ns
    status, stderr = run(*command)
    assert status == 0
    assert "skipped 2 shards" in stderr
    assert joined.stat().st_mtime_ns == before
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "text": word} for n, word in enumerate(WORDS)])
    status, stderr = run(*command)
    assert status == 1
    assert "the input 'corpus.jsonl' (file 3) has changed" in stderr
    assert len([*(tmp_path / "out").glob("_candidates-*")]) == 1
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "d1", "text": "x"}])
    status, stderr = run(*command, "--overwrite")
    assert status == 1
    assert re.search(r"corpus\.jsonl' has no text for 5 of the 6 passages of the run \('d3', 'd4', 'd5', …\)", stderr)
    assert [json.loads(line) for line in jsonl_of(tmp_path / "out").splitlines()] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-n", "3"], "top_n was null and is 3"),
        (["--score-threshold", "0"], "score_threshold was null and is 0.0"),
        (["--shard-size", "9"], "shard_size was 8 and is 9"),
        (
            ["--precision", "int8", "--max-length", "64", "--max-query-tokens", "8"],
            "max_length was 512 and is 64; max_query_tokens was null and is 8",
        ),
        (["--output-format", "parquet"], 'output_format was "jsonl" and is "parquet"'),
        (["--blend", "0.3"], "blend was not known and is 0.3"),
        (["--max-similarity", "0.8"], "max_similarity was not known and is 0.8"),
    ],
)
def test_other_settings_are_refused(candidates, tmp_path, run, options, message):
    """A folder never mixes rows of two settings; `--overwrite` starts again."""
    command = ["--input", candidates, "--output", tmp_path / "out"]
    assert run(*command, "--shard-size", "8")[0] == 0
    before = jsonl_of(tmp_path / "out")
    again = [*command, *options] if "--shard-size" in options else [*command, "--shard-size", "8", *options]
    status, stderr = run(*again)
    assert status == 1
    assert f"out' was started with something else: {message}. Use another folder" in stderr
    assert jsonl_of(tmp_path / "out") == before
    assert run(*again, "--overwrite")[0] == 0
    assert len({path.suffix for path in shards_of(tmp_path / "out")}) == 1
    assert run(*again)[1].startswith("marcorank: skipped")


def test_another_input_is_refused(candidates, tmp_path, run):
    """A changed row, a new file and a missing one are noticed; threads and files that were moved make no difference."""
    command = ["--input", f"{candidates}/*.jsonl", "--output", tmp_path / "out", "--shard-size", 8]
    assert run(*command)[0] == 0
    (candidates / "in-0.jsonl").touch()
    assert run(*command, "--threads", 1)[0] == 0
    candidates = candidates.rename(tmp_path / "moved")
    command[1] = f"{candidates}/*.jsonl"
    assert run(*command)[1].startswith("marcorank: skipped 8 shards")
    text = (candidates / "in-1.jsonl").read_text()
    (candidates / "in-1.jsonl").write_text(text.replace("berlin", "BERLIN", 1))
    assert "the input 'in-1.jsonl' (file 2) has changed" in run(*command)[1]
    (candidates / "in-1.jsonl").write_text(text)
    write_jsonl(candidates / "in-3.jsonl", make_rows(1))
    assert "the input 'in-3.jsonl' (file 4) is new" in run(*command)[1]
    (candidates / "in-3.jsonl").unlink()
    (candidates / "in-2.jsonl").unlink()
    assert "the input 'in-2.jsonl' (file 3) is gone" in run(*command)[1]


def test_a_bad_row_is_found_before_anything_is_ranked(candidates, tmp_path, run):
    """The error names file and line; after the row is repaired, the same command ranks everything."""
    good = (candidates / "in-2.jsonl").read_text()
    (candidates / "in-2.jsonl").write_text(good + '{"query": "no passages"}\n')
    command = ["--input", candidates, "--output", tmp_path / "out", "--shard-size", 8]
    status, stderr = run(*command)
    assert status == 1
    assert re.search(r"in-2\.jsonl', line 21 has no field 'passages'", stderr)
    assert not [*(tmp_path / "out").iterdir()]
    (candidates / "in-2.jsonl").write_text(good)
    assert run(*command)[0] == 0


def test_a_damaged_shard_is_ranked_again(candidates, expected, tmp_path, run):
    """A shard that lost its end, and one that is empty, do not count as finished."""
    command = ["--input", candidates, "--output", tmp_path / "out", "--shard-size", 8]
    assert run(*command)[0] == 0
    cut = tmp_path / "out" / "part-00002.jsonl"
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "out" / "part-00005.jsonl").write_bytes(b"")
    assert run(*command)[1].startswith("marcorank: ranked 2 shards (16 queries")
    assert jsonl_of(tmp_path / "out") == expected


def test_an_input_without_rows_is_no_error(tmp_path, run):
    """A day without candidates gives a folder without shards."""
    write_jsonl(tmp_path / "in.jsonl", [])
    status, stderr = run("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out")
    assert (status, shards_of(tmp_path / "out")) == (0, [])
    assert "ranked 0 shards (0 queries, 0 pairs)" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "x"], "--input and --run require --output with a folder"),
        (["query", "--input", "x", "--output", "o"], "give one of QUERY, --requests, --input and --run"),
        (["--input", "x", "--run", "r", "--output", "o"], "give one of QUERY, --requests, --input and --run"),
        (["--run", "r", "--queries", "q", "--output", "o"], "--run, --queries and --corpus must be used together"),
        (["--input", "x", "--corpus", "c", "--output", "o"], "--run, --queries and --corpus must be used together"),
        (["--input", "x", "--format", "table", "--output", "o"], "--format and --input-format are for one query"),
        (["--input", "x", "--output", "o", "--workers", "2"], "--workers and --ray-address require --engine ray"),
        (["query", "--overwrite"], "--overwrite requires --input or --run"),
        (["query", "--shard-size", "5"], "--shard-size requires --input or --run"),
        (["--input", "x", "--output", "o", "--shard-size", "0"], "found '0'; expected a whole number of at least 1"),
    ],
)
def test_options_that_do_not_go_together(run, arguments, message):
    """A usage error exits with status 2 and a reason."""
    status, stderr = run(*arguments)
    assert status == 2
    assert message in stderr


OTHERS = [
    ({"skim_keep": 2}, "skim_keep was 3 and is 2"),
    ({"skim": None}, 'skim_model was "bundled" and is not known'),
    ({"skim": WordOverlapScorer()}, 'skim_model was "bundled" and is "word-overlap"'),
    ({"skim": Reranker("bundled", max_length=64)}, "skim_max_length was 512 and is 64"),
    ({"blend": 0.2}, "blend was 0.3 and is 0.2"),
    ({"blend": 0}, "blend was 0.3 and is not known"),
    ({"max_similarity": 0.7}, "max_similarity was 0.8 and is 0.7"),
    ({"max_drop": 0.4}, "max_drop was 0.5 and is 0.4"),
    ({"min_n": 1}, "min_n was 2 and is 1"),
]


@pytest.mark.parametrize(("change", "message"), OTHERS, ids=[message[:20] for _, message in OTHERS])
def test_a_folder_never_mixes_rankings(candidates, tmp_path, change, message):
    """Each option that decides a ranking is a part of the run, also what the skimming model is."""
    settings = {
        "skim": "bundled",
        "skim_keep": 3,
        "blend": 0.3,
        "max_similarity": 0.8,
        "activation": Logistic(1, 0),
        "max_drop": 0.5,
        "min_n": 2,
    }
    plan(candidates, tmp_path / "out", Reranker(WordOverlapScorer(), **settings))
    assert plan(candidates, tmp_path / "out", Reranker(WordOverlapScorer(), **settings)).initial.skipped == 0
    with pytest.raises(InvalidInputError, match=f"started with something else: .*{message}"):
        plan(candidates, tmp_path / "out", Reranker(WordOverlapScorer(), **{**settings, **change}))


def test_a_skimming_model_that_changed_in_its_folder_is_refused(candidates, tmp_path, small_bert):
    """Its files are known by their content, as those of the model are."""
    folder = shutil.copytree(small_bert, tmp_path / "skim")
    plan(candidates, tmp_path / "out", Reranker("bundled", skim=str(folder)))
    vocabulary = folder / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text() + "\n")
    with pytest.raises(InvalidInputError, match=r"the file of the skimming model tokenizer\.json has changed"):
        plan(candidates, tmp_path / "out", Reranker("bundled", skim=str(folder)))


def test_options_are_checked_before_anything_is_ranked(candidates, tmp_path, run):
    """With their names on the command line; a row that only one model ranked is not possible."""
    command = ["--input", candidates, "--output", tmp_path / "out"]
    status, stderr = run(*command, "--skim", "bundled", "--skim-keep", "2", "--top-n", "3")
    assert status == 1
    assert "`--top-n` is 3 and `--skim-keep` 2" in stderr
    with pytest.raises(InvalidInputError, match=r"`timeout_s` is 9\.0 beside `skim`"):
        plan(candidates, tmp_path / "out", Reranker("bundled", skim="bundled", timeout_s=9))
    assert not (tmp_path / "out").exists()


def scored_row(count):
    passages = [{"text": " ".join(WORDS[: index + 1]), "retrieval_score": -float(index)} for index in range(count)]
    return {"query": "berlin museum lake", "passages": passages}


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_a_cascade_and_a_blend_have_the_same_columns_in_every_shard(tmp_path, run, output_format):
    """Whether the model reads all passages of a row or not; scores of the input are those of the first stage."""
    rows = [scored_row(2), scored_row(6), {"query": "lake", "passages": []}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    options = ["--skim", "bundled", "--skim-keep", "4", "--blend", "0.4", "--output-format", output_format]
    status, stderr = run(
        *("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--shard-size", "1"), *options
    )
    assert status == 0, stderr
    reranker = Reranker("bundled", skim="bundled", skim_keep=4, blend=0.4)
    shards = shards_of(tmp_path / "out")
    assert len(shards) == 3
    if output_format == "parquet":
        (results,) = {pq.read_schema(shard).field("results").type for shard in shards}
        names = [field.name for field in results.value_type]
        assert names[-3:] == ["scored_by", "skim_logit", "blended_score"]
        found = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    else:
        found = [json.loads(line) for line in jsonl_of(tmp_path / "out").splitlines()]
    for row, written in zip(rows, found, strict=True):
        passages = [passage["text"] for passage in row["passages"]]
        scores = [passage["retrieval_score"] for passage in row["passages"]]
        ranking = reranker.rank(row["query"], passages, retrieval_scores=scores)
        assert [one["index"] for one in written["results"]] == [one.index for one in ranking]
        for name in ("score", "blended_score", "scored_by", "skim_logit"):
            assert [one.get(name) for one in written["results"]] == [getattr(one, name) for one in ranking]
    assert [one.get("score") is None for one in found[1]["results"]] == [False] * 4 + [True] * 2
    if output_format == "jsonl":
        assert "score" not in found[1]["results"][-1]


def test_fields_of_an_earlier_cascade_do_not_pass_for_those_of_this_one(tmp_path, run):
    """They move aside as the others do, in both formats."""
    passage = {"text": "berlin", "score": 1.5, "scored_by": "earlier", "blended_score": 0.5}
    write_jsonl(tmp_path / "in.jsonl", [{"query": "berlin", "passages": [passage]}])
    expected = {"text": "berlin", "input_score": 1.5, "input_scored_by": "earlier", "input_blended_score": 0.5}
    for output_format in ("jsonl", "parquet"):
        out = tmp_path / output_format
        command = ["--input", tmp_path / "in.jsonl", "--output", out, "--output-format", output_format]
        assert run(*command)[0] == 0
        (shard,) = shards_of(out)
        rows = pq.read_table(shard).to_pylist() if output_format == "parquet" else [json.loads(jsonl_of(out))]
        (result,) = rows[0]["results"]
        assert result.items() >= expected.items()
        assert {"scored_by", "blended_score", "skim_logit"}.isdisjoint(result)


def test_a_blend_with_the_scores_of_a_run(tmp_path, run):
    """With all of the weight on them, the order is that of the run."""
    (tmp_path / "run.txt").write_text("q1 Q0 d1 1 9.5 bm25\nq1 Q0 d2 2 9.4 bm25\nq1 Q0 d3 3 2 bm25\n")
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q1", "text": "berlin museum"}])
    texts = {"d1": "bread", "d2": "berlin museum", "d3": "museum"}
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": key, "text": text} for key, text in texts.items()])
    files = ["--run", "run.txt", "--queries", "queries.jsonl", "--corpus", "corpus.jsonl"]
    files = [name if name.startswith("--") else tmp_path / name for name in files]
    for blend in (0.3, 1.0):
        out = tmp_path / str(blend)
        assert run(*files, "--output", out, "--blend", blend)[0] == 0
        results = json.loads(jsonl_of(out))["results"]
        ranking = Reranker("bundled", blend=blend).rank("berlin museum", texts.values(), retrieval_scores=[9.5, 9.4, 2])
        assert [one["id"] for one in results] == [list(texts)[one.index] for one in ranking]
        assert [one["blended_score"] for one in results] == [one.blended_score for one in ranking]
    assert [one["id"] for one in results] == ["d1", "d2", "d3"]


def test_a_custom_scorer_is_known_by_its_class(candidates, tmp_path):
    """A folder that was started with one scorer is refused to another."""
    with Reranker(WordOverlapScorer()) as reranker:
        planned = plan(candidates, tmp_path / "out", reranker, shard_size=50)
        assert planned.follow(planned.rank_here(reranker), None).ranked == 2
    with (
        Reranker("bundled") as other,
        pytest.raises(InvalidInputError, match='model was "word-overlap" and is "bundled"'),
    ):
        plan(candidates, tmp_path / "out", other, shard_size=50)


@pytest.mark.parametrize(
    "setting", [{"on_error": "passthrough"}, {"fallback": "bundled"}], ids=lambda value: next(iter(value))
)
def test_rows_are_all_of_one_model(candidates, tmp_path, setting):
    """Settings that could add unranked rows, or rows of another model, are refused."""
    with pytest.raises(InvalidInputError, match="cannot be used in a job: all rows have scores of one model"):
        plan(candidates, tmp_path / "ranked", Reranker("bundled", **setting))


def test_a_run_that_is_killed_again_and_again_ends_the_same(candidates, expected, tmp_path):
    """After SIGKILL at random moments no row is missing, duplicated or different, and no unfinished file is left."""
    out = tmp_path / "out"
    command = [*COMMAND, "--input", str(candidates), "--output", str(out), "--shard-size", "1"]
    chance = random.Random(7)  # noqa: S311
    kills = 0
    for _ in range(5):
        finished = len(shards_of(out)) if out.is_dir() else 0
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < end:
            if out.is_dir() and len(shards_of(out)) > finished:
                time.sleep(chance.random() * 0.01)
                process.kill()
                break
            time.sleep(0.001)
        kills += process.wait() == -signal.SIGKILL
        for path in shards_of(out):
            assert path.read_text().endswith("}\n")
    assert kills >= 3
    left = 60 - len(shards_of(out))
    # What a machine leaves that fails in the middle of a write.
    (out / ".part-00059.jsonl.0123456789abcdef0123456789abcdef.tmp").write_text('{"half')
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert f"ranked {left} shard" in done.stderr
    assert jsonl_of(out) == expected
    assert sorted(path.name for path in out.iterdir()) == [
        "_marcorank.json",
        *(f"part-{n:05d}.jsonl" for n in range(60)),
    ]


def test_two_starts_at_once_end_the_same(candidates, expected, tmp_path):
    """Both write complete shards of the same rows, and neither deletes what the other needs."""
    command = [*COMMAND, "--input", str(candidates), "--output", str(tmp_path / "out"), "--shard-size", "1"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate(timeout=PATIENCE_S)[1], process.returncode)[1] for process in both] == [0, 0]
    assert jsonl_of(tmp_path / "out") == expected


def test_ctrl_c_leaves_what_is_finished(candidates, tmp_path):
    """The command exits with status 130 and one line, and running it again resumes."""
    out = tmp_path / "out"
    command = [*COMMAND, "--input", str(candidates), "--output", str(out), "--shard-size", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out.is_dir() and shards_of(out)):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stderr) == (130, "marcorank: interrupted\n")
    assert not [path.name for path in out.iterdir() if path.name.endswith(".tmp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert re.search(r"skipped \d+ shards? of an earlier run; '.*' holds all 60", done.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals on Windows")
def test_a_terminal_shows_progress(tmp_path):
    """The progress line has finished shards, pairs a second and the remaining time; only the summary is left."""
    write_jsonl(tmp_path / "in.jsonl", make_rows(700))
    command = [*COMMAND, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), "--shard-size", "5"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*command, "--threads", "1"], stderr=theirs, env=os.environ | {"COLUMNS": "120"})
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait(PATIENCE_S) == 0
    assert re.search(rb"Ranking: \d+ of 140 shards, [\d,]+ pairs a second, \d+ s left \.\.\. \d+ s", shown)
    assert shown.rstrip().endswith(b"out' holds all 140")


def test_a_model_that_changed_in_its_folder_is_refused(candidates, tmp_path, small_bert):
    """A folder never mixes scores of two models."""
    model = shutil.copytree(small_bert, tmp_path / "model")
    made = tmp_path / "ranked"
    plan(candidates, made, Reranker(model))
    plan(candidates, made, Reranker(model))
    (model / "notes.log").write_text("trained again", encoding="utf-8")
    plan(candidates, made, Reranker(model))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"trained": "again"}), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"the model file config\.json has changed"):
        plan(candidates, made, Reranker(model))


def test_the_scale_of_a_scorer_is_part_of_a_run(candidates, tmp_path):
    """A folder never mixes logits and probabilities."""
    plan(candidates, tmp_path / "ranked", Reranker(WordOverlapScorer()))
    with pytest.raises(InvalidInputError, match="activation was"):
        plan(candidates, tmp_path / "ranked", Reranker(WordOverlapScorer(), activation="sigmoid"))


def test_a_run_that_starts_again_ends_the_one_before(candidates, tmp_path):
    """This holds for the same settings too: the model may have changed."""
    reranker = Reranker(WordOverlapScorer())
    first = plan(candidates, tmp_path / "ranked", reranker, shard_size=50)
    plan(candidates, tmp_path / "ranked", reranker, shard_size=50, overwrite=True)
    with pytest.raises(InvalidInputError, match="was taken over by another run"):
        first.follow(first.rank_here(reranker), None)


@pytest.mark.parametrize("ending", [".jsonl", ".PARQUET", ".jsonl.GZ"])
def test_links_and_uppercase_extensions_are_read_by_their_name(tmp_path, ending):
    """Caches of hubs and of data versions contain links whose targets have no file extension."""
    row = {"query": "red", "passages": ["red", "car"]}
    blob = tmp_path / "0123abc"
    if ending == ".PARQUET":
        pq.write_table(pa.Table.from_pylist([row]), blob)
    else:
        line = (json.dumps(row) + "\n").encode()
        blob.write_bytes(gzip.compress(line) if ending.endswith("GZ") else line)
    link = tmp_path / f"monday{ending}"
    link.symlink_to(blob)
    (tmp_path / f"again{ending}").symlink_to(blob)
    reranker = Reranker(WordOverlapScorer())
    planned = plan([link, tmp_path / f"again{ending}"], tmp_path / "ranked", reranker)
    assert planned.follow(planned.rank_here(reranker), None).requests == 1


def test_parquet_under_another_name_is_named(tmp_path):
    """The error says which name it needs."""
    pq.write_table(pa.table({"query": ["red"], "passages": [["car"]]}), tmp_path / "monday.jsonl")
    with pytest.raises(InvalidInputError, match=r"monday.jsonl' is Parquet.* rename it to .parquet there"):
        plan(tmp_path / "monday.jsonl", tmp_path / "ranked", Reranker(WordOverlapScorer()))


def test_an_input_inside_the_output_is_named(tmp_path):
    """Files of the output folder are never input."""
    (tmp_path / "monday.jsonl").write_text('{"query": "red", "passages": ["car"]}\n', encoding="utf-8")
    with pytest.raises(InvalidInputError, match="matches only files of the output folder"):
        plan(tmp_path, tmp_path, Reranker(WordOverlapScorer()))


@pytest.mark.parametrize("text", ['"meta": {}', '"note": "\\ud800"'], ids=["no fields", "half a character"])
def test_what_no_column_holds_is_found_before_anything_is_ranked(tmp_path, text):
    """A value that no column can hold is an error before anything is ranked."""
    file = tmp_path / "monday.jsonl"
    file.write_text('{"query": "red", "passages": ["car"], ' + text + "}\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="cannot be a column of Parquet"):
        plan(file, tmp_path / "ranked", Reranker(WordOverlapScorer()), output_format="parquet")
    assert plan(file, tmp_path / "lines", Reranker(WordOverlapScorer())).shards
