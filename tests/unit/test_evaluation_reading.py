"""Runs, qrels and collections: what is read, what is written, and what is said of a broken file."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import struct
from itertools import pairwise

import hypothesis.strategies as st
import ir_measures
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from marcorank.collections.first_stage import bm25_run
from marcorank.collections.reading import read_collection, read_qrels, read_run, write_run
from marcorank.collections.trec import qrels_and_notes, run_and_notes
from marcorank.errors import InvalidInputError, MissingExtraError

RUN = {"q1": {"d2": 3.5, "d1": 1.0}, "q2": {"d3": -2.0}}
RUN_LINES = {
    6: ["q1 Q0 d2 1 3.5 bm25", "q1 Q0 d1 2 1.0 bm25", "q2 Q0 d3 1 -2 bm25"],
    4: ["q1 d2 1 3.5", "q1 d1 2 1.0", "q2 d3 1 -2e0"],
    3: ["q1 d2 3.5", "q1 d1 1", "q2 d3 -2"],
}
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d9": -1}}
QRELS_LINES = {4: ["q1 0 d1 2", "q1 0 d2 0", "q2 0 d9 -1"], 3: ["q1 d1 2", "q1 d2 0", "q2 d9 -1"]}


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def write_file(content, name="in.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


@pytest.fixture
def folder(write, tmp_path):
    """A small collection as BEIR has it, with a run."""
    write('{"_id": "q1", "text": "bees"}\n{"_id": "q2", "text": "cars"}\n{"_id": "q9", "text": "x"}\n', "queries.jsonl")
    corpus = [
        {"_id": "d1", "title": "Bees", "text": "make honey"},
        {"_id": "d2", "title": " ", "text": " Cars need fuel"},
        {"_id": "d3", "text": ""},
        {"_id": "d4", "title": None, "text": "Nobody asks for this"},
    ]
    write("\n".join(map(json.dumps, corpus)), "corpus.jsonl")
    write("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n", "qrels/test.tsv")
    write("q1 Q0 d2 1 3.5 bm25\nq1 Q0 d1 2 1.0 bm25\nq2 Q0 d3 1 2 bm25\n", "run.trec")
    return tmp_path


def in_order(run):
    return {query_id: list(results.items()) for query_id, results in run.items()}


@pytest.mark.parametrize("columns", [6, 4, 3])
@pytest.mark.parametrize("separator", [" ", "\t", "   ", " \t "])
@pytest.mark.parametrize("name", ["run.trec", "run.tsv.gz"])
def test_a_run_has_six_four_or_three_columns(write, columns, separator, name):
    """Each usual format of a run gives the same scores, whatever separates the columns, compressed or not."""
    content = "\r\n".join(line.replace(" ", separator) for line in RUN_LINES[columns]) + "\n\n"
    assert in_order(read_run(write(content, name))) == in_order(RUN)


@pytest.mark.parametrize("columns", [4, 3])
@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("name", ["qrels.txt", "qrels.tsv.gz"])
def test_qrels_have_four_or_three_columns(write, columns, separator, name):
    """TREC's and BEIR's qrels give the same grades, negative ones too."""
    content = "\n".join(line.replace(" ", separator) for line in QRELS_LINES[columns])
    assert read_qrels(write(content, name)) == QRELS


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore", "qid docid score", "\ufeffquery_id\tdoc_id\tgrade"])
def test_a_header_is_skipped(write, header):
    """BEIR and others name the columns in the first line."""
    assert read_qrels(write(f"{header}\nq1\td1\t2\n")) == {"q1": {"d1": 2}}
    assert read_run(write(f"{header}\nq1\td1\t2.5\n")) == {"q1": {"d1": 2.5}}
    assert read_run(write("topic Q0 d1 1 2.5 tag")) == {"topic": {"d1": 2.5}}


def test_the_order_is_that_of_scores_then_of_ids_descending(write):
    """Results are sorted by score, not by line or rank; ties are ordered as in trec_eval, with a note."""
    path = write("q Q0 a 1 1.5 x\nq Q0 b 2 1.5 x\nq Q0 c 3 9 x\nq Q0 B 4 1.5 x\n")
    run, notes = run_and_notes(path)
    assert list(run["q"].items()) == [("c", 9.0), ("b", 1.5), ("a", 1.5), ("B", 1.5)]
    ties = "results with the score of another result of their query: 2 of 4; ties are ordered by doc_id, descending"
    assert notes == [f"{str(path)!r}: {ties}, as in trec_eval."]


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_is_that_of_trec_eval(data, tmp_path):
    """The rank of one relevant passage is that of trec_eval, through ir_measures, with ties too."""
    ids = data.draw(st.lists(st.text("aBé1_", min_size=1), min_size=1, max_size=8, unique=True))
    scores = data.draw(st.lists(st.sampled_from([-1, 0.25, 2]), min_size=len(ids), max_size=len(ids)))
    relevant = data.draw(st.sampled_from(ids))
    path = tmp_path / "run"
    path.write_text("".join(f"q Q0 {doc} 0 {score} x\n" for doc, score in zip(ids, scores, strict=True)))
    judged = [ir_measures.Qrel("q", relevant, 1)]
    expected = ir_measures.pytrec_eval.calc_aggregate([ir_measures.RR], judged, ir_measures.read_trec_run(str(path)))
    assert 1 / (list(read_run(path)["q"]).index(relevant) + 1) == pytest.approx(expected[ir_measures.RR])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["q1\tQ0\td2\t1\t3.5\tx", "q1 Q0 d1 2 1 x"], {"d2": 3.5, "d1": 1.0}),
        (["q1\tQ0 d2\t1 3.5\tx", "q1\tQ0 d1\t2 1\tx"], {"d2": 3.5, "d1": 1.0}),
        (["q1\td2\t3.5", "q1 d1 1"], {"d2": 3.5, "d1": 1.0}),
    ],
)
def test_mixed_tabs_and_spaces_are_read_and_noted(write, lines, expected):
    """A file that mixes separators is read if each line has the right number of columns."""
    path = write("\n".join(lines))
    run, notes = run_and_notes(path)
    assert run == {"q1": expected}
    assert notes == [f"{str(path)!r} mixes tabs and spaces; both were read as separators."]


@pytest.mark.parametrize(
    "lines", [["q1 d1\t1\t0.7", "q1 d2\t2\t0.6"], ["q1\t0 d1\t1", "q1\t0 d2\t2"], ["q1 0\td1\t1", "q1 0\td2\t2"]]
)
def test_lines_that_can_be_split_in_two_ways_are_an_error(write, lines):
    """Nothing decides whether the space belongs to an id, so the file is refused."""
    with pytest.raises(
        InvalidInputError, match=r"line 1 mixes tabs and spaces: it has 3 columns by tabs and 4 by both"
    ):
        run_and_notes(write("\n".join(lines)))


def test_mixed_qrels_are_read_by_their_iteration_number(write):
    """Three columns by tabs and four by both: the iteration number decides."""
    grades, notes = qrels_and_notes(write("q1\t0 d1\t1\nq1\t0 d2\t0\n"))
    assert grades == {"q1": {"d1": 1, "d2": 0}}
    assert len(notes) == 1


def test_ids_may_hold_blanks_where_only_tabs_separate(write):
    """File names make doc_ids with spaces; a file with tabs can contain them, with or without a header."""
    assert read_qrels(write("q1\tmy file.txt\t1\nq1\tno-break\u00a0space\t0\n")) == {
        "q1": {"my file.txt": 1, "no-break\u00a0space": 0}
    }
    assert read_qrels(write("query-id\tcorpus-id\tscore\nq1\t0 b\t1\n")) == {"q1": {"0 b": 1}}
    assert read_run(write("q1\ta long name\t3.5\n")) == {"q1": {"a long name": 3.5}}
    assert read_run(write("q1 no-break\u00a0space 3.5\n")) == {"q1": {"no-break\u00a0space": 3.5}}


def test_ranks_instead_of_scores_are_detected(write):
    """In MS MARCO's files of query_id, doc_id and rank the lowest number is the best."""
    lines = [f"q1\td{rank}\t{rank}" for rank in range(1, 7)] + ["q2\td1\t1", "q2\td2\t2"]
    run, notes = run_and_notes(write("\n".join(lines)))
    assert list(run["q1"]) == ["d1", "d2", "d3", "d4", "d5", "d6"]
    assert list(run["q2"]) == ["d1", "d2"]
    assert "was read as ranks" in notes[0]
    assert list(read_run(write("q1 a 1\nq1 b 2\n"))["q1"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("q1 d1 2 1.0\nq1 d2 1.0", "', line 2 has 3 columns ('q1 d2 1.0'); expected 4 as in line 1."),
        ("q1\td1\t1.0\n\nq1\td2", "', line 3 has 2 columns ('q1\\td2'); expected 3 as in line 1."),
        ("q1 Q0 d1 1 2.0", "', line 1 has 5 columns ('q1 Q0 d1 1 2.0'); expected 6 columns (query_id Q0 doc_id rank"),
        ("word", "', line 1 has 1 column ('word'); expected 6 columns (query_id Q0 doc_id rank score tag) or 4"),
        ("q1\td1\t1\nq1\td2 1", None),
        ("q1\td1\t1\nq1\td2\t1 x", "', line 2: the score is '1 x'; expected a finite number."),
        ("query-id\tcorpus-id\tscore\nq1\t\t1", "', line 2 has an empty column; expected query_id doc_id score."),
        ("q1 d1 1.0\nq1 d2 high", "', line 2: the score is 'high'; expected a finite number."),
        ("q1 d1 nan", "', line 1: the score is 'nan'; expected a finite number."),
        ("q1 d1 -inf", "', line 1: the score is '-inf'; expected a finite number."),
        ("q1 d1 1e999", "', line 1: the score is '1e999'; expected a finite number."),
        ("q1 d1 1_0", "', line 1: the score is '1_0'; expected a finite number."),
        ("q1 0 d1 1", "', line 1: the rank is 'd1'; expected a whole number in the third of four columns"),
        (
            "q1 d1 2\nq2 d1 2\nq1 d1 3",
            "', line 3: doc_id 'd1' of query_id 'q1' is in an earlier line already. A run has",
        ),
        ("", "' is empty; expected a run of 6 columns (query_id Q0 doc_id rank score tag) or 4 columns"),
        (" \n\t\n", "' is empty; expected a run of"),
        ("qid docid score\n", "' is empty; expected a run of"),
        (b"q1 d1 1\nq1 d\xfc 1", "', line 2 is not UTF-8 (byte 0xfc at position 4); save the file as UTF-8."),
    ],
)
def test_a_broken_run_is_named(write, content, complaint):
    """The error names the file, the line, what was found and what was expected."""
    path = write(content)
    if complaint is None:
        assert read_run(path) == {"q1": {"d2": 1.0, "d1": 1.0}}
        return
    with pytest.raises(InvalidInputError, match=rf"^'{re.escape(str(path) + complaint)}"):
        read_run(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("q1 0 d1 1.5", "', line 1: the grade is '1.5'; expected a whole number, such as 0, 1 or 2."),
        ("q1 0 d1 yes", "', line 1: the grade is 'yes'; expected a whole number"),
        ("q1 0 d1 1_0", "', line 1: the grade is '1_0'; expected a whole number"),
        (
            "q1 0 d1 1\nq1 0 d1 2",
            "', line 2: doc_id 'd1' of query_id 'q1' is in an earlier line already. Its grade is 1 t",
        ),
        ("q1 Q0 d1 1 2.0 x", "', line 1 has 6 columns ('q1 Q0 d1 1 2.0 x'); expected 4 columns (query_id iteration"),
        ("", "' is empty; expected qrels of 4 columns (query_id iteration doc_id grade) or 3 columns"),
    ],
)
def test_broken_qrels_are_named(write, content, complaint):
    """The error names the file, the line, what was found and what was expected."""
    path = write(content)
    with pytest.raises(InvalidInputError, match=rf"^'{re.escape(str(path) + complaint)}"):
        read_qrels(path)


