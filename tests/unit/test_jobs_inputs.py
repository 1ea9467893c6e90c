"""Files of requests: which are found, how they are split, and errors in them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.jobs.inputs import Shard, find_files, read_file, read_shard, split


def rows_of(numbers):
    return [{"query": f"q{number}", "passages": [f"p{number}", "x"]} for number in numbers]


def write_jsonl(path, rows, *, blank_after=()):
    lines = "".join(
        json.dumps(row) + "\n" + ("\n \n" if index in blank_after else "") for index, row in enumerate(rows)
    )
    data = lines.encode()
    path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))
    return path


def write_parquet(path, rows, *, group_size=1000):
    schema = pa.schema([("query", pa.string()), ("passages", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group_size)
    return path


def read(shards, text_field=None):
    return [[request.query for request in read_shard(shard, text_field=text_field)] for shard in shards]


@pytest.mark.parametrize("shard_size", [1, 3, 4, 7, 100])
def test_every_row_is_in_one_shard(tmp_path, shard_size):
    """Rows of all formats come once, in the order of the paths, `shard_size` a shard, whatever lines are blank."""
    files = [
        write_jsonl(tmp_path / "a.jsonl", rows_of(range(5)), blank_after=(0, 3, 4)),
        write_jsonl(tmp_path / "b.jsonl.gz", rows_of(range(5, 11)), blank_after=(2,)),
        write_jsonl(tmp_path / "c.ndjson", []),
        write_parquet(tmp_path / "d.parquet", rows_of(range(11, 24)), group_size=4),
        write_jsonl(tmp_path / "e.jsonl", rows_of(range(24, 26))),
        write_jsonl(tmp_path / "f.jsonl.bz2", rows_of(range(26, 30)), blank_after=(1,)),
        write_jsonl(tmp_path / "g.ndjson.xz", rows_of(range(30, 33))),
    ]
    assert find_files(tmp_path, outside=tmp_path / "out") == files
    shards = split(files, shard_size)
    wanted = [f"q{number}" for number in range(33)]
    assert read(shards) == [wanted[start : start + shard_size] for start in range(0, 33, shard_size)]
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert [shard.rows for shard in shards] == [len(wanted[n * shard_size :][:shard_size]) for n in range(len(shards))]
    assert [Shard.from_dict(json.loads(json.dumps(shard.to_dict()))) for shard in shards] == shards


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from(["row", "", " ", "\t\r"]), max_size=25),
    shard_size=st.integers(1, 6),
    bom=st.booleans(),
    last_end=st.booleans(),
)
def test_no_row_is_lost_or_read_twice(tmp_path, lines, shard_size, bom, last_end):
    """Whatever lines a file has, its shards contain each row once."""
    text = [
        json.dumps({"query": f"q{index}", "passages": []}) if line == "row" else line
        for index, line in enumerate(lines)
    ]
    data = ("\n".join(text) + ("\n" if last_end else "")).encode("utf-8-sig" if bom else "utf-8")
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    found = read(split([path], shard_size))
    assert [query for shard in found for query in shard] == [
        f"q{index}" for index, line in enumerate(lines) if line == "row"
    ]
    assert all(len(shard) == shard_size for shard in found[:-1])


def test_files_are_found_in_one_order(tmp_path):
    """Folders, patterns and paths give each file once, sorted by path, without hidden files and other formats."""
    for name in (
        "b.jsonl",
        "a.parquet",
        "c.jsonl.gz",
        ".d.jsonl",
        "_e.jsonl",
        "notes.txt",
        "sub/f.jsonl",
        "out/g.jsonl",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def names(*paths):
        found = find_files(paths, outside=tmp_path / "out")
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names(tmp_path) == ["a.parquet", "b.jsonl", "c.jsonl.gz"]
    assert names(tmp_path / "c.jsonl.gz", tmp_path / "b.jsonl", str(tmp_path / "*.jsonl")) == ["b.jsonl", "c.jsonl.gz"]
    assert names(f"{tmp_path}/**/*.jsonl") == ["b.jsonl", "sub/f.jsonl"]
    assert names(tmp_path / "_e.jsonl") == ["_e.jsonl"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none*.jsonl", r"none\*\.jsonl' matches no file; expected files that end in \.jsonl"),
        ("folder", "folder' matches no file"),
        ("notes.txt", r"notes\.txt' is not a JSONL or Parquet file; expected a file that ends in \.jsonl"),
    ],
)
def test_a_path_that_finds_nothing_is_an_error(tmp_path, path, message):
    """A pattern that matches nothing is an error, not an empty input."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InvalidInputError, match=message):
        find_files(tmp_path / path, outside=tmp_path / "out")
    with pytest.raises(InvalidInputError, match="`input` is empty; expected paths"):
        find_files([], outside=tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", "is not JSON"),
        ("[1]", r"is \[1\]; expected an object with a query"),
        ('{"passages": []}', "has no field 'query'"),
        ('{"query": " ", "passages": []}', "'query' is \" \"; expected a text that is not blank"),
        ('{"query": "q", "passages": "p"}', "'passages' is \"p\"; expected a list of texts or objects"),
        ('{"query": "q", "passages": ["a", null]}', "passage 1 is null; expected a text or an object"),
        ('{"query": "q", "passages": [{"body": "a"}]}', "passage 0 has the fields 'body'; expected 'text'"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, row, message):
    """The line number is that of the file, also in a later shard and after blank lines."""
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([json.dumps(rows_of([0])[0]), "", json.dumps(rows_of([1])[0]), row]) + "\n")
    with pytest.raises(InvalidInputError, match=rf"in\.jsonl', line 4.*{message}"):
        read(split([path], 2))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": None, "passages": ["a"]}, "'query' is null; expected a text"),
        ({"query": "\ufeff\u200b", "passages": ["a"]}, "'query' is .*; expected a text that is not blank"),
        ({"query": "q", "passages": None}, "'passages' is null; expected a list"),
        ({"query": "q", "passages": ["a", None]}, "passage 1 is null"),
    ],
)
def test_a_bad_row_of_parquet_is_named_by_file_and_row(tmp_path, row, message):
    """Rows count from 1."""
    path = write_parquet(tmp_path / "in.parquet", [*rows_of(range(4)), row], group_size=2)
    with pytest.raises(InvalidInputError, match=rf"in\.parquet', row 5.*{message}"):
        read(split([path], 3))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_named_as_what_it_is(tmp_path, indent):
    """Shards begin at lines, so that a file has to have a row in each."""
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(rows_of(range(3)), indent=indent))
    with pytest.raises(InvalidInputError, match=r"line 1 is '\[.*, as in formatted JSON or an array; .* `jq -c"):
        list(read_file(path, text_field=None))


