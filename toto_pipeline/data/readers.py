"""Series out of files, one at a time, whatever the layout and the format.

No reader holds more than `rows.BUDGET` values at once, but for a single series, which must fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toto_pipeline.data import rows as row_store
from toto_pipeline.data.csv_files import csv_batches, inspect_csv
from toto_pipeline.data.layouts import Layout
from toto_pipeline.data.numbers import to_float32
from toto_pipeline.data.parquet_files import inspect_parquet, open_parquet, parquet_batches
from toto_pipeline.data.rows import Rows, Spill
from toto_pipeline.data.series import Int64Array, Series
from toto_pipeline.data.sources import Columns, SourceFile
from toto_pipeline.data.timestamps import Zones, to_microseconds
from toto_pipeline.errors import DataError

_BATCH_VALUES = 1 << 18
_BYTES_A_CSV_ROW = 16


@dataclass(frozen=True)
class Reader:
    """Reads the series of one file.

    Attributes:
        spill_folder: where a file that does not fit into memory is laid out anew.
        report: is told the share of the file that has been read.
    """

    columns: Columns
    layout: Layout
    zones: Zones
    spill_folder: Path
    report: Callable[[float], None]

    @property
    def file(self) -> SourceFile:
        return self.columns.file

    @property
    def _id(self) -> str:
        return self.layout.id or ""

    def series(self) -> Iterator[Series]:
        """The file's series.

        Raises:
            DataError: a value cannot be read; names file, column and row.
        """
        if self.layout.kind == "lists":
            return self._from_lists()
        if self.layout.kind == "long":
            return self._from_long_rows()
        if self.layout.kind == "symbols":
            return self._from_symbol()
        return self._from_wide_parquet() if self.file.format == "parquet" else self._from_wide_csv()

    def _from_long_rows(self) -> Iterator[Series]:
        codes: dict[str, int] = {}
        layout, variates = self.layout, len(self.layout.values)
        batches = (self._long_rows(batch, row, codes) for batch, row in self._batches())
        for rows in _gathered(batches, variates, self.spill_folder, self._parts(variates + 2)):
            names = list(codes)
            for one in row_store.group(rows):
                yield Series(
                    names[int(one.codes[0])],
                    self.file.name,
                    one.timestamps,
                    one.values,
                    one.rows,
                    layout.values,
                    layout.timestamp,
                )

    def _long_rows(self, batch: Any, first_row: int, codes: dict[str, int]) -> Rows:
        return Rows(
            _encode(batch.column(self._id), codes, self.file.name, self._id, first_row),
            *self._timestamps_and_values(batch, first_row),
            np.arange(first_row, first_row + batch.num_rows),
        )

    def _timestamps_and_values(self, batch: Any, first_row: int) -> tuple[Int64Array, Any]:
        timestamps = to_microseconds(
            batch.column(self.layout.timestamp), self.zones, self.file.name, self.layout.timestamp, first_row
        )
        values = [to_float32(batch.column(name), self.file.name, name, first_row) for name in self.layout.values]
        return timestamps, values[0][None] if len(values) == 1 else np.stack(values)

    def _from_symbol(self) -> Iterator[Series]:
        parts = [self._timestamps_and_values(batch, row) for batch, row in self._batches()]
        timestamps = np.concatenate([part[0] for part in parts])
        values = np.concatenate([part[1] for part in parts], axis=1)
        rows = np.arange(1, len(timestamps) + 1)
        yield Series(
            self.file.stem, self.file.name, timestamps, values, rows, self.layout.values, self.layout.timestamp
        )

    def _from_lists(self) -> Iterator[Series]:
        for batch, first_row in self._batches(rows=16):
            ids = batch.column(self._id).cast(pa.string()).to_pylist()
            for number, identifier in enumerate(ids):
                if identifier is None or identifier == "":
                    raise _missing_id(self.file.name, self._id, first_row + number)
                yield self._list_series(batch, number, first_row + number, identifier)

    def _list_series(self, batch: Any, number: int, row: int, identifier: str) -> Series:
        layout, file = self.layout, self.file.name
        lists = [batch.column(name)[number].values for name in (layout.timestamp, *layout.values)]
        lengths = [0 if one is None else len(one) for one in lists]
        if len(set(lengths)) > 1:
            raise DataError(
                f"series {identifier!r} has {lengths[0]} timestamps and {max(lengths[1:])} values",
                expected="lists of the same length in one row",
                remedy="correct the row",
                file=file,
                column=layout.values[0],
                row=row,
            )
        if not lengths[0]:
            lists = [pa.array([], pa.timestamp("us")), *[pa.array([], pa.float32())] * len(layout.values)]
        timestamps = to_microseconds(lists[0], self.zones, file, layout.timestamp, 1)
        values = np.stack([to_float32(one, file, name) for one, name in zip(lists[1:], layout.values, strict=True)])
        rows = np.full(len(timestamps), row)
        return Series(identifier, file, timestamps, values, rows, layout.values, layout.timestamp)

    def _from_wide_parquet(self) -> Iterator[Series]:
        layout, file = self.layout, self.file.name
        with open_parquet(self.file) as parquet:
            stamps = parquet.read([layout.timestamp]).column(layout.timestamp)
            timestamps = to_microseconds(stamps, self.zones, file, layout.timestamp, 1)
            rows = np.arange(1, len(timestamps) + 1)
            size = max(1, row_store.BUDGET // 2 // max(1, len(timestamps)))
            for start in range(0, len(layout.values), size):
                names = layout.values[start : start + size]
                table = parquet.read(list(names))
                self.report(start / len(layout.values))
                for name in names:
                    values = to_float32(table.column(name), file, name)[None]
                    yield Series(name, file, timestamps, values, rows, (name,), layout.timestamp)

    def _from_wide_csv(self) -> Iterator[Series]:
        layout = self.layout
        stamps: list[Int64Array] = []
        blocks = _WideBlocks(self.spill_folder, len(layout.values))
        try:
            for batch, row in self._batches():
                times, values = self._timestamps_and_values(batch, row)
                stamps.append(times)
                blocks.add(values)
            timestamps = np.concatenate(stamps)
            rows = np.arange(1, len(timestamps) + 1)
            for first, group in blocks.read():
                for name, values in zip(layout.values[first:], group, strict=False):
                    yield Series(name, self.file.name, timestamps, values[None], rows, (name,), layout.timestamp)
        finally:
            blocks.close()

    def _batches(self, rows: int | None = None) -> Iterator[tuple[Any, int]]:
        """Record batches of the columns in use, each with the number of its first row."""
        layout = self.layout
        used = [name for name in (layout.id, layout.timestamp, *layout.values) if name is not None]
        rows = rows or max(1, _BATCH_VALUES // len(used))
        if self.file.format == "csv":
            batches = csv_batches(self.columns, used, layout.values, layout.id)
        else:
            ids = layout.id if layout.id and self.columns.kinds[layout.id] == "text" else None
            batches = parquet_batches(self.file, used, ids, rows)
        first_row, total = 1, self._rows_expected()
        for batch in batches:
            yield batch, first_row
            first_row += batch.num_rows
            self.report(min(1.0, first_row / total))

    def _rows_expected(self) -> int:
        if self.file.format == "parquet":
            with open_parquet(self.file) as parquet:
                return max(1, int(parquet.metadata.num_rows))
        times = 8 if self.file.name.endswith(".gz") else 1
        return max(1, self.file.bytes * times // (_BYTES_A_CSV_ROW + 8 * len(self.columns.names)))

    def _parts(self, values_a_row: int) -> int:
        return max(2, min(row_store.MOST_PARTS, -(-2 * self._rows_expected() * values_a_row // row_store.BUDGET)))


class _WideBlocks:
    """Blocks of rows of a wide file, turned into columns: in memory while they fit, in part files when they do not."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._columns = columns
        self._folder = folder
        self._blocks: list[Any] = []
        self._rows = 0
        self._held = 0
        self._streams: list[Any] = []
        self._lengths: list[int] = []

    def add(self, block: Any) -> None:
        """`block` is (columns, rows)."""
        self._blocks.append(block)
        self._rows += block.shape[1]
        self._held += block.size
        if self._held > row_store.BUDGET:
            self._flush()

    def read(self) -> Iterator[tuple[int, Any]]:
        """(number of the first column, (columns, rows)) for groups of columns."""
        if not self._streams:
            if self._blocks:
                yield 0, np.concatenate(self._blocks, axis=1)
            return
        self._flush()
        size = self._group()
        for number, stream in enumerate(self._streams):
            stream.flush()
            stream.seek(0)
            first = number * size
            width = min(size, self._columns - first)
            whole = np.empty((width, self._rows), dtype=np.float32)
            start = 0
            for length in self._lengths:
                whole[:, start : start + length] = np.fromfile(stream, np.float32, width * length).reshape(width, -1)
                start += length
            yield first, whole

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def _group(self) -> int:
        return -(-self._columns // min(64, self._columns))

    def _flush(self) -> None:
        if not self._blocks:
            return
        block = np.concatenate(self._blocks, axis=1)
        size = self._group()
        if not self._streams:
            groups = -(-self._columns // size)
            self._streams = [TemporaryFile(dir=self._folder) for _ in range(groups)]  # noqa: SIM115
        for number, stream in enumerate(self._streams):
            stream.write(np.ascontiguousarray(block[number * size : (number + 1) * size]).data)
        self._lengths.append(block.shape[1])
        self._blocks, self._held = [], 0


def inspect(file: SourceFile) -> Columns:
    """The columns of a file of either format."""
    return inspect_csv(file) if file.format == "csv" else inspect_parquet(file)


def _gathered(batches: Iterator[Rows], variates: int, folder: Path, parts: int) -> Iterator[Rows]:
    """The rows of all batches such that those of a series are together: at once, or in parts through the disk."""
    held: list[Rows] = []
    count = 0
    spill: Spill | None = None
    try:
        for batch in batches:
            held.append(batch)
            count += len(batch) * (variates + 2)
            if count > row_store.BUDGET:
                spill = spill or Spill(folder, parts, variates)
                for one in held:
                    spill.add(one)
                held, count = [], 0
        if spill is None:
            if held:
                yield row_store.join(held)
            return
        for one in held:
            spill.add(one)
        del held
        yield from spill.read()
    finally:
        if spill is not None:
            spill.close()


def _encode(column: Any, codes: dict[str, int], file: str, name: str, first_row: int) -> np.ndarray:
    """The number of each row's series; ids not met before get the next number."""
    if column.null_count:
        raise _missing_id(file, name, first_row + int(np.argmax(pc.is_null(column).to_numpy(zero_copy_only=False))))
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    ids: Sequence[str] = column.dictionary.cast(pa.string()).to_pylist()
    indices = column.indices.to_numpy(zero_copy_only=False)
    if "" in ids:
        empty = indices == list(ids).index("")
        if empty.any():
            raise _missing_id(file, name, first_row + int(np.argmax(empty)))
    if len(ids) > len(indices):  # A file-wide dictionary: only number the ids that this batch has.
        present = np.unique(indices)
        numbers = np.zeros(len(ids), dtype=np.int32)
        numbers[present] = [codes.setdefault(ids[index], len(codes)) for index in present.tolist()]
    else:
        numbers = np.array([codes.setdefault(one, len(codes)) for one in ids], dtype=np.int32)
    encoded: np.ndarray = numbers[indices]
    return encoded


def _missing_id(file: str, column: str, row: int) -> DataError:
    return DataError(
        "the series id is missing",
        expected="a series id in every row",
        remedy="fill it in, or delete the row",
        file=file,
        column=column,
        row=row,
    )
