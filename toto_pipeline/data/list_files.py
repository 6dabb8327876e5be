"""Parquet files with a series a row: timestamps and values are lists, as fev reads them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TIMESTAMP = pa.timestamp("us")
GROUP_VALUES = 2_000_000
"""Values of a row group, about; what a reader must hold at once."""


class ListFileWriter:
    """Writes row groups in another thread, one behind: encoding one overlaps with making the next.

    Raises:
        OSError: from `write` or `close`, for the row group before.
    """

    def __init__(self, file: IO[bytes], schema: Any) -> None:
        self._writer = pq.ParquetWriter(
            file,
            schema,
            use_dictionary=False,
            compression="lz4",
            column_encoding={"timestamp.list.element": "DELTA_BINARY_PACKED"},
            write_statistics=False,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet-writer")
        self._waiting: Future[None] | None = None

    def write(self, table: Any) -> None:
        self._wait()
        self._waiting = self._thread.submit(self._writer.write_table, table)

    def close(self) -> None:
        self._wait()
        self._writer.close()
        self._thread.shutdown()

    def abandon(self) -> None:
        """Let go of a file that is not wanted any more; nothing happens after `close`."""
        self._thread.shutdown()
        with suppress(OSError, ValueError):
            self._writer.close()
        self._writer.is_open = False  # Or it would try to write the footer once more when it is collected.

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.result()
            self._waiting = None


def list_fields(variates: Sequence[str]) -> list[Any]:
    """The fields `timestamp` and one for each variate."""
    values = [pa.field(name, pa.list_(pa.field("element", pa.float32()))) for name in variates]
    return [pa.field("timestamp", pa.list_(pa.field("element", TIMESTAMP))), *values]


def list_arrays(timestamps: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> list[Any]:
    """Arrays for `list_fields`: a list a series.

    Args:
        timestamps: (n,) microseconds of each series.
        values: (variates, n) of each series.
    """
    edges = pa.array(np.concatenate(([0], np.cumsum([len(one) for one in timestamps]))).astype(np.int32))
    times = pa.array(np.concatenate(timestamps)).view(TIMESTAMP)
    flat = [np.concatenate([one[variate] for one in values]) for variate in range(len(values[0]))]
    return [pa.ListArray.from_arrays(edges, part) for part in (times, *map(pa.array, flat))]
