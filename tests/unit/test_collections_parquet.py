"""Columns of ranked rows."""

from __future__ import annotations

import base64
import datetime as dt
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marcorank.collections import parquet
from marcorank.collections.requests import request_of
from marcorank.errors import InvalidInputError

ADDED = {
    "index": pa.int64(),
    "rank": pa.int64(),
    "score": pa.float64(),
    "logit": pa.float64(),
    "truncated": pa.bool_(),
    "span": pa.list_(pa.int64()),
    "unknown_tokens": pa.int64(),
}


def requests_of(*rows):
    return [request_of(row, "row", None) for row in rows]


def schema_of(columns):
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(parquet.answer_columns(columns))))


def test_columns_of_the_input_stay_as_they_are(tmp_path):
    """Types are kept, passages become results with the fields of a ranking, and conflicting names are renamed."""
    of_passage = pa.struct([("id", pa.int32()), ("text", pa.string()), ("score", pa.float32())])
    of_input = pa.schema(
        [("day", pa.date32()), ("query", pa.large_string()), ("passages", pa.list_(of_passage)), ("model", pa.int8())]
    )
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist([], schema=of_input), path)
    result = pa.struct([("id", pa.int32()), ("text", pa.string()), ("input_score", pa.float32()), *ADDED.items()])
    assert schema_of([parquet.columns_of_file(path)]) == pa.schema(
        [
            ("day", pa.date32()),
            ("query", pa.large_string()),
            ("input_model", pa.int8()),
            ("model", pa.string()),
            ("query_truncated", pa.bool_()),
            ("results", pa.list_(result)),
        ]
    )


def test_columns_of_json_hold_all_rows():
    """Columns unify fields that only some rows have, integers and floats, texts and objects, and empty lists."""
    rows = requests_of(
        {"query": "a", "passages": []},
        {"query": "b", "passages": ["x"], "n": 1},
        {"query": "c", "passages": [{"text": "y", "meta": {"page": 2}}], "n": 1.5},
    )
    more = (
        requests_of({"query": "d", "passages": [], "n": None, "m": 1}),
        requests_of({"query": "e", "passages": [], "m": 0.5}),
    )
    found = schema_of([parquet.columns_of_requests(some) for some in (rows, *more, requests_of())])
    assert found.field("m").type == pa.float64()
    assert found.field("n").type == pa.float64()
    of_result = found.field("results").type.value_type
    assert of_result == pa.struct([("text", pa.string()), ("meta", pa.struct([("page", pa.int64())])), *ADDED.items()])


def test_columns_without_any_passage_are_those_of_texts():
    """An input whose lists are all empty has the columns of passages with a text."""
    found = schema_of([parquet.columns_of_requests(requests_of({"query": "a", "passages": []}))])
    assert found.field("results").type == pa.list_(pa.struct([("text", pa.string()), *ADDED.items()]))


def test_values_that_no_column_holds_are_an_error():
    """The error suggests JSONL, in one batch of rows, across batches, and across files."""
    number, text = {"query": "a", "passages": [], "n": 1}, {"query": "a", "passages": [], "n": "one"}
    message = "field whose values cannot be a column of Parquet: .* Write JSONL"
    with pytest.raises(InvalidInputError, match=message):
        parquet.columns_of_requests(requests_of(number, text))
    with pytest.raises(InvalidInputError, match=message):
        parquet.columns_of_requests(requests_of(*[number] * 300, text))
    with pytest.raises(InvalidInputError, match=message):
        parquet.answer_columns([parquet.columns_of_requests(requests_of(row)) for row in (number, text)])


def test_written_rows_come_back():
    """Missing fields are null."""
    columns = parquet.answer_columns([pa.schema([("day", pa.date32()), ("query", pa.string())])])
    file = io.BytesIO()
    row = {"day": dt.date(2024, 2, 29), "query": "q", "model": "m", "query_truncated": None}
    parquet.write_rows(file, [row, {"query": "r"}], columns)
    found = pq.read_table(pa.BufferReader(file.getvalue())).to_pylist()
    assert found == [
        row | {"results": None},
        {"day": None, "query": "r", "model": None, "query_truncated": None, "results": None},
    ]
