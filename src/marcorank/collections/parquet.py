"""Rows in and out of Parquet. pyarrow is imported when the first file is read or written.

Without pyarrow the functions raise `MissingExtraError`. They raise `InvalidInputError` for a file that is not Parquet
and for values that no column can hold.
"""

from __future__ import annotations

import base64
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from marcorank._files import extended
from marcorank._text import message_of
from marcorank.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import pyarrow as pa  # type: ignore[import-untyped]

    from marcorank.collections.requests import Request

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20


def count_rows(path: str | os.PathLike[str]) -> int:
    """Return the number of rows of a file."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def read_rows(path: str | os.PathLike[str], start: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file from index `start` to its end."""
    with _opened(path) as file:
        group = first = 0
        while group < file.num_row_groups and first + file.metadata.row_group(group).num_rows <= start:
            first += file.metadata.row_group(group).num_rows
            group += 1
        groups = range(group, file.num_row_groups)
        skip = start - first
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, use_threads=False):
            yield from batch.slice(skip).to_pylist()
            skip = max(skip - batch.num_rows, 0)


def columns_of_file(path: str | os.PathLike[str]) -> pa.Schema:
    """Return the columns of a file; a list of texts as passages counts as a list of structs with a text."""
    pa = _pyarrow()
    with _opened(path) as file:
        columns = file.schema_arrow
    index = columns.get_field_index("passages")
    of_passage = getattr(columns.field(index).type, "value_type", None) if index >= 0 else None
    if of_passage is not None and not pa.types.is_struct(of_passage):
        columns = columns.set(index, pa.field("passages", pa.list_(pa.struct([("text", of_passage)]))))
    return columns


def columns_of_requests(requests: Iterable[Request]) -> pa.Schema:
    """Return columns that can hold these rows, as `columns_of_file` does for a file."""
    pa = _pyarrow()
    columns = pa.schema([])
    rows = (request.fields | {"passages": [passage.fields for passage in request.passages]} for request in requests)
    while chunk := list(islice(rows, _BATCH_ROWS)):
        with _column_errors(pa):
            columns = pa.unify_schemas([columns, pa.schema(list(pa.array(chunk).type))], promote_options="permissive")
    return columns


def answer_columns(inputs: Iterable[pa.Schema], *, options: Collection[str] = ()) -> str:
    """Return the columns of ranked rows as a text for `write_rows`.

    Args:
        inputs: The columns of each input file.
        options: Fields of a result that it has because of options, such as `blended_score`.
    """
    pa = _pyarrow()
    with _column_errors(pa):
        of_input = pa.unify_schemas([pa.schema([]), *inputs], promote_options="permissive")
        columns = _answer_schema(pa, of_input, options)
        # What no file can hold, such as a struct without fields, is found now and not with the first shard.
        pa.parquet.write_table(columns.empty_table(), pa.BufferOutputStream())
        return base64.b64encode(columns.serialize()).decode()


def write_rows(file: BinaryIO, rows: Sequence[dict[str, Any]], columns: str) -> None:
    """Write rows as a Parquet file.

    Args:
        file: File to write to.
        rows: The rows.
        columns: The result of `answer_columns`.
    """
    pa = _pyarrow()
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(columns)))
    with _column_errors(pa):
        pa.parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), file, compression="zstd")


def _answer_schema(pa: Any, of_input: pa.Schema, options: Collection[str]) -> pa.Schema:
    fields = {field.name: field.type for field in of_input}
    passages = fields.pop("passages", None)
    of_passage = passages.value_type if passages is not None else pa.null()
    # No passage at all: results are empty, and say so in the columns that they would have.
    of_text = {"text": pa.string()} if pa.types.is_null(of_passage) else {part.name: part.type for part in of_passage}
    of_options = {"scored_by": pa.string(), "skim_logit": pa.float64(), "blended_score": pa.float64()}
    of_result = extended(
        of_text,
        {
            "index": pa.int64(),
            "rank": pa.int64(),
            "score": pa.float64(),
            "logit": pa.float64(),
            "truncated": pa.bool_(),
            "span": pa.list_(pa.int64()),
            "unknown_tokens": pa.int64(),
            **of_options,
        },
    )
    for name in of_options.keys() - set(options):
        del of_result[name]
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


@contextmanager
def _column_errors(pa: Any) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise InvalidInputError(
            f"The rows have a field whose values cannot be a column of Parquet: {_first_line(error)}. Write JSONL, "
            "which keeps any values."
        ) from error


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'marcorank[ray]'") from error
    return pa


def _first_line(error: BaseException) -> str:
    return (message_of(error).splitlines() or [type(error).__name__])[0].rstrip(".")
