"""Results to files."""

from __future__ import annotations

import json
import os
import threading

import pytest

from marcorank._files import json_line, numbered_lines
from marcorank.cli.writing import opened
from marcorank.errors import InvalidInputError


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    """While a result is being written its path does not exist; afterwards it holds all and nothing else lies there."""
    path = tmp_path / "out.jsonl"
    with opened(str(path)) as out:
        out.write("straße\n")
        assert not path.exists()
    assert path.read_bytes() == "straße\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    """An error in the middle changes nothing and leaves nothing behind."""
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def fail():
        with opened(str(path)) as out:
            out.write("new")
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_keeps_its_permissions_and_its_links(tmp_path):
    """Writing again is like writing into the same file."""
    path, link = tmp_path / "out.jsonl", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with opened(str(link)) as out:
        out.write("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX thing")
def test_a_named_pipe_is_written_into(tmp_path):
    """What is no plain file is never replaced by one."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
    reader.start()
    with opened(str(path)) as out:
        out.write("through")
    assert path.is_fifo()
    reader.join(10)
    assert read == ["through"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    """A folder, and a file in a folder that is not there, end in one line."""
    with pytest.raises(InvalidInputError, match="is a folder; expected the path of a file"), opened(str(tmp_path)):
        pass
    with (
        pytest.raises(InvalidInputError, match=r"none/out.jsonl' cannot be written: No such file"),
        opened(str(tmp_path / "none" / "out.jsonl")),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("out.txt", b"stra"),
        ("out.gz", b"\x1f\x8b"),
        ("out.GZ", b"\x1f\x8b"),
        ("out.bz2", b"BZh"),
        ("out.xz", b"\xfd7zXZ"),
    ],
)
def test_the_ending_of_the_name_decides_how_a_file_is_compressed(tmp_path, name, head):
    """What is written comes back; half a surrogate pair, which no UTF-8 has, becomes a question mark."""
    path = tmp_path / name
    with opened(str(path)) as out:
        out.write("straße\nhalf \ud83c of a pair\n")
    assert path.read_bytes().startswith(head)
    assert [line for _, line in numbered_lines(path)] == ["straße", "half ? of a pair"]


@pytest.mark.parametrize("name", ["out.jsonl.zst", "out.ZIP"])
def test_a_compression_that_cannot_be_written_is_refused(tmp_path, name):
    """No plain text appears under a name that promises something else."""
    with (
        pytest.raises(InvalidInputError, match=r"cannot be written; expected .* \.gz, \.bz2, \.xz"),
        opened(str(tmp_path / name)),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["straße 柏林", "line\nbreak\u2028", "half \ud83c of a pair"])
def test_every_text_comes_back(text):
    """A row is one line of UTF-8 from which the same row can be read, readable where it can be."""
    line = json_line({"text": text})
    assert json.loads(line.encode()) == {"text": text}
    assert line.count("\n") == 1
    assert "straße" not in text or "straße" in line


def test_numbers_that_json_lacks_are_null_and_marked():
    """Strict readers refuse NaN and Infinity; the row says which of its values were one."""
    row = {"a": float("nan"), "b": [1.5, {"c": float("-inf")}], "d": 1, "not_finite": "mine", "half": "\ud83c"}
    line = json_line(row)
    assert json.loads(line, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, {"c": None}],
        "d": 1,
        "input_not_finite": "mine",
        "half": "\ud83c",
        "not_finite": ["a", "b[1].c"],
    }
    assert json.loads(json_line({"a": 1.0, "not_finite": "mine"})) == {"a": 1.0, "not_finite": "mine"}
    assert json.loads(json_line({"not_finite": 1, "input_not_finite": 2, "a": float("nan")})) == {
        "input_input_not_finite": 1,
        "input_not_finite": 2,
        "a": None,
        "not_finite": ["a"],
    }
