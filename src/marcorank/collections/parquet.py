"""Rows in and out of Parquet. pyarrow is imported when the first file is read or written."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from marcorank.collections.requests import extended
from marcorank.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa  # type: ignore[import-untyped]

    from marcorank.collections.requests import Request

_ROWS_AT_ONCE = 256
_BUFFER_BYTES = 1 << 20


def count_rows(path: str | os.PathLike[str]) -> int:
    """Return how many rows a file has.

    Raises:
        InvalidInputError: It cannot be read as Parquet.
        MissingExtraError: pyarrow is not installed.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def read_rows(path: str | os.PathLike[str], start: int, rows: int) -> Iterator[dict[str, Any]]:
    """Read so many rows, from one on that is counted from 0.

    Raises:
        InvalidInputError: It cannot be read as Parquet.
        MissingExtraError: pyarrow is not installed.
    """
    with _opened(path) as file:
        groups: list[int] = []
        first = end = 0
        for group in range(file.metadata.num_row_groups):
            begin, end = end, end + file.metadata.row_group(group).num_rows
            if end > start and begin < start + rows:
                first = first if groups else begin
                groups.append(group)
        skip = start - first
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, use_threads=False):
            wanted = batch.slice(skip, rows)
            yield from wanted.to_pylist()
            rows -= wanted.num_rows
            skip = max(skip - batch.num_rows, 0)
            if not rows:
                return


def columns_of_file(path: str | os.PathLike[str]) -> pa.Schema:
    """Return the columns of a file; texts instead of passages are passages with a text alone.

    Raises:
        InvalidInputError: It cannot be read as Parquet.
        MissingExtraError: pyarrow is not installed.
    """
    pa = _pyarrow()
    with _opened(path) as file:
        columns = file.schema_arrow
    index = columns.get_field_index("passages")
    of_passage = getattr(columns.field(index).type, "value_type", None) if index >= 0 else None
    if of_passage is not None and not pa.types.is_struct(of_passage):
        columns = columns.set(index, pa.field("passages", pa.list_(pa.struct([("text", of_passage)]))))
    return columns


def columns_of_requests(requests: Iterable[Request]) -> pa.Schema:
    """Return the columns that can hold these rows, as `columns_of_file` does.

    Raises:
        InvalidInputError: A field holds values that no column holds together.
        MissingExtraError: pyarrow is not installed.
    """
    pa = _pyarrow()
    columns = pa.schema([])
    rows = (request.fields | {"passages": [passage.fields for passage in request.passages]} for request in requests)
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        with _errors_of_columns(pa):
            columns = _joined(pa, [columns, pa.schema(list(pa.array(chunk).type))])
    return columns


def answer_columns(inputs: Iterable[pa.Schema]) -> bytes:
    """Return the columns of ranked rows, in a form that `write_rows` reads.

    Args:
        inputs: The columns of the rows before, of all files.

    Raises:
        InvalidInputError: The files have a column of the same name whose types do not go together.
        MissingExtraError: pyarrow is not installed.
    """
    pa = _pyarrow()
    with _errors_of_columns(pa):
        columns = _answer_schema(pa, _joined(pa, [pa.schema([]), *inputs]))
        # What no file can hold, such as a struct without fields, is found now and not with the first shard.
        pa.parquet.write_table(columns.empty_table(), pa.BufferOutputStream())
        return bytes(columns.serialize())


def write_rows(file: BinaryIO, rows: Sequence[dict[str, Any]], schema: bytes) -> None:
    """Write rows as a file of Parquet.

    Args:
        file: To write to.
        rows: What to write.
        schema: What `answer_columns` returned.

    Raises:
        InvalidInputError: A row holds what no column holds.
        MissingExtraError: pyarrow is not installed.
    """
    pa = _pyarrow()
    columns = pa.ipc.read_schema(pa.py_buffer(schema))
    with _errors_of_columns(pa):
        pa.parquet.write_table(pa.Table.from_pylist(list(rows), schema=columns), file, compression="zstd")


def to_text(schema: bytes) -> str:
    """Return columns as a text."""
    return base64.b64encode(schema).decode()


def from_text(text: str) -> bytes:
    """Return the columns that `to_text` made a text of."""
    return base64.b64decode(text)


def _answer_schema(pa: Any, of_input: pa.Schema) -> pa.Schema:
    fields = {field.name: field.type for field in of_input}
    passages = fields.pop("passages", None)
    of_passage = passages.value_type if passages is not None else pa.null()
    # No passage at all: results are empty, and say so in the columns that they would have.
    of_text = {"text": pa.string()} if pa.types.is_null(of_passage) else {part.name: part.type for part in of_passage}
    of_result = extended(
        of_text,
        {
            "index": pa.int64(),
            "rank": pa.int64(),
            "score": pa.float64(),
            "logit": pa.float64(),
            "truncated": pa.bool_(),
            "span": pa.list_(pa.int64()),
        },
    )
    added = {
        "model": pa.string(),
        "query_truncated": pa.bool_(),
        "results": pa.list_(pa.struct(list(of_result.items()))),
    }
    return pa.schema(list(extended(fields, added).items()))


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    pa = _pyarrow()
    try:
        # By default all of a row group is held for the first of its rows.
        with pa.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            yield file
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise InvalidInputError(f"{str(path)!r} cannot be read as Parquet: {_first_line(error)}.") from error


def _joined(pa: Any, columns: Sequence[pa.Schema]) -> pa.Schema:
    return pa.unify_schemas(columns, promote_options="permissive")


@contextmanager
def _errors_of_columns(pa: Any) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise InvalidInputError(
            f"The rows have a field whose values cannot be a column of Parquet: {_first_line(error)}. Write JSONL, "
            "which takes them as they are."
        ) from error


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'marcorank[ray]'") from error
    return pa


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
