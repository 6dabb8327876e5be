"""The faults of a series: refused by name, or mended as the settings say and put on record.

timestamps go backwards -> same timestamp twice -> infinities -> no value at all -> never changes
"""

from __future__ import annotations

import numpy as np

from toto_pipeline.data.repairs import Repairs
from toto_pipeline.data.series import Float32Array, Series, group_mean, iso
from toto_pipeline.errors import DataError
from toto_pipeline.settings.data import DataSettings

_KEPT = {"first": "their first row", "last": "their last row", "mean": "their mean"}


def mend(series: Series, settings: DataSettings, repairs: Repairs) -> Series | None:
    """The series without faults, or None where the settings leave it out.

    Raises:
        DataError: a fault that the settings do not allow to mend; names file, column and row, and the setting.
    """
    series = _sorted(series, settings, repairs)
    series = _unique(series, settings, repairs)
    series = _finite(series, settings, repairs)
    if not _has_values(series, settings, repairs) or not _changes(series, settings, repairs):
        return None
    return series


def _sorted(series: Series, settings: DataSettings, repairs: Repairs) -> Series:
    backwards = series.timestamps[1:] < series.timestamps[:-1]
    if not backwards.any():
        return series
    if settings.unsorted == "error":
        place = int(np.argmax(backwards)) + 1
        raise DataError(
            f"the timestamps of series {series.id!r} go backwards: {iso(series.timestamps[place])} after "
            f"{iso(series.timestamps[place - 1])}",
            expected="rows in the order of time",
            remedy="sort the rows, or set data.unsorted=sort",
            file=series.file,
            column=series.timestamp_column,
            row=int(series.rows[place]),
        )
    repairs.count("{series} in {file}: rows sorted by time.", series.file, series.id)
    return series.take(np.argsort(series.timestamps, kind="stable"))


def _unique(series: Series, settings: DataSettings, repairs: Repairs) -> Series:
    repeated = series.timestamps[1:] == series.timestamps[:-1]
    if not repeated.any():
        return series
    if settings.duplicates == "error":
        place = int(np.argmax(repeated)) + 1
        raise DataError(
            f"series {series.id!r} has the timestamp {iso(series.timestamps[place])} twice (also in row "
            f"{series.rows[place - 1]})",
            expected="one row a timestamp",
            remedy="delete one of the rows, or set data.duplicates=last (or first, or mean)",
            file=series.file,
            column=series.timestamp_column,
            row=int(series.rows[place]),
        )
    sentence = "{series} in {file}: {count} rows with a repeated timestamp merged, keeping "
    repairs.count(f"{sentence}{_KEPT[settings.duplicates]}.", series.file, series.id, int(repeated.sum()))
    starts = np.flatnonzero(np.concatenate(([True], ~repeated)))
    if settings.duplicates == "first":
        return series.take(starts)
    if settings.duplicates == "last":
        return series.take(np.append(starts[1:], len(series.timestamps)) - 1)
    return series.replace(series.timestamps[starts], group_mean(series.values, starts), series.rows[starts])


def _finite(series: Series, settings: DataSettings, repairs: Repairs) -> Series:
    infinite = np.isinf(series.values)
    if not infinite.any():
        return series
    if settings.infinities == "error":
        variate, place = (int(index) for index in np.argwhere(infinite)[0])
        raise DataError(
            f"the value of series {series.id!r} at {iso(series.timestamps[place])} is infinite, or beyond 32 bits",
            expected="finite numbers up to 3.4e38",
            remedy="correct the value, or set data.infinities=missing",
            file=series.file,
            column=series.columns[variate],
            row=int(series.rows[place]),
        )
    repairs.count(
        "{series} in {file}: {count} infinite values marked as missing.", series.file, series.id, int(infinite.sum())
    )
    return series.replace(series.timestamps, np.where(infinite, np.float32(np.nan), series.values), series.rows)


def _has_values(series: Series, settings: DataSettings, repairs: Repairs) -> bool:
    column = next((c for c, values in zip(series.columns, series.values, strict=True) if _is_empty(values)), None)
    if column is None:
        return True
    if settings.missing_series == "error":
        raise DataError(
            f"series {series.id!r} has no value in its {len(series.timestamps)} rows",
            expected="at least one value",
            remedy="leave the column out with data.value_columns, or set data.missing_series=drop",
            file=series.file,
            column=column,
        )
    repairs.count("{series} in {file}: left out, without a single value.", series.file, series.id)
    return False


def _changes(series: Series, settings: DataSettings, repairs: Repairs) -> bool:
    if settings.constant_series == "keep":
        return True
    constant = (c for c, values in zip(series.columns, series.values, strict=True) if _is_constant(values))
    column = next(constant, None)
    if column is None:
        return True
    if settings.constant_series == "error":
        values = series.values[series.columns.index(column)]
        raise DataError(
            f"series {series.id!r} is constant: always {values[~np.isnan(values)][0]:g} in its {len(values)} rows",
            expected="a series that changes",
            remedy="leave it out with data.constant_series=drop, or keep it with data.constant_series=keep",
            file=series.file,
            column=column,
        )
    repairs.count("{series} in {file}: left out, constant.", series.file, series.id)
    return False


def _is_empty(values: Float32Array) -> bool:
    return (len(values) == 0 or bool(np.isnan(values[0]))) and bool(np.isnan(values).all())


def _is_constant(values: Float32Array) -> bool:
    if len(values) < 2 or (values[0] != values[-1] and not np.isnan(values[0] + values[-1])):
        return False
    present = values[~np.isnan(values)]
    return len(present) > 1 and bool((present == present[0]).all())
