"""What readers hand on: one series at a time, with the place in the source that each value came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]

TARGET = "target"
"""Name of the variate of a series that has only one."""


@dataclass(frozen=True)
class Series:
    """One series as it was read.

    Attributes:
        timestamps: (n,) microseconds since 1970, UTC where the source knows a time zone.
        values: (variates, n) float32; NaN marks a missing value.
        rows: (n,) data row of each step in `file`, counted from 1.
        columns: the column of each variate in `file`.
    """

    id: str
    file: str
    timestamps: Int64Array
    values: Float32Array
    rows: Int64Array
    columns: tuple[str, ...]
    timestamp_column: str

    def take(self, kept: Int64Array) -> Series:
        """The steps at these positions, in this order."""
        return self.replace(self.timestamps[kept], self.values[:, kept], self.rows[kept])

    def replace(self, timestamps: Int64Array, values: Float32Array, rows: Int64Array) -> Series:
        return replace(self, timestamps=timestamps, values=values, rows=rows)


def iso(microseconds: int) -> str:
    """A timestamp as people write it: 2016-01-11T17:00:00, with fractions only where there are any."""
    return str(np.datetime64(int(microseconds), "us")).removesuffix(".000000")


def group_mean(values: Float32Array, starts: Int64Array) -> Float32Array:
    """Means of the runs of columns that begin at `starts`, over the values that are there; NaN where none is."""
    present = ~np.isnan(values)
    sums = np.add.reduceat(np.where(present, values, 0).astype(np.float64), starts, axis=1)
    counts = np.add.reduceat(present.astype(np.int64), starts, axis=1)
    means: Float32Array = (sums / np.where(counts, counts, np.nan)).astype(np.float32)
    return means