def test_a_judgement_that_is_repeated_counts_once(write):
    """A judgement repeated with the same grade is kept once, with a note."""
    path = write("q1 0 d1 1\nq1 0 d1 1.0\nq1 0 d2 0\n")
    assert qrels_and_notes(path) == (
        {"q1": {"d1": 1, "d2": 0}},
        [f"{str(path)!r}: judgements repeated with the same grade, counted once: 1."],
    )


@pytest.mark.parametrize("read", [read_run, read_qrels])
def test_an_unreadable_file_is_named(read, write, tmp_path):
    """The error for a missing file, a folder, and a damaged or wrongly named .gz names it in one line."""
    with pytest.raises(InvalidInputError, match=r"none.trec' cannot be read: No such file or directory"):
        read(tmp_path / "none.trec")
    with pytest.raises(InvalidInputError, match="cannot be read: Is a directory"):
        read(tmp_path)
    whole = write("q1 0 d1 1\n" * 1000, "whole.gz").read_bytes()
    (tmp_path / "short.gz").write_bytes(whole[:-9])
    with pytest.raises(InvalidInputError, match=r"short.gz' cannot be decompressed: Compressed file ended"):
        read(tmp_path / "short.gz")
    (tmp_path / "plain.gz").write_text("q1 0 d1 1\n")
    with pytest.raises(InvalidInputError, match=r"plain.gz' cannot be decompressed: Not a gzipped file"):
        read(tmp_path / "plain.gz")


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_files_of_a_collection_may_be_compressed(tmp_path, ending):
    """Everything that is read may be compressed, and everything that is written may be too."""
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    files = {
        "queries.jsonl": b'{"_id": "q1", "text": "bees"}\n',
        "corpus.tsv": b"d1\thoney\n",
        "qrels.txt": b"q1 0 d1 1\n",
    }
    for name, content in files.items():
        (tmp_path / f"{name}{ending}").write_bytes(compress(content))
    write_run({"q1": {"d1": 2.0}}, tmp_path / f"run.trec{ending}", tag="bm25")
    assert read_collection(tmp_path).run == {"q1": {"d1": 2.0}}
    (tmp_path / f"run.trec{ending}").rename(tmp_path / "wrongly-named")
    assert read_run(tmp_path / "wrongly-named") == {"q1": {"d1": 2.0}}


