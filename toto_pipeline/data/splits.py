"""Where training, validation and test part: two points in time, the same for all series.

    train_start ...... | validation_start ...... | test_start ...... end
                         validation_windows        test_windows   (horizons)

Counted back from the newest timestamp of all series, so that what is training data of one series never lies in the
future of another's test data. A series that ends early has fewer windows to test on, or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toto_pipeline.data.frequency import Grid
from toto_pipeline.data.series import Int64Array
from toto_pipeline.settings.data import PreparationSettings


@dataclass(frozen=True)
class Cuts:
    """Timestamps in microseconds: the first step of the validation span, that of the test span, and the last step."""

    validation_start: int
    test_start: int
    end: int


@dataclass(frozen=True)
class Splits:
    """Indexes (n_series,) within each series: train is [0, train_ends), test is [validation_ends, lengths)."""

    train_ends: Int64Array
    validation_ends: Int64Array


def find_cuts(end: int, grid: Grid, settings: PreparationSettings) -> Cuts:
    """The cuts before the newest timestamp `end`, which lies on the grid."""
    grid = grid.shifted(end)
    last = int(grid.ordinal(np.array([end]))[0])
    test = last + 1 - settings.test_windows * settings.horizon
    validation = test - settings.validation_windows * settings.horizon
    first_validation, first_test = grid.time(np.array([validation, test])).tolist()
    return Cuts(first_validation, first_test, end)


def split(starts: Int64Array, lengths: Int64Array, grid: Grid, cuts: Cuts) -> Splits:
    """Where the cuts fall in each series. `starts` (n_series,) are microseconds on the series' grids."""
    return Splits(
        np.clip(_steps_before(cuts.validation_start, starts, grid), 0, lengths),
        np.clip(_steps_before(cuts.test_start, starts, grid), 0, lengths),
    )


def _steps_before(cut: int, starts: Int64Array, grid: Grid) -> Int64Array:
    if grid.kind == "fixed":
        return -((starts - cut) // grid.step)
    steps: Int64Array = grid.ordinal(np.array([cut])) - grid.ordinal(starts)
    return steps
