"""Queries and passages from files and standard input."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import subprocess
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


def test_an_error_about_half_a_surrogate_pair_can_be_printed(write):
    """JSON can hold what UTF-8 lacks; the message that shows it must not fail itself."""
    with pytest.raises(InvalidInputError, match="line 1 is ") as caught:
        passages(write('"\\ud83c"'))
    assert str(caught.value).encode()


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
    with pytest.raises(InvalidInputError, match=r"short.txt.gz' cannot be decompressed: Compressed file ended"):
        passages(str(short))
    plain = tmp_path / "plain.gz"
    plain.write_text("text")
    with pytest.raises(InvalidInputError, match=r"plain.gz' cannot be decompressed: Not a gzipped file"):
        passages(str(plain))


ARRAY = [{"id": 7, "text": "one"}, {"id": 8, "text": "two\nlines"}]


@pytest.mark.parametrize("name", ["in.json", "in.jsonl", "in", "-"])
@pytest.mark.parametrize(
    "content",
    [json.dumps(ARRAY), json.dumps(ARRAY, indent=2), "\n\n".join(json.dumps(row, indent=1) for row in ARRAY)],
    ids=["one line", "formatted", "formatted objects"],
)
def test_formatted_json_is_read(write, monkeypatch, name, content):
    """An array, or objects over several lines as jq writes them, hold the same passages as JSONL."""
    if name == "-":
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
    found = passages(name if name == "-" else write(content, name))
    assert [passage.fields for passage in found.passages] == ARRAY
    requests = [{"query": "q", "passages": ["a"], "n": 1}, {"query": "r", "passages": [], "n": 2}]
    read = read_requests(write(json.dumps(requests, indent=1), "requests.json"), text_field=None)
    assert [(request.query, request.fields["n"]) for request in read] == [("q", 1), ("r", 2)]


def test_an_array_may_hold_texts(write):
    """A list of texts is the simplest file of passages; a text file that begins with a bracket stays one."""
    assert texts(write('["a", "b"]', "in.json")) == ["a", "b"]
    assert texts(write("[1] Smith, 2004\n[2] Jones", "in")) == ["[1] Smith, 2004", "[2] Jones"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"text": "a"}\n{"text": "b" "c"}', "line 2 is not JSON: Expecting ',' delimiter at column 14."),
        ('\n[\n {"text": "a"},\n {"text" "b"}\n]', "line 4 is not JSON: Expecting ':' delimiter at column 10."),
        ('[\n {"text": "a"},\n', "line 2 is not JSON: .* at column 1[678]."),
        ('[{"text": "a"},\n 5]', "row 2 is 5; expected an object with a text field."),
        ('[{"text": "a"},\n {"id": 5}]', "row 2 has the fields 'id'; expected 'text' or"),
        ('[{"text": "a"}] trailing', "line 1 is not JSON: Expecting value at column 17."),
    ],
)
def test_errors_have_the_position_in_the_file(write, content, complaint):
    """Line and column are those of the file, and rows of an array count from 1."""
    with pytest.raises(InvalidInputError, match=rf"in.jsonl', {complaint}"):
        passages(write(content))


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_nothing_has_no_passages(tmp_path, ending):
    """Compressed without any content, a file is as empty as one of no bytes."""
    (tmp_path / "in").write_bytes(COMPRESS[ending](b""))
    (tmp_path / f"in{ending}").write_bytes(b"")
    assert texts(str(tmp_path / "in")) == texts(str(tmp_path / f"in{ending}")) == []


def test_python_may_lack_a_compression(tmp_path, monkeypatch):
    """Some builds of Python have no lzma or bz2: marcorank runs, and files that need them are named."""
    without = "import sys; sys.modules.update(dict.fromkeys(['lzma', '_lzma', 'bz2', '_bz2'])); import marcorank.cli"
    subprocess.run([sys.executable, "-c", without], check=True)  # noqa: S603
    (tmp_path / "in.txt").write_bytes(lzma.compress(b"one"))
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(InvalidInputError, match=r"has no module 'lzma', which files named \.xz need"):
        texts(str(tmp_path / "in.txt"))


@pytest.mark.parametrize("name", ["in.jsonl{}", "in{}", "in.jsonl", "-"])
@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_sources_are_read_whatever_their_name(tmp_path, monkeypatch, name, ending):
    """The content decides, also on standard input."""
    data = COMPRESS[ending](b'{"text": "one"}\n{"text": "two"}\n')
    if name == "-":
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    else:
        name = str(tmp_path / name.format(ending))
        Path(name).write_bytes(data)
    assert texts(name) == ["one", "two"]
    if name != "-":
        Path(name).write_bytes(data[:-5])
        with pytest.raises(InvalidInputError, match=rf"{name}' cannot be decompressed: .* Is it damaged"):
            passages(name)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x28\xb5\x2f\xfd\x04\x00", "is compressed with zstd; decompress it first"),
        (b"\x04\x22\x4d\x18", "is compressed with LZ4; decompress it first"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive; extract it first"),
        (b"PK\x03\x04\x14\x00", "is a zip archive or an Office document; extract it, or save the table as CSV"),
        (
            b"PAR1\x15\x04",
            "is Parquet, which only `marcorank rerank --input` reads, from files named .parquet; rename it to",
        ),
        ("ü".encode("utf-16"), "is UTF-16; save the file as UTF-8"),
    ],
)
def test_other_kinds_of_files_are_named_as_what_they_are(write, monkeypatch, data, complaint):
    """Nobody has to guess why a file is "not UTF-8"."""
    with pytest.raises(InvalidInputError, match=f"in.txt' {complaint}"):
        passages(write(data, "in.txt"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    with pytest.raises(InvalidInputError, match=f"Standard input {complaint}"):
        passages("-")


TABLE = 'id;body;text\n1;no;"a ""quoted"", text\nover two lines"\n\n2;no;b\n'


@pytest.mark.parametrize(
    ("name", "content", "text_field", "expected"),
    [
        ("in.csv", "id,text\n1,one\n2,two\n", None, [{"id": "1", "text": "one"}, {"id": "2", "text": "two"}]),
        ("in.csv.gz", "body\none\n", "body", [{"body": "one"}]),
        (
            "in.csv",
            TABLE,
            None,
            [
                {"id": "1", "body": "no", "text": 'a "quoted", text\nover two lines'},
                {"id": "2", "body": "no", "text": "b"},
            ],
        ),
        ("in.tsv", 'id\ttext\n1\t"one\n', None, [{"id": "1", "text": '"one'}]),
        ("in.tsv", "7\ta first text\n8\tb\n", None, [{"id": "7", "text": "a first text"}, {"id": "8", "text": "b"}]),
        ("-", "id,text\r\n1,one\r\n", None, [{"id": "1", "text": "one"}]),
        ("-", "n\tbody\n1\tone\n", "body", [{"n": "1", "body": "one"}]),
        ("in", "content,n\none,1\n", None, [{"content": "one", "n": "1"}]),
        ("in.csv", f"text,n\n{'x' * 200_000},1\n", None, [{"text": "x" * 200_000, "n": "1"}]),
    ],
)
def test_the_rows_of_a_table_are_passages(write, monkeypatch, name, content, text_field, expected):
    """CSV and TSV have a header, and a column with the text; its name is one of the usual ones, or --text-field."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
    found = passages(name if name == "-" else write(content, name), text_field=text_field)
    assert [passage.fields for passage in found.passages] == expected
    assert {passage.text for passage in found.passages} <= {cell for row in expected for cell in row.values()}