@pytest.mark.parametrize("name", ["out.trec", "out.trec.gz"])
def test_a_run_is_written_as_trec_has_it(tmp_path, name):
    """Six columns, ranks from 1, the tag in each line; compressed if named .gz, the same bytes each time."""
    path = tmp_path / name
    write_run(RUN, path, tag="bm25")
    first = path.read_bytes()
    content = gzip.decompress(first) if name.endswith(".gz") else first
    assert content == b"q1 Q0 d2 1 3.5 bm25\nq1 Q0 d1 2 1.0 bm25\nq2 Q0 d3 1 -2.0 bm25\n"
    assert in_order(read_run(path)) == in_order(RUN)
    write_run(RUN, path, tag="bm25")
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]
    assert not name.endswith(".gz") or first[3:8] == bytes(5)  # neither a name nor the time


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
LOGITS = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1.0 - 1e-9]), st.floats(-12, 12), FINITE)


@given(st.dictionaries(st.text("ab7", min_size=1), LOGITS, min_size=1, max_size=12))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_written_run_keeps_its_order_everywhere(tmp_path, results):
    """Reading keeps the order; scores decrease strictly in single precision too, and unchanged if they already did."""
    path = tmp_path / "run"
    write_run({"q": results}, path, tag="t")
    scores = [float(line.split()[4]) for line in path.read_text().splitlines()]
    singles = [struct.unpack("f", struct.pack("f", score))[0] for score in scores]
    assert all(first > second for first, second in pairwise(singles))
    assert list(read_run(path)["q"]) == list(results)
    given_singles = [float(np.float32(score)) for score in results.values()]
    if all(first > second for first, second in pairwise(given_singles)):
        assert scores == list(results.values())


