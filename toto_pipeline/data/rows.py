"""Rows of a long layout, and how they become series without holding a file in memory.

A file's rows are gathered until `BUDGET` values are in memory. A file that has no more is grouped there and then. A
bigger one is first dealt out into part files by series, each within the budget, and each is then grouped by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toto_pipeline.data.series import Float32Array, Int64Array

BUDGET = 6_000_000
"""Values that a reader holds in memory at once."""

MOST_PARTS = 256


@dataclass(frozen=True)
class Rows:
    """Rows of a file: the number of each one's series, its time, its values (variates, n), its place in the file."""

    codes: np.ndarray
    timestamps: Int64Array
    values: Float32Array
    rows: Int64Array

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, kept: np.ndarray) -> Rows:
        return Rows(self.codes[kept], self.timestamps[kept], self.values[:, kept], self.rows[kept])

    def slice(self, start: int, stop: int) -> Rows:
        return Rows(
            self.codes[start:stop], self.timestamps[start:stop], self.values[:, start:stop], self.rows[start:stop]
        )


def join(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.timestamps for part in parts]),
        np.concatenate([part.values for part in parts], axis=1),
        np.concatenate([part.rows for part in parts]),
    )


def group(rows: Rows) -> Iterator[Rows]:
    """The rows of each series, in their order in the file; series in the order of their codes' first appearance."""
    if not len(rows):
        return
    breaks = np.flatnonzero(rows.codes[1:] != rows.codes[:-1]) + 1
    if len(breaks) + 1 != np.count_nonzero(np.bincount(rows.codes)):
        rows = rows.take(np.argsort(rows.codes, kind="stable"))
        breaks = np.flatnonzero(rows.codes[1:] != rows.codes[:-1]) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    for start, stop in itertools.pairwise(edges):
        yield rows.slice(start, stop)


class Spill:
    """Part files on disk, each with the rows of some of the series."""

    def __init__(self, folder: Path, parts: int, variates: int) -> None:
        self._fields = ["code", "timestamp", "row", *(f"v{number}" for number in range(variates))]
        types = [pa.int32(), pa.int64(), pa.int64(), *[pa.float32()] * variates]
        self._schema = pa.schema(list(zip(self._fields, types, strict=True)))
        self._paths = [folder / f"part-{number}.arrow" for number in range(parts)]
        self._streams = [path.open("wb", buffering=1 << 18) for path in self._paths]
        self._writers = [pa.ipc.new_stream(stream, self._schema) for stream in self._streams]

    def add(self, rows: Rows) -> None:
        part = rows.codes % len(self._paths)
        order = np.argsort(part.astype(np.int16), kind="stable")
        edges = np.searchsorted(part[order], np.arange(len(self._paths) + 1))
        rows = rows.take(order)
        for writer, start, stop in zip(self._writers, edges[:-1], edges[1:], strict=True):
            if start < stop:
                writer.write_batch(self._batch(rows.slice(int(start), int(stop))))

    def read(self) -> Iterator[Rows]:
        """The rows of each part; its file is deleted behind it."""
        for writer, stream in zip(self._writers, self._streams, strict=True):
            writer.close()
            stream.close()
        for path in self._paths:
            with path.open("rb") as stream, pa.ipc.open_stream(stream) as reader:
                parts = [self._rows(batch) for batch in reader]
            path.unlink()
            if parts:
                yield join(parts)

    def close(self) -> None:
        for stream, path in zip(self._streams, self._paths, strict=True):
            if not stream.closed:
                stream.close()
            path.unlink(missing_ok=True)

    def _batch(self, rows: Rows) -> Any:
        arrays = [rows.codes, rows.timestamps, rows.rows, *rows.values]
        return pa.record_batch([pa.array(np.ascontiguousarray(array)) for array in arrays], schema=self._schema)

    def _rows(self, batch: Any) -> Rows:
        codes, timestamps, rows, *values = (column.to_numpy() for column in batch.columns)
        return Rows(codes, timestamps, np.stack(values), rows)
