"""Parquet files: what columns they have, their rows in batches, and their columns in groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toto_pipeline.data.csv_files import looks_numeric
from toto_pipeline.data.sources import ColumnKind, Columns, SourceFile, reading
from toto_pipeline.errors import DataError

_SNIFFED_ROWS = 50


def inspect_parquet(file: SourceFile) -> Columns:
    """Columns of a Parquet file. Text columns whose first rows are numbers count as numbers.

    Raises:
        DataError: the file is not Parquet, has no rows, or names a column twice.
    """
    with open_parquet(file) as parquet:
        schema = parquet.schema_arrow
        if parquet.metadata.num_rows == 0:
            raise DataError(
                "the file has no rows",
                expected="data rows",
                remedy="fill the file, or take it out of data.source",
                file=file.name,
            )
        if len(set(schema.names)) < len(schema.names):
            twice = next(name for name in schema.names if schema.names.count(name) > 1)
            raise DataError(
                f"column {twice!r} is there twice",
                expected="a different name for each column",
                remedy="rename one of the columns",
                file=file.name,
                column=twice,
            )
        kinds = {field.name: _kind(field.type) for field in schema}
        texts = [name for name, kind in kinds.items() if kind == "text"]
        if texts:
            head = next(parquet.iter_batches(_SNIFFED_ROWS, columns=texts))
            for name in texts:
                values = [value for value in head.column(name).to_pylist() if value is not None]
                if values and all(isinstance(value, str) for value in values) and looks_numeric(values):
                    kinds[name] = "number"
    return Columns(file, kinds, {field.name: str(field.type) for field in schema})


def parquet_batches(file: SourceFile, used: Sequence[str], ids: str | None, rows: int) -> Iterator[Any]:
    """Record batches of at most `rows` rows of the `used` columns, ids as a dictionary where they are text."""
    with open_parquet(file, read_dictionary=[ids] if ids else None) as parquet:
        yield from parquet.iter_batches(rows, columns=list(used))


@contextmanager
def open_parquet(file: SourceFile, read_dictionary: list[str] | None = None) -> Iterator[Any]:
    """The open file.

    Raises:
        DataError: it is not a Parquet file, or it is damaged.
    """
    with reading(file):
        if file.bytes == 0:
            raise DataError(
                "the file is empty",
                expected="a Parquet file",
                remedy="write the file again, or take it out of data.source",
                file=file.name,
            )
        try:
            with pq.ParquetFile(file.path, read_dictionary=read_dictionary, pre_buffer=False) as parquet:
                yield parquet
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"the file is not Parquet, or it is damaged ({str(error).splitlines()[0]})",
                expected="a whole Parquet file",
                remedy="write the file again, give it the suffix of what it is, or take it out of data.source",
                file=file.name,
            ) from error


def _kind(type_: Any) -> ColumnKind:
    types = pa.types
    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    if types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_) or types.is_boolean(type_):
        return "number"
    if types.is_timestamp(type_) or types.is_date(type_):
        return "timestamp"
    if types.is_string(type_) or types.is_large_string(type_):
        return "text"
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return "list"
    return "other"