def test_trec_eval_sees_the_order_that_was_written(tmp_path):
    """A tie that trec_eval would break by doc_id is resolved in the file."""
    path = tmp_path / "run"
    write_run({"q": {"a": 0.99999999871, "z": 0.99999999854, "y": 0.99999999854}}, path, tag="t")
    judged = [ir_measures.Qrel("q", "a", 1)]
    found = ir_measures.pytrec_eval.calc_aggregate([ir_measures.RR], judged, ir_measures.read_trec_run(str(path)))
    assert found == {ir_measures.RR: 1.0}


def test_ids_with_blanks_are_written_with_tabs(tmp_path):
    """A doc_id that contains spaces is read back unchanged."""
    run = {"q 1": {"my file.txt": 2.0, "b": 1.0}}
    write_run(run, tmp_path / "run", tag="t")
    assert read_run(tmp_path / "run") == run


@pytest.mark.parametrize(
    ("run", "tag", "complaint"),
    [
        (RUN, "two words", "`tag` is 'two words'; expected a text without spaces that is not empty"),
        (RUN, "", "`tag` is ''; expected"),
        ({"q": {"a\tb": 1.0}}, "t", r"'a\\tb' is not a valid id; expected a text that is not empty, without tabs"),
        ({"": {"a": 1.0}}, "t", "'' is not a valid id"),
        ({"q": {"half \ud83c": 1.0}}, "t", "is not a valid id"),
        ({"q": {"a": float("nan")}}, "t", r"`run\['q'\]` has the score nan; expected a finite number"),
        ({"q": {"a": 1e39}}, "t", "has the score 1e[+]39; expected a finite number"),
    ],
)
def test_an_invalid_run_is_an_error_and_leaves_no_file(tmp_path, run, tag, complaint):
    """An error leaves no file behind."""
    with pytest.raises(InvalidInputError, match=complaint):
        write_run(run, tmp_path / "run", tag=tag)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidInputError, match="is a folder; expected the path of a file"):
        write_run(RUN, tmp_path, tag="t")


def test_a_beir_folder_is_a_collection(folder):
    """Judged queries, candidates in order, title and text joined with a space; only what is needed is kept."""
    found = read_collection(folder)
    assert found.name == folder.name
    assert found.queries == {"q1": "bees", "q2": "cars"}
    assert found.passages == {"d1": "Bees make honey", "d2": " Cars need fuel", "d3": ""}
    assert found.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    assert in_order(found.run) == {"q1": [("d2", 3.5), ("d1", 1.0)], "q2": [("d3", 2.0)]}
    assert found.notes == ()


def test_other_spellings_of_the_folder(write, tmp_path):
    """`id` for `_id`, qrels and run directly in the folder, everything compressed, integers as ids."""
    write('{"id": 1, "text": "bees"}\n', "queries.jsonl.gz")
    write('{"id": "d1", "text": "honey"}\n\n', "corpus.jsonl.gz")
    write("1 0 d1 1\n", "qrels.txt.gz")
    write("1 d1 1 2.5\n", "run.tsv.gz")
    found = read_collection(tmp_path, name="mine")
    assert (found.name, found.queries, found.run) == ("mine", {"1": "bees"}, {"1": {"d1": 2.5}})


def test_texts_may_be_tab_separated(write, tmp_path):
    """MS MARCO has queries and passages as an id, a tab and a text; tabs in the text are text."""
    write("1\tbees\n", "queries.tsv")
    write("d1\thoney\tand wax\n", "corpus.tsv")
    write("1 0 d1 1\n", "qrels.tsv")
    write("1 d1 1 2.5\n", "run.tsv")
    assert read_collection(tmp_path).passages == {"d1": "honey\tand wax"}


def test_given_paths_replace_those_of_the_folder(folder, write):
    """Each file of the folder can be replaced by another path."""
    elsewhere = {
        "run": write("q2 d4 1\n", "other/run"),
        "qrels": write("q2 0 d4 3\n", "other/qrels"),
        "queries": write('{"_id": "q2", "text": "trains"}\n', "other/queries.jsonl"),
        "corpus": write("d4\trails\n", "other/corpus.tsv"),
    }
    found = read_collection(folder, **elsewhere)
    assert (found.queries, found.passages) == ({"q2": "trains"}, {"d4": "rails"})
    assert (found.qrels, found.run) == ({"q2": {"d4": 3}}, {"q2": {"d4": 1.0}})


def test_the_split_is_chosen(folder, write):
    """`split` names a file of qrels; a single other file is read with a note, and of several none is guessed."""
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert read_collection(folder).notes == (
        "There are no judgements of the split 'test'; those in dev.tsv were read.",
    )
    assert read_collection(folder, split="dev").notes == ()
    write("q1 0 d2 1\n", "qrels/train.trec.gz")
    assert read_collection(folder, split="train").qrels == {"q1": {"d2": 1}}
    with pytest.raises(InvalidInputError, match=r"no judgements of the split 'test'; found 'dev.tsv', 'train.trec.gz'"):
        read_collection(folder)


