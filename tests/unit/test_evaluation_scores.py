"""The file that stores the scores of an evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcorank import Reranker
from marcorank.errors import InvalidInputError, ModelLoadError
from marcorank.evaluation.scores import ScoreStore, file_name
from marcorank.reranker import scorer_fingerprint
from marcorank.testing import WordOverlapScorer

SETTINGS = {"model": "owner/model", "max_length": 512}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores" / "model.jsonl"


def opened(path, settings=SETTINGS):
    return ScoreStore(path, settings)


def filled(path):
    """Write a store with two parts, and return its path."""
    with opened(path) as store:
        store.add("q1", "query", {"a": "first", "b": "second"}, [1.5, -2.25], seconds=0.25)
        store.add("q1", "query", {"c": "third"}, [0.5], seconds=0.5)
    return path


def test_what_was_scored_is_there_the_next_time(path):
    """Logits and missing passages come in the order of the argument."""
    with opened(filled(path)) as store:
        assert store.logits("q1", "query", ["third", "first"]) == [0.5, 1.5]
        assert store.missing("q1", "query", ["new", "first", "new", "newer"]) == ["new", "newer"]
        assert store.missing("q1", "other query", ["first"]) == ["first"]
        assert store.missing("q2", "query", ["first"]) == ["first"]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_logits_come_back_as_they_were(tmp_path_factory, logits):
    """A float32 logit survives the file exactly."""
    path = tmp_path_factory.mktemp("scores") / "model.jsonl"
    passages = {str(number): str(number) for number in range(len(logits))}
    with opened(path) as store:
        store.add("q1", "query", passages, np.array(logits, np.float32).tolist(), seconds=0.1)
    with opened(path) as store:
        found = np.array(store.logits("q1", "query", list(passages)), np.float32)
    assert found.tobytes() == np.array(logits, np.float32).tobytes()


def test_a_changed_text_is_scored_again(path):
    """A pair is identified by its texts: a changed query or passage is scored again."""
    with opened(filled(path)) as store:
        assert store.missing("q1", "query", ["first", "first, changed"]) == ["first, changed"]
        assert store.missing("q1", "query, changed", ["first"]) == ["first"]


def test_odd_texts_and_ids_are_kept(path):
    """Line breaks, halves of surrogate pairs and blank passages are stored like other texts."""
    odd = {"\ud800\n": "\udfff \n\x00", "": ""}
    with opened(path) as store:
        store.add("\ud800", "\ud83d", odd, [1.0, 2.0], seconds=0.1)
    with opened(path) as store:
        assert store.logits("\ud800", "\ud83d", list(odd.values())) == [1.0, 2.0]


def test_what_was_scored_is_in_the_file_at_once(path):
    """Each part is flushed as soon as it is added."""
    with opened(path) as store:
        for number in range(3):
            store.add("q1", "query", {"a": str(number)}, [1.5], seconds=0.25)
            assert json.loads(path.read_bytes().splitlines()[-1])["doc_ids"] == ["a"]
            assert path.read_bytes().count(b"\n") == 2 + number


def test_a_store_without_a_file_keeps_nothing():
    """A store without a folder works in memory."""
    with ScoreStore.in_folder(None, SETTINGS) as store:
        store.add("q1", "query", {"a": "first"}, [1.5], seconds=0.1)
        assert store.logits("q1", "query", ["first"]) == [1.5]
        assert store.path is None


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_line_that_was_being_written_is_dropped(path, lost):
    """An unfinished last line is dropped, and complete lines stay."""
    filled(path)
    path.write_bytes(path.read_bytes()[:-lost])
    with opened(path) as store:
        assert store.logits("q1", "query", ["first", "second"]) == [1.5, -2.25]
        assert store.missing("q1", "query", ["first", "third"]) == ["third"]
        store.add("q1", "query", {"c": "third"}, [0.75], seconds=0.5)
    with opened(path) as store:
        assert store.logits("q1", "query", ["first", "third"]) == [1.5, 0.75]


@pytest.mark.parametrize("content", [b"", b'{"kind": "marco'])
def test_a_file_without_a_whole_line_begins_anew(path, content):
    """A file with an unfinished first line starts anew."""
    path.parent.mkdir()
    path.write_bytes(content)
    assert path.read_bytes() == content
    filled(path)
    with opened(path) as store:
        assert store.logits("q1", "query", ["third"]) == [0.5]


@pytest.mark.parametrize(
    "damaged",
    [
        "{'single': 'quotes'}",
        "null",
        '{"query_id": "0", "query": "0", "passages": []}',
        '{"query_id": "0", "query": "0", "passages": ["0", "1"], "logits": [1.0], "seconds": 1.0}',
        '{"query_id": "0", "query": "0", "passages": ["0"], "logits": [NaN], "seconds": 1.0}',
        '{"query_id": "0", "query": "0", "passages": ["0"], "logits": ["1.0"], "seconds": 1.0}',
        "\x80",
        "",
    ],
)
def test_a_damaged_line_is_named(path, damaged):
    """A damaged line is an error that names line and file and says what to do."""
    lines = filled(path).read_text().splitlines()
    path.write_bytes("\n".join([lines[0], damaged, *lines[1:], ""]).encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"Line 2 of '.*model\.jsonl' is damaged.*Delete the file"):
        opened(path)


@pytest.mark.parametrize("header", ['{"kind": "something else", "settings": {}}', '{"settings": {"model": "other"}}'])
def test_a_file_of_another_model_is_refused(path, header):
    """A file that belongs to other settings is refused."""
    path.parent.mkdir()
    path.write_text(f"{header}\n")
    with pytest.raises(InvalidInputError, match="Delete the file"):
        opened(path)
    with pytest.raises(InvalidInputError, match=r"holds scores of .*'owner/model'.*expected .*'other'"):
        opened(filled(path.with_name("new.jsonl")), {"model": "other"})


def test_one_process_at_a_time_writes(path):
    """A second process that opens the file gets an error."""
    with opened(path), pytest.raises(InvalidInputError, match="is in use by another evaluation"):
        opened(path)
    with opened(path):
        pass


def test_a_refused_file_is_free_again(path):
    """After an error the file is no longer locked."""
    filled(path)
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="expected"):
            opened(path, {"model": "other"})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """The message names the path, not the system call."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"file/scores\.jsonl' cannot be written"):
        opened(tmp_path / "file" / "scores.jsonl")


