"""The folder of ranked shards: what counts as finished, and which runs may write there."""

from __future__ import annotations

import json
import shutil

import pytest

from marcorank._files import write_durably
from marcorank.collections import parquet
from marcorank.collections.requests import Passage, Request
from marcorank.errors import InvalidInputError
from marcorank.jobs import folder
from marcorank.jobs.folder import MANIFEST, Folder

MANIFEST_OF_A_RUN = {
    "scorer": {"marcorank": "1"},
    "settings": {"model": "bundled", "top_n": None},
    "input": {"'a.jsonl' (file 1)": "aa"},
    "columns": None,
}
ROWS = [{"query": f"q{number}", "results": [{"text": "line\nend", "score": 1.5}]} for number in range(3)]


@pytest.fixture
def begun(tmp_path):
    """A folder that a run has begun."""
    folder.begin(tmp_path, MANIFEST_OF_A_RUN)
    return Folder.open(tmp_path)


def changed(**settings):
    return MANIFEST_OF_A_RUN | {"settings": MANIFEST_OF_A_RUN["settings"] | settings}


def test_a_written_shard_is_finished_and_nothing_else_is_left(begun):
    """The shard has its rows, one a line, and no other file stays."""
    begun.write_shard(17, ROWS)
    assert begun.is_finished(17, 3)
    assert [json.loads(line) for line in (begun.path / "part-00017.jsonl").read_text().splitlines()] == ROWS
    assert sorted(path.name for path in begun.path.iterdir()) == [MANIFEST, "part-00017.jsonl"]


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_no_beginning_of_a_shard_is_taken_for_all_of_it(tmp_path, output_format):
    """However a finished file is cut, it is not finished any more; nor is one that is missing or has other rows."""
    columns = parquet.answer_columns(
        [parquet.columns_of_requests([Request("q", [Passage("p", {"text": "p"})], {"query": "q"})])]
    )
    folder.begin(tmp_path, MANIFEST_OF_A_RUN | {"columns": columns if output_format == "parquet" else None})
    out = Folder.open(tmp_path)
    out.write_shard(0, [{"query": "q", "results": []}] * 3)
    path = out.shard_path(0)
    content = path.read_bytes()
    assert out.is_finished(0, 3)
    assert not out.is_finished(0, 2)
    assert not out.is_finished(0, 4)
    assert not out.is_finished(1, 3)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert not out.is_finished(0, 3), length


def test_a_write_that_fails_leaves_nothing(begun):
    """A row that cannot be written leaves neither a shard nor a part of one."""
    loop = {}
    loop["self"] = loop
    with pytest.raises(ValueError, match="Circular"):
        begun.write_shard(0, [*ROWS, loop])
    assert [path.name for path in begun.path.iterdir()] == [MANIFEST]


def test_what_a_killed_run_left_is_cleared(begun):
    """Unfinished files of ours go, and files of others stay."""
    mine = [".part-00001.jsonl.0123abcd.tmp", "._marcorank.json.0123abcd.tmp", "._candidates-ab12.jsonl.01ab.tmp"]
    others = ["part-00002.jsonl", ".part.tmp", "notes.tmp", ".hidden"]
    for name in [*mine, *others]:
        (begun.path / name).touch()
    folder.clear_unfinished(begun.path)
    assert sorted(path.name for path in begun.path.iterdir()) == sorted([*others, MANIFEST])