def test_notes_report_irregularities(folder, write):
    """Unjudged queries, queries without results and judged passages without text are counted, not dropped silently."""
    write("q1 0 d1 1\nq1 0 gone 1\nq2 0 gone 1\nq2 0 d2 0\n", "qrels/test.tsv")
    write("q1 d1 2.0\nq9 d1 2.0\nq8 d1 1.0\n", "run.trec")
    found = read_collection(folder)
    assert found.run == {"q1": {"d1": 2.0}}
    assert found.notes == (
        "Queries of the run without judgements, left out: 2 ('q9', 'q8').",
        "Judged passages that are not in the corpus, counted as not found: 1 of 3, such as 'gone'.",
        "Judged queries without results, counted as 0: 1.",
    )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "run.trec",
            "q7 d1 1",
            r"run.trec' has no judged query, only 'q7'; judged are 'q1', 'q2'. Do run and",
        ),
        (
            "run.trec",
            "q1 d7 2\nq2 d8 1\nq1 d8 1",
            r"corpus.jsonl' has no text for 2 of the 2 passages of the run \('d7', 'd8'\)",
        ),
        ("run.tsv", "q1 d1 1", r"has run.tsv and run.trec; keep one, or name it with `run`"),
        (
            "qrels/test.tsv",
            "q1 0 d1 1\nq5 0 d1 1",
            r"queries.jsonl' has no text for 1 of the 2 judged queries \('q5'\)",
        ),
        (
            "queries.jsonl",
            '{"_id": "q1", "text": "\\ufeff "}\n{"_id": "q2", "text": "a"}',
            r"has blank queries \('q1'\)",
        ),
        (
            "queries.jsonl",
            '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}',
            "line 2: the id 'q1' is in an e",
        ),
        ("queries.jsonl", "", r"queries.jsonl' is empty; expected a text with its id in each line"),
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{broken', r"corpus.jsonl', line 2 is not JSON: Expecting"),
        ("corpus.jsonl", '"text"', r"corpus.jsonl', line 1 is \"text\"; expected an object with an id and a text"),
        ("corpus.jsonl", '{"text": "a"}', r"line 1 has the fields 'text'; expected '_id' or 'id'"),
        (
            "corpus.jsonl",
            '{"_id": "a", "body": "b"}',
            r"line 1 has the fields '_id', 'body'; expected 'text'",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": null}', r"line 1: 'text' is null; expected a text"),
        ("corpus.jsonl", '{"_id": "a", "text": "b", "title": 5}', r"line 1: 'title' is 5; expected a text"),
        (
            "corpus.jsonl",
            '{"_id": ["a"], "text": "b"}',
            r"line 1: '_id' is \[\"a\"\]; expected a text that is not empty",
        ),
        ("corpus.jsonl", '{"_id": "a\\tb", "text": "b"}', r"line 1: '_id' is \"a.*b\"; expected .* without tabs"),
    ],
)
def test_files_that_are_broken_or_do_not_belong_together_are_named(folder, write, name, content, complaint):
    """The error names the file, and the line or the ids that are wrong."""
    write(content, name)
    with pytest.raises(InvalidInputError, match=complaint):
        read_collection(folder)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("queries.jsonl", r"has no queries.jsonl; expected it there .* or its path as `queries`"),
        ("corpus.jsonl", r"has no corpus.jsonl; expected it there"),
        ("qrels/test.tsv", r"qrels' has no judgements of the split 'test'; found no file. Choose one with `split`"),
    ],
)
def test_a_missing_file_of_a_folder_is_named(folder, name, complaint):
    """A missing file is an error before anything is retrieved or scored."""
    (folder / name).unlink()
    with pytest.raises(InvalidInputError, match=complaint):
        read_collection(folder)


def test_a_folder_without_judgements_is_named(folder):
    """Without a folder qrels or a file of that name, the error names both paths and the argument."""
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels").rmdir()
    with pytest.raises(InvalidInputError, match=r"has no judgements; expected qrels/test.tsv or qrels.tsv, or"):
        read_collection(folder)


def test_texts_that_are_repeated_count_once(folder, write):
    """A repeated row is one passage, with a note."""
    path = write(
        '{"_id": "d1", "text": "a"}\n' * 2 + '{"_id": "d2", "text": "b"}\n{"_id": "d3", "text": "c"}', "c.jsonl"
    )
    assert read_collection(folder, corpus=path).notes == (
        f"{str(path)!r}: texts repeated under the same id, counted once: 1.",
    )


@pytest.mark.parametrize(
    ("content", "name", "location"),
    [
        ('{"_id": "d1", "text": "a"}\n\n{"_id": "d1", "text": "b"}\n', "c.jsonl", "line 3"),
        ('[\n {\n  "_id": "d1",\n  "text": "a"\n },\n {"_id": "d1", "text": "b"}\n]\n', "c.json", "row 2"),
        ("d1\ta\n\nd1\tb\n", "c.tsv", "line 3"),
    ],
)
def test_an_id_with_two_texts_is_named_where_it_stands(folder, write, content, name, location):
    """The location is the line, or for a JSON array the row."""
    message = f"{name}', {location}: the id 'd1' is in an earlier row with another text. Each text needs"
    with pytest.raises(InvalidInputError, match=message):
        read_collection(folder, corpus=write(content, name))


