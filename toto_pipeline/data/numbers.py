"""Numbers of any column type as float32, NaN for missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toto_pipeline.data.csv_files import NULLS, not_a_number
from toto_pipeline.data.series import Float32Array
from toto_pipeline.errors import DataError


def to_float32(column: Any, file: str, name: str, first_row: int = 1) -> Float32Array:
    """The column's values. Numbers beyond the range of 32 bits become infinite, and are then refused as such.

    Raises:
        DataError: names the row of the first text that is not a number.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = _parse(array, file, name, first_row)
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if not _is_numeric(array.type):
        raise DataError(
            f"{array.type} values where numbers were looked for",
            expected="a column of numbers",
            remedy="convert the column, or name the columns to use with data.value_columns",
            file=file,
            column=name,
        )
    if array.type != pa.float32():
        array = array.cast(pa.float32(), safe=False)
    values: Float32Array = array.to_numpy(zero_copy_only=False)
    return values


def _parse(array: Any, file: str, name: str, first_row: int) -> Any:
    array = pc.if_else(pc.is_in(array, value_set=pa.array(NULLS, type=array.type)), pa.scalar(None, array.type), array)
    try:
        return array.cast(pa.float64())
    except pa.ArrowInvalid:
        for row, text in enumerate(array.to_pylist(), first_row):
            try:
                float(text if text is not None else "nan")
            except ValueError:
                raise not_a_number(file, name, row, text) from None
        return pa.array([float(text if text is not None else "nan") for text in array.to_pylist()])


def _is_numeric(type_: Any) -> bool:
    types = pa.types
    return bool(types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_))


def empty(variates: int) -> Float32Array:
    return np.empty((variates, 0), dtype=np.float32)