def test_damaged_files_are_named(tmp_path):
    """A file that is not Parquet, not gzip or missing is an error that names it."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    for name, message in {
        "a.parquet": r"a\.parquet' cannot be read as Parquet",
        "b.jsonl.gz": r"b\.jsonl\.gz' cannot be decompressed",
        "c.jsonl": r"c\.jsonl' cannot be read: No such file",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            split([tmp_path / name], 2)


def test_a_file_that_shrinks_is_noticed(tmp_path):
    """Rows that were there when the shards were split cannot vanish silently."""
    path = write_jsonl(tmp_path / "in.jsonl", rows_of(range(4)))
    shards = split([path], 2)
    write_jsonl(path, rows_of(range(3)))
    with pytest.raises(InvalidInputError, match=r"in\.jsonl' lost rows while it was read"):
        read(shards)


def test_rows_in_the_middle_of_a_large_group_are_found(tmp_path):
    """Parquet is read in batches of rows, and a shard may begin anywhere in a row group."""
    path = write_parquet(tmp_path / "in.parquet", rows_of(range(1000)))
    assert read(split([path], 90)) == [
        [f"q{n}" for n in range(1000)][start : start + 90] for start in range(0, 1000, 90)
    ]


def test_a_file_is_read_as_a_whole(tmp_path):
    """All rows of a file, or nothing if it has none."""
    for path in (
        write_jsonl(tmp_path / "in.jsonl", rows_of(range(3))),
        write_parquet(tmp_path / "in.parquet", rows_of(range(3)), group_size=2),
    ):
        assert [request.query for request in read_file(path, text_field=None)] == ["q0", "q1", "q2"]
    assert list(read_file(write_jsonl(tmp_path / "empty.jsonl", []), text_field=None)) == []
    assert list(read_file(write_parquet(tmp_path / "empty.parquet", []), text_field=None)) == []


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    """The message contains the command to install it."""
    path = write_parquet(tmp_path / "in.parquet", rows_of(range(2)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=re.escape("Parquet needs pyarrow: pip install 'marcorank[ray]'")):
        split([path], 2)