def test_without_a_run_bm25_is_the_first_stage(folder, capfd):
    """A corpus is enough; the notes name the first stage, and nothing is printed."""
    (folder / "run.trec").unlink()
    found = read_collection(folder)
    assert {query_id: list(results) for query_id, results in found.run.items()} == {"q1": ["d1"], "q2": ["d2"]}
    bm25 = "BM25 (bm25s, Lucene's variant, k1=0.9, b=0.4, English stop words, Snowball stemmer)"
    assert found.notes == (f"There is no run; the first stage is {bm25}.",)
    assert capfd.readouterr() == ("", "")


def test_bm25_by_hand():
    """A score is idf * tf / (tf + k1 * (1 - b + b * length / mean)), with idf = ln(1 + (N - n + 0.5) / (n + 0.5))."""
    run = bm25_run({"q": "honey"}, {"a": "honey honey bees", "b": "bees", "c": "wax hives"})
    # 3 passages of 3, 1 and 2 words, mean 2; 1 of them holds the word, twice.
    expected = np.log(1 + 2.5 / 1.5) * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * 3 / 2))
    assert run == {"q": {"a": pytest.approx(expected, rel=1e-6)}}


def test_bm25_finds_stems_and_orders_ties_by_id():
    """Inflected words match, ties are ordered by doc_id descending also at `top_k`, and misses are left out."""
    passages = {"a": "bee", "c": "bees", "b": "bee", "d": "", "e": "the wax"}
    run = bm25_run({"q1": "The bees!", "q2": "the", "q3": "zebra", "q4": "wax"}, passages, 2)
    assert {query_id: list(results) for query_id, results in run.items()} == {"q1": ["c", "b"], "q4": ["e"]}
    assert bm25_run({"q": "bees"}, {"a": "", "b": "the"}) == {}
    assert bm25_run({"q": "bees"}, {}) == {}
    with pytest.raises(InvalidInputError, match="`top_k` is 0; expected a whole number of at least 1"):
        bm25_run({}, {}, 0)


def test_bm25_names_the_extra(monkeypatch):
    """Without bm25s, the error names the command to install it and the alternative."""
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r'pip install "marcorank\[evaluation\]". Without them, pass a run'):
        bm25_run({"q": "bees"}, {"a": "bees"})


def rows(write, *content, name="pairs.jsonl"):
    return read_collection(write("\n".join(row if isinstance(row, str) else json.dumps(row) for row in content), name))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_rows_of_texts_are_a_collection(write, name):
    """One row per query: the list has the order of the first stage, and each passage in it is judged."""
    found = rows(
        write,
        {"query": "bees", "passages": ["honey", "", "wax"], "relevant": [2]},
        "",
        {"query_id": "mine", "query": "cars", "passages": ["fuel"], "relevant": []},
        {"id": 7, "query": "none", "passages": [], "relevant": []},
        name=name,
    )
    assert found.name == "pairs"
    assert found.queries == {"1": "bees", "mine": "cars", "7": "none"}
    assert found.passages == {"1:0": "honey", "1:1": "", "1:2": "wax", "mine:0": "fuel"}
    assert found.qrels == {"1": {"1:0": 0, "1:1": 0, "1:2": 1}, "mine": {"mine:0": 0}, "7": {}}
    assert in_order(found.run) == {"1": [("1:0", 3.0), ("1:1", 2.0), ("1:2", 1.0)], "mine": [("mine:0", 1.0)]}
    assert found.notes == ("Judged queries without results, counted as 0: 1.",)


def test_an_array_of_rows_is_a_collection(write):
    """Formatted JSON reads like JSONL; a row without an id is named by its position, from 1."""
    content = [
        {"query": "bees", "passages": ["honey", "wax"], "relevant": [1]},
        {"query": "cars", "passages": ["fuel"], "relevant": [0]},
    ]
    found = read_collection(write(json.dumps(content, indent=2), "pairs.json"))
    assert (found.name, found.queries) == ("pairs", {"1": "bees", "2": "cars"})
    with pytest.raises(InvalidInputError, match=r"pairs\.json', row 2 has no field 'relevant'"):
        read_collection(write(json.dumps([content[0], {"query": "q", "passages": []}], indent=2), "pairs.json"))


OBJECTS = [{"id": "b", "text": "honey", "score": 2.5}, {"id": "a", "text": "wax", "score": 2.5}]


@pytest.mark.parametrize("relevant", [[1], ["a"], ["wax"], ["a", "wax"], ["wax", 1], {"a": 1}])
def test_relevant_passages_are_named_by_index_id_or_text(write, relevant):
    """Each way of naming a passage gives the same judgements; scores that decrease with the list are kept."""
    found = rows(write, {"query": "bees", "passages": OBJECTS, "relevant": relevant})
    assert found.qrels == {"1": {"b": 0, "a": 1}}
    assert in_order(found.run) == {"1": [("b", 2.5), ("a", 2.5)]}
    assert found.notes == ()


