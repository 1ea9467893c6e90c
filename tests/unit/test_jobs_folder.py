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
    """The shard has its rows, one per line, and no other file is left."""
    begun.write_shard(17, ROWS)
    assert begun.is_finished(17, 3)
    assert [json.loads(line) for line in (begun.path / "part-00017.jsonl").read_text().splitlines()] == ROWS
    assert sorted(path.name for path in begun.path.iterdir()) == [MANIFEST, "part-00017.jsonl"]


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_a_truncated_shard_is_not_finished(tmp_path, output_format):
    """A file that is truncated anywhere is not finished, nor is one that is missing or has other rows."""
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
    """A row that cannot be written leaves neither a shard nor an unfinished file."""
    loop = {}
    loop["self"] = loop
    with pytest.raises(ValueError, match="Circular"):
        begun.write_shard(0, [*ROWS, loop])
    assert [path.name for path in begun.path.iterdir()] == [MANIFEST]


def test_what_a_killed_run_left_is_cleared(begun):
    """Our unfinished files are deleted, other files are kept."""
    mine = [".part-00001.jsonl.0123abcd.tmp", "._marcorank.json.0123abcd.tmp", "._candidates-ab12.jsonl.01ab.tmp"]
    others = ["part-00002.jsonl", ".part.tmp", "notes.tmp", ".hidden"]
    for name in [*mine, *others]:
        (begun.path / name).touch()
    folder.clear_unfinished(begun.path)
    assert sorted(path.name for path in begun.path.iterdir()) == sorted([*others, MANIFEST])


def test_a_run_whose_unfinished_file_is_cleared_writes_it_again(tmp_path):
    """If a second start in the same folder deletes an unfinished file, the first run writes it again."""
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
    """The error says that the folder was removed."""
    shutil.rmtree(begun.path)
    with pytest.raises(InvalidInputError, match=r"part-00000\.jsonl' cannot be written: its folder was removed"):
        begun.write_shard(0, ROWS)


def test_a_run_ends_when_another_takes_its_folder(begun):
    """Its shards would have other settings: it raises an error, and the shard does not appear."""
    folder.clear(begun.path, keep=None)
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
            r"the input 'a\.jsonl' \(file 1\) has changed",
        ),
        (
            MANIFEST_OF_A_RUN | {"input": MANIFEST_OF_A_RUN["input"] | {"'b.jsonl' (file 2)": "bb"}},
            r"the input 'b\.jsonl' \(file 2\) is new",
        ),
        (MANIFEST_OF_A_RUN | {"input": {}}, r"the input 'a\.jsonl' \(file 1\) is gone"),
    ],
)
def test_another_input_or_setting_is_refused(begun, wanted, message):
    """The error names the difference and what to do, also if both runs start at the same time."""
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
    """Their settings are unknown, for example after an `--overwrite` that was killed."""
    (tmp_path / "part-00000.jsonl").touch()
    with pytest.raises(InvalidInputError, match=r"has part-00000\.jsonl but no _marcorank\.json"):
        folder.read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_manifest_is_refused(tmp_path, content):
    """The error names the file and what to do."""
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InvalidInputError, match=r"_marcorank\.json' (cannot be read|is not a manifest).*--overwrite"):
        folder.read_manifest(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    """The error says that the path is a file."""
    path = tmp_path / "out"
    path.touch()
    with pytest.raises(InvalidInputError, match="out' is a file; expected a folder, or a path"):
        folder.read_manifest(path)


def test_starting_again_deletes_shards_and_nothing_else(begun):
    """Other files are kept, and so is the file in `keep`."""
    begun.write_shard(0, ROWS)
    kept = ["notes.txt", "part.jsonl", "_candidates-new.jsonl"]
    for name in [*kept, "part-00001.parquet", "_candidates-old.jsonl"]:
        (begun.path / name).touch()
    folder.clear(begun.path, keep=begun.path / "_candidates-new.jsonl")
    assert sorted(path.name for path in begun.path.iterdir()) == sorted(kept)
