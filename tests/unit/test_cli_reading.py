"""Queries and passages from files and standard input."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from marcorank.cli.reading import read_passages, read_requests
from marcorank.errors import InvalidInputError


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def write_file(content, name="in.jsonl"):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write_file


def passages(source, *, input_format="auto", text_field=None):
    return read_passages(source, input_format=input_format, text_field=text_field)


def texts(source, **options):
    return [passage.text for passage in passages(source, **options).passages]


@pytest.mark.parametrize("name", ["in.txt", "in.txt.gz", "in", "in.log"])
def test_lines_are_passages(write, name):
    """A line is a passage as it stands; blank lines are left out and counted."""
    found = passages(write("one \r\n\n  two\n \t\nthree", name))
    assert [passage.text for passage in found.passages] == ["one ", "  two", "three"]
    assert found.blank_lines == 2


@pytest.mark.parametrize("name", ["in.jsonl", "in.ndjson", "in.JSONL", "in.jsonl.gz", "in"])
def test_rows_keep_all_their_fields(write, name):
    """A row of JSONL is a passage; all its fields come along, and blank lines are nothing."""
    rows = [{"id": 7, "text": "one", "tags": ["a"]}, {"text": ""}]
    found = passages(write("\n" + "\n\n".join(map(json.dumps, rows)) + "\n", name))
    assert [passage.fields for passage in found.passages] == rows
    assert [passage.text for passage in found.passages] == ["one", ""]
    assert found.blank_lines == 0


def test_the_first_known_text_field_counts(write):
    """A row needs no option if it names its text in a usual way."""
    rows = [{"content": "c", "text": "t"}, {"content": "c", "passage": "p"}, {"page_content": "d"}, {"content": "c"}]
    assert texts(write("\n".join(map(json.dumps, rows)))) == ["t", "p", "d", "c"]


def test_a_named_text_field_is_the_only_one(write):
    """--text-field wins over the usual names."""
    assert texts(write('{"text": "no", "body": "yes"}'), text_field="body") == ["yes"]


def test_the_format_that_is_given_wins(write):
    """--input-format is stronger than the file's ending and its first character."""
    assert texts(write('{"text": "one"}', "in.txt"), input_format="jsonl") == ["one"]
    assert texts(write('{"text": "one"}', "in.jsonl"), input_format="lines") == ['{"text": "one"}']


def test_a_text_file_may_begin_with_a_brace(write):
    """Only a source without an ending is judged by its first character."""
    assert texts(write("{x} is a set", "in.txt")) == ["{x} is a set"]


@pytest.mark.parametrize(("content", "expected"), [(b'  {"text": "a"}', ["a"]), (b"a\nb", ["a", "b"]), (b"", [])])
def test_standard_input_is_judged_by_its_first_character(monkeypatch, content, expected):
    """A pipe has no name: a brace means JSONL, anything else lines."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert texts("-") == expected


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(write, name):
    """Files of Windows programs read like others."""
    content = "straße" if name == "in.txt" else '{"text": "straße"}'
    assert texts(write(b"\xef\xbb\xbf" + content.encode(), name)) == ["straße"]


def test_requests_hold_texts_or_objects(write):
    """A request's passages may be bare texts or rows with fields; its other fields come along."""
    row = {"id": 1, "query": "q", "passages": ["a", {"text": "b", "doc": 2}]}
    (request,) = read_requests(write(json.dumps(row)), text_field=None)
    assert request.query == "q"
    assert [passage.text for passage in request.passages] == ["a", "b"]
    assert [passage.fields for passage in request.passages] == [{"text": "a"}, {"text": "b", "doc": 2}]
    assert request.fields == {"id": 1, "query": "q"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", "line 2 is not JSON: Expecting property name"),
        ("[" * 100_000, "line 2 is not JSON: "),
        ('"text"', 'line 2 is "text"; expected an object with a text field'),
        ('{"id": 1, "title": "x"}', "line 2 has the fields 'id', 'title'; expected 'text' or .* --text-field"),
        ("{}", "line 2 has no fields; expected 'text' or"),
        ('{"text": null}', "line 2: 'text' is null; expected a text"),
        ('{"text": 3}', "line 2: 'text' is 3; expected a text"),
        ('{"query": "q", "passages": []}', "line 2 .* is read with --requests"),
    ],
)
def test_a_broken_row_is_named(write, line, complaint):
    """Whoever repairs a file of a million rows learns the file, the line and what is wrong there."""
    source = write(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(InvalidInputError, match=rf"^{re.escape(repr(source))}, {complaint}"):
        passages(source)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"passages": []}', "line 1 has no field 'query'; expected a row such as"),
        ('{"id": 1}', "line 1 has no field 'query' and no field 'passages'"),
        ('{"query": " ", "passages": []}', "line 1: 'query' is \" \"; expected a text that is not blank"),
        ('{"query": ["q"], "passages": []}', "line 1: 'query' is ..q..; expected a text"),
        ('{"query": "q", "passages": "a"}', "line 1: 'passages' is \"a\"; expected a list"),
        ('{"query": "q", "passages": ["a", 5]}', "line 1: passage 1 is 5; expected a text or an object"),
        ('{"query": "q", "passages": [{"text": 5}]}', "line 1: passage 0: 'text' is 5; expected a text"),
        ("[]", r"line 1 is \[\]; expected an object"),
    ],
)
def test_a_broken_request_is_named(write, line, complaint):
    """A complaint about a request says the line, and the passage if one is at fault."""
    with pytest.raises(InvalidInputError, match=complaint):
        list(read_requests(write(line), text_field=None))


@pytest.mark.parametrize("content", [b"fine\nnot \xff fine", "fine\n\xfc".encode("latin-1")])
def test_another_encoding_is_named(write, content):
    """A file that is not UTF-8 is refused with the line, rather than read wrongly."""
    with pytest.raises(InvalidInputError, match=r"line 2 is not UTF-8 \(byte 0xf[fc] at position \d\); save the file"):
        passages(write(content, "in.txt"))


def test_a_damaged_gzip_file_is_named(write, tmp_path):
    """A broken download of a .gz file and a wrongly named one end in one line."""
    whole = write("text\n" * 1000, "in.txt.gz")
    short = tmp_path / "short.txt.gz"
    short.write_bytes(Path(whole).read_bytes()[:-9])
    with pytest.raises(InvalidInputError, match=r"short.txt.gz' is damaged or not a gzip file: Compressed file ended"):
        passages(str(short))
    plain = tmp_path / "plain.gz"
    plain.write_text("text")
    with pytest.raises(InvalidInputError, match=r"plain.gz' is damaged or not a gzip file: Not a gzipped file"):
        passages(str(plain))


def test_a_json_array_is_not_taken_for_lines(write):
    """A .json file would be nonsense as lines of text: it is refused with the way out."""
    with pytest.raises(InvalidInputError, match=r"has the extension of JSON; expected JSONL .* --input-format"):
        passages(write('["a"]', "in.json"))


def test_a_missing_file_is_named(tmp_path):
    """The path that was asked for is in the message."""
    with pytest.raises(InvalidInputError, match=r"'none.txt' cannot be read: No such file or directory"):
        passages("none.txt")
    with pytest.raises(InvalidInputError, match="cannot be read: Is a directory"):
        passages(str(tmp_path))