def test_an_object_gives_grades(write):
    """Keys are ids, texts, or, if there are no ids, indexes."""
    grades = {"2": 3, "honey": -1}
    found = rows(write, {"query": "bees", "passages": ["honey", "wax", "sting"], "relevant": grades})
    assert found.qrels == {"1": {"1:0": -1, "1:1": 0, "1:2": 3}}


def test_whole_numbers_are_ids_where_ids_are_whole_numbers(write):
    """A table's primary keys are not mistaken for indexes of the list."""
    passages = [{"id": 1, "text": "honey"}, {"id": 2, "text": "wax"}, {"id": 0, "text": "sting"}]
    found = rows(write, {"query": "bees", "passages": passages, "relevant": [1]})
    assert found.qrels == {"1": {"1": 1, "2": 0, "0": 0}}


NUMBERED = [{"id": 7, "text": "honey"}, {"id": 1, "text": "wax"}, {"id": 8, "text": "sting"}]
NAMED = [{"id": "b", "text": "honey"}, {"id": "a", "text": "wax"}, {"text": "sting"}]


@pytest.mark.parametrize(
    ("passages", "relevant", "found", "first", "second"),
    [
        (["a", "b", "c"], [0, 1, 0], "as many numbers .*: labels or indexes", {"1": 1}, {"0": 1, "1": 1}),
        (["a", "b"], [0, 1], "as many numbers", {"1": 1}, {"0": 1, "1": 1}),
        (["a", "b"], [False, True], "as many numbers", {"1": 1}, {"0": 1, "1": 1}),
        (["a", "b"], [0.0, 1.0], "as many numbers", {"1": 1}, {"0": 1, "1": 1}),
        (["a", "b", "c"], ["0", "1", "0"], "as many numbers", {"1": 1}, {"0": 1, "1": 1}),
        (["a", "b", "c"], [0, 2, 2], "as many numbers", {"1": 2, "2": 2}, {"0": 1, "2": 1}),
        (NAMED, [0, 1, 1], "as many numbers", {"a": 1, "sting": 1}, {"b": 1, "a": 1}),
        (NUMBERED, [1, 0, 0], "as many numbers", {"7": 1}, {"1": 1, "7": 1}),
        (["a", "b", "c"], [2, 0, 2, "a"], "repeats an index", [2, 0, "a"], {"2": 1, "0": 1, "a": 1}),
        (["a", "b", "c"], [2, 0, 2, 2], "repeats an index", [2, 0], {"2": 1, "0": 1}),
        ([{"id": "1", "text": "a"}, {"id": "0", "text": "b"}], [0, 1], ": labels, ind", {"0": 1}, {"1": 1, "0": 1}),
        (NUMBERED, [0, 1], "0 is not the id of a passage", {"0": 1, "1": 1}, {"7": 1, "1": 1}),
        (NUMBERED, [2], "2 is not the id of a passage", {"2": 1}, {"8": 1}),
        (NAMED, ["b", 1], "1 is not the id of a passage", {"b": 1, "1": 1}, {"b": 1, "a": 1}),
    ],
)
def test_ambiguous_judgements_are_refused(write, passages, relevant, found, first, second):
    """Labels, repeated indexes, and ids mixed with indexes are errors that show how to write each meaning."""
    row = {"query": "bees", "passages": passages}
    with pytest.raises(InvalidInputError, match=f"line 1: 'relevant' is .*{found}") as refused:
        rows(write, row | {"relevant": relevant})
    assert json.dumps(first) in str(refused.value)
    assert json.dumps(second) in str(refused.value)
    for way in (first, second):
        assert rows(write, row | {"relevant": way}).queries == {"1": "bees"}


def test_labels_for_passages_with_numeric_ids_may_be_their_ids(write):
    """All three meanings of as many numbers as there are passages are shown where the passages have numbers as ids."""
    with pytest.raises(InvalidInputError, match=r'for indexes, \{"1": 1, "7": 1\}; for ids, \{"1": 1, "0": 1\}\.'):
        rows(write, {"query": "bees", "passages": NUMBERED, "relevant": [1, 0, 0]})


def test_the_suggested_spellings_mean_what_they_say(write):
    """Grades in an object reach the passages that a list of labels, or of indexes, would have meant."""
    row = {"query": "bees", "passages": NUMBERED}
    assert rows(write, row | {"relevant": {"1": 1}}).qrels == {"1": {"7": 0, "1": 1, "8": 0}}
    assert rows(write, row | {"relevant": ["0", 1]}).qrels == {"1": {"7": 0, "1": 1, "8": 0, "0": 1}}
    assert rows(write, {"query": "bees", "passages": ["honey"], "relevant": [0]}).qrels == {"1": {"1:0": 1}}


def test_relevant_passages_that_were_not_found_count_as_missed(write):
    """Relevant passages that the first stage missed are kept in the judgements and count for recall."""
    found = rows(
        write,
        {"query": "bees", "passages": ["honey"], "relevant": ["wax", "wax", "honey"]},
        {"query": "cars", "passages": [{"id": "a", "text": "fuel"}], "relevant": {"z": 2, "y": 0}},
    )
    assert found.qrels == {"1": {"1:0": 1, "1:relevant:0": 1}, "2": {"a": 0, "z": 2, "y": 0}}
    assert found.passages == {"1:0": "honey", "1:relevant:0": "wax", "a": "fuel"}
    assert found.notes == ("Relevant passages not among the candidates of their query, counted as not found: 2.",)