@pytest.mark.parametrize(
    ("content", "text_field", "complaint"),
    [
        (
            "id,body\n1,one\n",
            None,
            r'line 1 has the columns \["id", "body"\]; expected a header with .text. .*--text-field',
        ),
        (
            "id,text\n1,one\n",
            "body",
            r"line 1: --text-field is 'body'; expected one of the columns \[.id., .text.\]\.$",
        ),
        ('id,text\n1,"two\nlines"\n\n2,a,b\n', None, 'line 5 has 3 columns .*; expected 2: ..id", "text"'),
        ("text,n,n\n1,2,3\n", None, "line 1 has two columns named 'n'; expected distinct names"),
        ('id,text\n1,"never\nclosed\n', None, "line 2 is not CSV: unexpected end of data"),
    ],
)
def test_a_broken_table_is_named(write, content, text_field, complaint):
    """The error has the line at which the row begins, what was found and what to do."""
    with pytest.raises(InvalidInputError, match=f"in.csv', {complaint}"):
        passages(write(content, "in.csv"), text_field=text_field)


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("id,body\n1,one\n2,two, or more\n", 2),
        ("a b\tc\nd e\tf\n", 2),
        (",title,body\n0,x,one\n", 3),
        ("7,The city of Berlin lies on the river Spree.\n8,Another.\n", 2),
        ('"The city of Berlin, on the river","x"\n"Another","y"\n', 2),
        ("\tindented()\n\tcode()\n", 0),
        ("1,000 people\n2 million, too, live there\n", 0),
        ("Hello, world\nand, more\n", 0),
        ("one\ntwo\n", 0),
        ("a,b", 0),
        ("x" * 200_000 + ",\nb", 0),
    ],
)
def test_lines_that_look_like_a_table_are_counted(write, content, columns):
    """They are ranked as lines, which the command mentions; a format that is given is taken at its word."""
    assert passages(write(content, "in")).columns == columns
    assert passages(write(content, "in"), input_format="lines").columns == 0
    with pytest.raises(InvalidInputError, match="was read as lines of text, which have no field 'nothing'"):
        passages(write(content, "in"), text_field="nothing")


@pytest.mark.parametrize("content", ['[\n {"text": "a"},\n', '[{"text": "a"}', '["a",\n"b"'])
def test_a_broken_array_is_not_taken_for_lines(write, content):
    """An array in a pipe that was cut off is an error, and its lines are not ranked."""
    with pytest.raises(InvalidInputError, match="is not JSON"):
        passages(write(content, "in"))


@pytest.mark.parametrize("content", ["[]", " [\n]\n"])
def test_an_empty_array_has_no_passages(write, content):
    """A search without results is not an error."""
    assert texts(write(content, "in.json")) == texts(write(content, "in")) == []


def test_a_header_of_two_names_is_no_passage(write):
    """TSV of an id and a text may have no header; but a header must not be ranked."""
    assert texts(write("d7\tone\nd8\ttwo\n", "in.tsv")) == ["one", "two"]
    with pytest.raises(InvalidInputError, match=r'line 1 has the columns \["id", "body"\]; expected a header with'):
        texts(write("id\tbody\n7\tone\n", "in.tsv"))


def test_a_missing_file_is_named(tmp_path):
    """The path that was asked for is in the message."""
    with pytest.raises(InvalidInputError, match=r"'none.txt' cannot be read: No such file or directory"):
        passages("none.txt")
    with pytest.raises(InvalidInputError, match="cannot be read: Is a directory"):
        passages(str(tmp_path))
