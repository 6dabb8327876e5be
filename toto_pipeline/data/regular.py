"""Series on the regular grid of their frequency. Steps without a row are NaN; nothing is filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from toto_pipeline.data.frequency import Grid
from toto_pipeline.data.series import Float32Array, Int64Array, group_mean

Policy = Literal["error", "mean"]


@dataclass(frozen=True)
class OffGridError(Exception):
    """The step at `place` (an index into the timestamps) does not lie on the grid."""

    place: int


def series_grid(grid: Grid, start: int, policy: Policy) -> Grid:
    """The grid of the series that starts at `start` (microseconds).

    Steps of fixed length begin where the series does. Where off-grid rows are averaged they begin at full steps since
    1970 (a Monday for weeks, or the day that the frequency names), so that one odd first row shifts nothing.
    """
    return grid.shifted(start) if policy == "error" else grid


def regularise(timestamps: Int64Array, values: Float32Array, grid: Grid, policy: Policy) -> tuple[Float32Array, int]:
    """Values on the grid from the first to the last timestamp, and how many rows were averaged or moved into a step.

    Args:
        timestamps: (n,) microseconds, increasing.
        values: (variates, n).

    Returns:
        (variates, steps) with NaN for steps that have no row; number of rows that were off the grid.

    Raises:
        OffGridError: a timestamp is off the grid, and the policy is `error`.
    """
    ordinals = grid.ordinal(timestamps)
    off = grid.time(ordinals) != timestamps
    n_off = int(np.count_nonzero(off))
    if n_off:
        if policy == "error":
            raise OffGridError(int(np.argmax(off)))
        starts = np.flatnonzero(np.diff(ordinals, prepend=ordinals[0] - 1))
        values, ordinals = group_mean(values, starts), ordinals[starts]
    steps = int(ordinals[-1] - ordinals[0]) + 1
    if steps == len(ordinals):
        return values, n_off
    whole = np.full((len(values), steps), np.nan, dtype=np.float32)
    whole[:, ordinals - ordinals[0]] = values
    return whole, n_off
