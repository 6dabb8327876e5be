"""From a data source to a table of quantile forecasts, with a forecaster that repeats the last value."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from toto_pipeline.data.snapshot import Snapshot, take_snapshot
from toto_pipeline.errors import ConfigError, DataError
from toto_pipeline.forecasting import contexts, forecast, write_forecasts
from toto_pipeline.home import Home
from toto_pipeline.settings.data import DataSettings, PreparationSettings


class LastValue:
    """The last value that is there, one more for each higher quantile."""

    name = "last value"

    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        last = np.array([[one[np.isfinite(one)][-1] for one in series] for series in history_BVT])
        return np.broadcast_to(last[..., None, None] + np.arange(9), (*last.shape, horizon, 9)).astype(np.float32)


def snapshot_of(tmp_path: Path, lines: list[str], **settings: str) -> Snapshot:
    source = tmp_path / "data.csv"
    source.write_text("\n".join(["timestamp,a,b", *lines]) + "\n")
    return take_snapshot(DataSettings(source=str(source), **settings), Home(tmp_path / "home").prepare())  # type: ignore[arg-type]


HOURLY = [f"2024-03-01T{hour:02d}:00:00,{hour}.5,{100 - hour}" for hour in range(10)]


def preparation(**settings: int | str) -> PreparationSettings:
    return PreparationSettings(**{"context_length": 8, "horizon": 3, **settings})  # type: ignore[arg-type]


def test_every_series_is_forecast_behind_its_end(tmp_path: Path) -> None:
    found = {one.id: one for one in forecast(snapshot_of(tmp_path, HOURLY), LastValue(), preparation(), batch_size=1)}
    assert set(found) == {"a", "b"}
    assert [str(time) for time in found["a"].timestamps] == [f"2024-03-01T{hour}:00:00.000000" for hour in (10, 11, 12)]
    assert found["a"].quantiles_HQ[0].tolist() == [9.5 + k for k in range(9)]
    assert found["b"].quantiles_HQ[2, 0] == 91


def test_a_gap_is_missing_and_the_context_is_cut(tmp_path: Path) -> None:
    lines = [line for line in HOURLY if "T07" not in line]
    (first, *_) = sorted(contexts(snapshot_of(tmp_path, lines), preparation()), key=lambda one: one.id)
    assert np.isnan(first.values_VT[0]).tolist() == [False] * 5 + [True, False, False]


def test_months_follow_the_calendar(tmp_path: Path) -> None:
    lines = [f"2023-{month:02d}-01,{month},{month * 2}" for month in range(1, 13)]
    one = next(forecast(snapshot_of(tmp_path, lines), LastValue(), preparation()))
    assert [str(time)[:10] for time in one.timestamps] == ["2024-01-01", "2024-02-01", "2024-03-01"]


def test_a_timestamp_off_the_grid_is_named_or_averaged(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path, [*HOURLY[:5], "2024-03-01T04:20:00,7,7", *HOURLY[5:]])
    with pytest.raises(DataError, match=r"2024-03-01T04:20:00.* preparation\.irregular=mean"):
        list(contexts(snapshot, preparation(frequency="h")))
    (first, *_) = sorted(contexts(snapshot, preparation(frequency="h", irregular="mean")), key=lambda one: one.id)
    assert first.values_VT[0].tolist() == [2.5, 3.5, 5.75, 5.5, 6.5, 7.5, 8.5, 9.5]


@pytest.mark.parametrize("name", ["out.csv", "deeper/out.parquet"])
def test_the_table_is_long_with_a_column_a_quantile(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    count = write_forecasts(forecast(snapshot_of(tmp_path, HOURLY), LastValue(), preparation()), path)
    rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else list(csv.DictReader(path.open()))
    assert count == 2
    assert len(rows) == 6
    assert list(rows[0]) == ["id", "variate", "timestamp", *(f"0.{k}" for k in range(1, 10))]
    assert {float(row["0.1"]) for row in rows} == {9.5, 91.0}
    assert list(path.parent.glob(".tmp-*")) == []


def test_a_table_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    snapshot = snapshot_of(tmp_path, [*HOURLY, "2024-03-01T09:30:00,1,1"])
    with pytest.raises(DataError):
        write_forecasts(forecast(snapshot, LastValue(), preparation(frequency="h")), path)
    assert path.read_text() == "old"
    assert list(tmp_path.glob(".tmp-*")) == []


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        write_forecasts(iter(()), tmp_path / "out.xlsx")