def test_time_is_known_where_exactly_these_passages_were_timed():
    """The times of the parts add up; a depth that ends within a part has no time."""
    store = ScoreStore(None, SETTINGS)
    store.add("q", "query", {"a": "1", "b": "2"}, [1.0, 1.0], seconds=0.25)
    store.add("q", "query", {"c": "3", "d": "4"}, [1.0, 1.0], seconds=0.5)
    assert store.seconds("q", "query", ["1", "2"]) == 0.25
    assert store.seconds("q", "query", ["1", "2", "3", "4"]) == 0.75
    assert store.seconds("q", "query", ["1", "2", "3"]) is None
    assert store.seconds("q", "query", ["1"]) is None
    assert store.seconds("q", "query", ["1", "2", "3", "4", "5"]) is None


# --- what made the scores


@pytest.fixture
def folder(tmp_path):
    """Return a model folder."""
    folder = tmp_path / "my-model"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_settings_that_change_logits_are_told_apart(tmp_path, folder):
    """Settings that change logits have separate files; the activation does not."""
    rerankers = [
        Reranker("bundled"),
        Reranker(folder, backend="onnx"),
        Reranker(folder, backend="onnx", max_length=64),
        Reranker(folder, backend="onnx", max_query_tokens=8),
        Reranker(folder, backend="onnx", long_passages="windows"),
        Reranker(WordOverlapScorer()),
    ]
    paths = []
    for reranker in rerankers:
        with ScoreStore.in_folder(tmp_path, scorer_fingerprint(reranker)) as store:
            paths.append(store.path)
    assert len(set(paths)) == len(paths)
    assert scorer_fingerprint(Reranker("bundled", activation="sigmoid")) == scorer_fingerprint(Reranker("bundled"))
    assert scorer_fingerprint(Reranker("bundled", backend="onnx")) == scorer_fingerprint(Reranker("bundled"))
    assert paths[0].name.startswith("bundled-")
    assert paths[1].name.startswith("my-model-")


@pytest.mark.parametrize("name", ["onnx/model.onnx", "config.json", "tokenizer.json"])
def test_a_model_that_was_trained_again_is_another_one(folder, name):
    """Models are distinguished by the content of their files, not by time or folder."""
    before = scorer_fingerprint(Reranker(folder, backend="onnx"))
    (folder / "README.md").write_text("new words")
    moved = folder.rename(folder.parent.joinpath("elsewhere"))
    moved = moved.rename(folder)
    assert scorer_fingerprint(Reranker(moved, backend="onnx")) == before
    (folder / name).write_bytes(b"trained again")
    assert scorer_fingerprint(Reranker(folder, backend="onnx")) != before


def test_settings_name_the_engine_that_runs(folder):
    """`auto` is resolved in the settings, and they are JSON-serialisable."""
    settings = scorer_fingerprint(Reranker("bundled"))
    assert (settings["backend"], settings["precision"], settings["device"]) == ("onnx", "int8", "cpu")
    assert json.loads(json.dumps(settings)) == settings
    assert len(settings["files"]["model_int8.onnx"]) == 64


def test_a_model_without_the_wanted_weights_is_refused_before_anything_is_scored(folder):
    """The error is the one that loading raises."""
    with pytest.raises(ModelLoadError, match="has no int8 ONNX file"):
        scorer_fingerprint(Reranker(folder, backend="onnx", precision="int8"))


def test_a_file_name_is_plain():
    """File names are valid on every system."""
    assert file_name("cross-encoder/ms-marco-MiniLM-L-6-v2") == "cross-encoder-ms-marco-MiniLM-L-6-v2"
    assert file_name("../ä:b") == "b"
    assert file_name("/") == "unnamed"
    assert len(file_name("x" * 300)) == 80
