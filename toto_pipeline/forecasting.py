"""Forecasts of a data source with a released model.

    snapshot of the source  ->  of each series its last context, on a regular grid  ->  batches through the model
    ->  for each step ahead nine quantiles, with their timestamps

What is missing stays missing: a step without a row is NaN, which the model takes as unobserved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.checkpoints.store import TEMPORARY_PREFIX, write_file
from toto_pipeline.data.series import TARGET
from toto_pipeline.errors import ConfigError, DataError
from toto_pipeline.home import storage_errors
from toto_pipeline.models.forecaster import QUANTILES, Forecaster, pad_left

if TYPE_CHECKING:
    import pyarrow as pa

    from toto_pipeline.data.frequency import Grid
    from toto_pipeline.data.snapshot import Snapshot
    from toto_pipeline.settings.data import PreparationSettings

FORMATS = (".csv", ".parquet")
READ_AT_ONCE = 16
Times = NDArray[np.datetime64]


@dataclass(frozen=True)
class Context:
    """The end of a series on its grid. values_VT: NaN is missing; future: timestamps (H,) of the steps ahead."""

    id: str
    values_VT: NDArray[np.float32]
    future: Times


@dataclass(frozen=True)
class SeriesForecast:
    """Quantile forecasts of one variate: timestamps (H,), quantiles_HQ (H, 9) at `QUANTILES`.

    history_T: the steps before, as the model saw them; NaN is missing.
    """

    id: str
    variate: str
    timestamps: Times
    quantiles_HQ: NDArray[np.float32]
    history_T: NDArray[np.float32]


def forecast(
    snapshot: Snapshot,
    forecaster: Forecaster,
    preparation: PreparationSettings,
    *,
    batch_size: int = 64,
) -> Iterator[SeriesForecast]:
    """Forecast the `preparation.horizon` steps behind the end of every series, from at most `context_length` steps.

    Raises:
        DataError: the frequency is not known, or timestamps lie off the grid and are not to be averaged.
    """
    variates = snapshot.manifest.variates
    for batch in itertools.batched(contexts(snapshot, preparation), batch_size):
        length = max(context.values_VT.shape[1] for context in batch)
        history_BVT = pad_left([context.values_VT for context in batch], length)
        quantiles_BVHQ = forecaster.forecast(history_BVT, preparation.horizon)
        for context, quantiles_VHQ in zip(batch, quantiles_BVHQ, strict=True):
            for row, (variate, quantiles_HQ) in enumerate(zip(variates, quantiles_VHQ, strict=True)):
                yield SeriesForecast(context.id, variate, context.future, quantiles_HQ, context.values_VT[row])


def contexts(snapshot: Snapshot, preparation: PreparationSettings) -> Iterator[Context]:
    """The end of every series of the snapshot, on the grid of `preparation.frequency` or of the snapshot."""
    from toto_pipeline.data.frequency import parse_frequency

    alias = preparation.frequency or snapshot.manifest.frequency
    if alias is None:
        raise DataError(
            "no series has two rows, so the step between rows is not known",
            expected="series of many rows, or the frequency named",
            remedy="--set preparation.frequency=h (or 10min, D, ...)",
            file=snapshot.manifest.source,
        )
    grid = parse_frequency(alias)
    for identifier, timestamps, values_VN in read_series(snapshot):
        yield regular_context(identifier, timestamps, values_VN, grid, preparation, snapshot.manifest.source)


def regular_context(
    identifier: str,
    timestamps: NDArray[np.int64],
    values_VN: NDArray[np.float32],
    grid: Grid,
    preparation: PreparationSettings,
    source: str,
) -> Context:
    """The last `context_length` steps of a series, put on the grid as training data are.

    Raises:
        DataError: a timestamp lies off the grid, and `preparation.irregular` is `error`.
    """
    from toto_pipeline.data.regular import OffGridError, regularise, series_grid

    own = series_grid(grid, int(timestamps[0]), preparation.irregular)
    try:
        values_VT, _ = regularise(timestamps, values_VN, own, preparation.irregular)
    except OffGridError as error:
        raise DataError(
            f"series {identifier!r} has a timestamp off the regular grid of {grid.alias}: "
            f"{_datetimes(timestamps[error.place])}",
            expected=f"one row every {grid.alias}, gaps allowed",
            remedy="--set preparation.irregular=mean, or preparation.frequency to the true step",
            file=source,
        ) from None
    last = int(own.ordinal(timestamps[-1:])[0])
    future = own.time(np.arange(last + 1, last + 1 + preparation.horizon))
    return Context(identifier, values_VT[:, -preparation.context_length :], _datetimes(future))


def _datetimes(microseconds: NDArray[np.int64]) -> Times:
    return np.asarray(microseconds).astype("datetime64[us]")


def read_series(snapshot: Snapshot) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.float32]]]:
    """Id, timestamps (n,) in microseconds and values (V, n) of each series, a few in memory at a time."""
    import pyarrow.parquet as pq

    columns = ["id", "timestamp", *snapshot.manifest.variates]
    with pq.ParquetFile(snapshot.file, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(READ_AT_ONCE, columns=columns):
            identifiers = batch.column("id").to_pylist()
            lists = [batch.column(name) for name in columns[1:]]
            for row, identifier in enumerate(identifiers):
                times, *values = (one[row].values.to_numpy(zero_copy_only=False) for one in lists)
                microseconds = times.astype("datetime64[us]").astype(np.int64)
                yield identifier, microseconds, np.stack(values).astype(np.float32)


def draw(one: SeriesForecast) -> bytes:
    """A PNG of the history and the quantile forecasts of one series."""
    from toto_pipeline.events import figures
    from toto_pipeline.monitoring import drawing

    quantiles = dict(zip(QUANTILES, one.quantiles_HQ.T, strict=True))
    return drawing.draw(figures.forecast(title(one), one.history_T, [], quantiles))


def drawn(forecasts: Iterable[SeriesForecast], folder: Path, count: int = 12) -> Iterator[SeriesForecast]:
    """The forecasts as they come, the first `count` of them drawn into `folder` on the way: 01.png, 02.png, ...

    Raises:
        StorageError: the folder cannot be written.
    """
    for number, one in enumerate(forecasts, start=1):
        if number <= count:
            write_file(folder / f"{number:02d}.png", draw(one))
        yield one


def title(one: SeriesForecast) -> str:
    """The series, and its variate where it has more than one."""
    return one.id if one.variate == TARGET else f"{one.id}, {one.variate}"


def check_format(path: Path) -> None:
    """
    Raises:
        ConfigError: the file's name does not say one of the formats that can be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"--output {path}: the format is not known. Expected: a name ending in {' or '.join(FORMATS)}."
        )


def write_forecasts(forecasts: Iterator[SeriesForecast], path: Path) -> int:
    """Write rows of id, variate, timestamp and a column a quantile; the number of series written.

    The file appears when it is complete; one that was there before is replaced.

    Raises:
        ConfigError: neither CSV nor Parquet by its name.
        StorageError: the place cannot be written.
    """
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    check_format(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    written = 0
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = _schema()
        open_writer = pacsv.CSVWriter if path.suffix.lower() == ".csv" else pq.ParquetWriter
        try:
            with open_writer(str(temporary), schema) as writer:
                for one in forecasts:
                    writer.write_table(_table(one, schema))
                    written += 1
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return written


def _schema() -> pa.Schema:
    import pyarrow as pa

    levels = [(f"{level:.1f}", pa.float32()) for level in QUANTILES]
    return pa.schema([("id", pa.string()), ("variate", pa.string()), ("timestamp", pa.timestamp("us")), *levels])


def _table(one: SeriesForecast, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    count = len(one.timestamps)
    columns = [[one.id] * count, [one.variate] * count, one.timestamps, *one.quantiles_HQ.T]
    return pa.Table.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