def test_equal_passages_of_a_row_are_one(write):
    """Equal passages count once, at the first index and with the highest grade, with a note."""
    passages = ["honey", "wax", "honey", {"id": "h", "text": "honey"}, "sting"]
    for relevant in ([2], ["h"], {"h": 1, "honey": 0}):
        found = rows(write, {"query": "bees", "passages": passages, "relevant": relevant})
        assert found.qrels == {"1": {"1:0": 1, "1:1": 0, "1:4": 0}}
        assert list(found.run["1"]) == ["1:0", "1:1", "1:4"]
        assert found.notes == ("Passages equal to another one of their query, merged with it: 2.",)


def test_the_list_counts_where_scores_say_something_else(write):
    """Increasing scores, such as distances, do not reverse the first stage."""
    passages = [{"text": "honey", "score": 0.1}, {"text": "wax", "score": 0.7}]
    found = rows(write, {"query": "bees", "passages": passages, "relevant": [0]})
    assert in_order(found.run) == {"1": [("1:0", 2.0), ("1:1", 1.0)]}
    assert found.notes == (
        "Queries whose passages are in another order than their scores: 1; the order of the list counts.",
    )


def test_a_passage_may_stand_in_several_rows(write):
    """The same id means the same passage; another text with this id is an error."""
    row = {"query": "bees", "passages": [{"id": "a", "text": "honey"}], "relevant": ["a"]}
    assert rows(write, row, row).passages == {"a": "honey"}
    with pytest.raises(InvalidInputError, match="line 2: doc_id 'a' has another text in an earlier row"):
        rows(write, row, row | {"passages": [{"id": "a", "text": "wax"}]})


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{broken", "line 1 is not JSON: Expecting"),
        ("[1]", r"line 1 is \[1\]; expected an object such as \{\"query\""),
        ({"query": "q", "passages": []}, r"line 1 has no field 'relevant'; expected a row such as \{\"query\""),
        ({"passages": []}, "line 1 has no field 'query' and no field 'relevant'"),
        ({"query": " ", "passages": [], "relevant": []}, "'query' is \" \"; expected a text that is not blank"),
        ({"query": 5, "passages": [], "relevant": []}, "'query' is 5; expected a text"),
        ({"id": "a\nb", "query": "q", "passages": [], "relevant": []}, "'id' is .*; expected a text that is not empty"),
        ({"query": "q", "passages": "p", "relevant": []}, "'passages' is \"p\"; expected a list of texts or objects"),
        ({"query": "q", "passages": [5], "relevant": []}, "passage 0 is 5; expected a text or an object with a text"),
        ({"query": "q", "passages": [{"id": "a"}], "relevant": []}, "passage 0 has the fields 'id'; expected 'text'"),
        ('{"query": "q", "passages": [{"text": "a", "score": NaN}], "relevant": []}', "'score' is NaN; expected a fin"),
        ({"query": "q", "passages": [{"text": "a", "score": "1"}], "relevant": []}, "'score' is \"1\"; expected a fin"),
        (
            {"query": "q", "passages": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "relevant": []},
            "passage 1: the id 'a' is in this row already, with another text",
        ),
        ({"query": "q", "passages": ["a"], "relevant": 0}, "'relevant' is 0; expected a list of indexes, ids or texts"),
        (
            {"query": "q", "passages": ["a"], "relevant": [1]},
            "has the index 1; expected the index of a passage, from 0 to 0",
        ),
        ({"query": "q", "passages": ["a"], "relevant": [-1]}, "has the index -1; expected the index of a passage"),
        ({"query": "q", "passages": ["a"], "relevant": [True]}, "'relevant' has true; expected an index, an id or"),
        ({"query": "q", "passages": ["a"], "relevant": {"0": 1.5}}, "gives '0' the grade 1.5; expected a whole number"),
        ({"query": "q", "passages": ["a"], "relevant": {"0": True}}, "gives '0' the grade true; expected a whole"),
    ],
)
def test_a_broken_row_is_named(write, row, complaint):
    """The error names the line, the field, what was found and what was expected."""
    with pytest.raises(InvalidInputError, match=complaint):
        rows(write, row)


def test_queries_need_ids_of_their_own(write):
    """A repeated query_id is an error."""
    row = {"id": "a", "query": "q", "passages": [], "relevant": []}
    with pytest.raises(InvalidInputError, match="line 2: query_id 'a' is in an earlier row already"):
        rows(write, row, row)


def test_an_invalid_source_is_named(write, tmp_path):
    """A missing path, an empty file, and a file with arguments for a folder are errors."""
    with pytest.raises(InvalidInputError, match="none' does not exist; expected a folder or a JSONL file"):
        read_collection(tmp_path / "none")
    with pytest.raises(InvalidInputError, match=r"pairs.jsonl' is empty; expected rows such as"):
        rows(write, "")
    with pytest.raises(
        InvalidInputError, match=r"`run` goes with a folder, but '.*pairs.jsonl' is a file that contains everything"
    ):
        read_collection(tmp_path / "pairs.jsonl", run="run.trec")