def test_a_run_whose_unfinished_file_is_cleared_writes_it_again(tmp_path):
    """A second start in the same folder clears what the first is writing; the first shard comes all the same."""
    attempts = []

    def fill(file):
        attempts.append(1)
        file.write(b"all of it")
        if len(attempts) == 1:
            for unfinished in tmp_path.iterdir():
                unfinished.unlink()

    write_durably(tmp_path / "part-00000.jsonl", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.jsonl"]
    assert (tmp_path / "part-00000.jsonl").read_bytes() == b"all of it"
    assert len(attempts) == 2


def test_a_folder_that_is_removed_is_an_error(begun):
    """A run that has nowhere to write to says so."""
    shutil.rmtree(begun.path)
    with pytest.raises(InvalidInputError, match=r"part-00000\.jsonl' cannot be written: its folder was removed"):
        begun.write_shard(0, ROWS)


def test_a_run_ends_when_another_takes_its_folder(begun):
    """Its shards would be of other settings; it says so, and the shard does not appear."""
    folder.start_anew(begun.path, keep=None)
    with pytest.raises(InvalidInputError, match="was taken over by another run, so this one stops"):
        begun.write_shard(0, ROWS)
    folder.begin(begun.path, changed(top_n=3))
    with pytest.raises(InvalidInputError, match="was taken over by another run, so this one stops"):
        begun.write_shard(0, ROWS)
    assert [path.name for path in begun.path.iterdir()] == [MANIFEST]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (changed(top_n=3), "something else: top_n was null and is 3. Use another folder, or `overwrite`"),
        (changed(model="x", top_n=1), 'model was "bundled" and is "x"; top_n was null and is 1'),
        (changed(url="http"), 'url was not known and is "http"'),
        (MANIFEST_OF_A_RUN | {"scorer": {"marcorank": "2"}}, 'marcorank was "1" and is "2"'),
        (
            MANIFEST_OF_A_RUN | {"input": {"'a.jsonl' (file 1)": "bb"}},
            r"the input 'a\.jsonl' \(file 1\) has another content",
        ),
        (
            MANIFEST_OF_A_RUN | {"input": MANIFEST_OF_A_RUN["input"] | {"'b.jsonl' (file 2)": "bb"}},
            r"the input 'b\.jsonl' \(file 2\) is new",
        ),
        (MANIFEST_OF_A_RUN | {"input": {}}, r"the input 'a\.jsonl' \(file 1\) is gone"),
    ],
)
def test_another_input_or_setting_is_refused(begun, wanted, message):
    """The message names what differs and the way out, whether the other run looks first or begins at the same time."""
    with pytest.raises(InvalidInputError, match=message):
        folder.check_same(begun.path, folder.read_manifest(begun.path), wanted)
    with pytest.raises(InvalidInputError, match=message):
        folder.begin(begun.path, wanted)
    assert json.loads((begun.path / MANIFEST).read_text()) == MANIFEST_OF_A_RUN


def test_the_same_run_may_begin_twice(begun):
    """The first manifest stays."""
    folder.begin(begun.path, MANIFEST_OF_A_RUN | {"run": "second"})
    assert json.loads((begun.path / MANIFEST).read_text()) == MANIFEST_OF_A_RUN


def test_shards_without_a_manifest_are_refused(tmp_path):
    """Nobody knows what they are of, such as after a start anew that was killed."""
    (tmp_path / "part-00000.jsonl").touch()
    with pytest.raises(InvalidInputError, match=r"holds part-00000\.jsonl but no _marcorank\.json"):
        folder.read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_manifest_is_refused(tmp_path, content):
    """It is named, with the way out."""
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InvalidInputError, match=r"_marcorank\.json' (cannot be read|is not a manifest).*--overwrite"):
        folder.read_manifest(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    """The message says what stands there."""
    path = tmp_path / "out"
    path.touch()
    with pytest.raises(InvalidInputError, match="out' is a file; expected a folder, or a path"):
        folder.read_manifest(path)


def test_to_start_anew_removes_shards_and_nothing_else(begun):
    """Files of others stay, and so does the file that is to be kept."""
    begun.write_shard(0, ROWS)
    kept = ["notes.txt", "part.jsonl", "_candidates-new.jsonl"]
    for name in [*kept, "part-00001.parquet", "_candidates-old.jsonl"]:
        (begun.path / name).touch()
    folder.start_anew(begun.path, keep=begun.path / "_candidates-new.jsonl")
    assert sorted(path.name for path in begun.path.iterdir()) == sorted(kept)
