"""Every repair policy: the data it makes, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toto_pipeline.home import Home
from toto_pipeline_tests.data.helpers import long, prepare, read, snap, times, wide, write, write_text


@pytest.mark.parametrize(("policy", "expected"), [("first", 2.0), ("last", 3.0), ("mean", 2.5)])
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_duplicates(source: Path, home: Home, policy: str, expected: float, name: str) -> None:
    frame = wide(columns=("a",))
    frame.loc[3, "timestamp"] = frame.loc[2, "timestamp"]
    file = write(frame, source / name)
    taken = snap(source, home, duplicates=policy)
    series = read(taken)["a"]
    assert list(series["timestamp"]) == list(times(60).delete(3))
    assert list(series["target"]) == [0.0, 1.0, expected, *range(4, 60)]
    assert taken.manifest.n_gaps == 1
    (sentence,) = taken.manifest.repairs
    assert "1 rows" in sentence
    assert str(file) in sentence
    assert "'a'" in sentence


def test_mean_of_duplicates_is_over_the_values_that_are_there(source: Path, home: Home) -> None:
    text = "timestamp,a\n2024-01-01,1\n2024-01-01,\n2024-01-02,\n2024-01-02,\n2024-01-03,7\n"
    write_text(text, source / "x.csv")
    values = read(snap(source, home, duplicates="mean"))["a"]["target"]
    np.testing.assert_array_equal(values, [1, np.nan, 7])


@pytest.mark.parametrize("make", [wide, long])
def test_unsorted(source: Path, home: Home, make: object) -> None:
    frame = wide() if make is wide else long()
    write(frame, source / "x.csv")
    straight = snap(source, home)
    write(frame.sample(frac=1, random_state=3), source / "x.csv")
    mended = snap(source, home, unsorted="sort")
    assert mended.fingerprint == straight.fingerprint
    assert "sorted by time" in mended.manifest.repairs[0]


def test_unsorted_and_duplicate(source: Path, home: Home) -> None:
    frame = wide(columns=("a",))
    again = frame.iloc[[5]].assign(a=99.0)
    write(pd.concat([frame.iloc[::-1], again]), source / "x.csv")
    values = read(snap(source, home, unsorted="sort", duplicates="last"))["a"]["target"]
    assert list(values) == [0, 1, 2, 3, 4, 99, *range(6, 60)]


@pytest.mark.parametrize(("policy", "ids"), [("drop", ["a"]), ("keep", ["a", "b"])])
def test_constant_series(source: Path, home: Home, policy: str, ids: list[str]) -> None:
    write(wide().assign(b=7.5), source / "x.csv")
    taken = snap(source, home, constant_series=policy)
    assert sorted(read(taken)) == ids
    assert ["constant" in sentence for sentence in taken.manifest.repairs] == [True] * (2 - len(ids))


def test_series_without_values(source: Path, home: Home) -> None:
    write(wide().assign(b=np.nan), source / "x.csv")
    taken = snap(source, home, missing_series="drop")
    assert list(read(taken)) == ["a"]
    assert "'b'" in taken.manifest.repairs[0]


def test_a_series_that_is_left_out_again_has_not_vanished(source: Path, home: Home) -> None:
    write(wide(), source / "x.csv")
    snap(source, home)
    write(wide().assign(b=np.nan), source / "x.csv")
    assert snap(source, home, missing_series="drop").manifest.n_series == 1


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_infinities(source: Path, home: Home, name: str) -> None:
    frame = wide(columns=("a",))
    frame.loc[[8, 9], "a"] = [np.inf, -np.inf]
    write(frame, source / name)
    taken = snap(source, home, infinities="missing")
    assert list(np.flatnonzero(read(taken)["a"]["target"].isna())) == [8, 9]
    assert taken.manifest.n_missing == 2
    assert "2 infinite values" in taken.manifest.repairs[0]


def test_vanished(source: Path, home: Home) -> None:
    write(wide(), source / "x.csv")
    snap(source, home)
    write(wide(columns=("a",)), source / "x.csv")
    assert list(read(snap(source, home, vanished="accept"))) == ["a"]
    assert snap(source, home).manifest.n_series == 1


def test_irregular(source: Path, home: Home) -> None:
    frame = wide(columns=("a",))
    frame.loc[20, "timestamp"] += np.timedelta64(7, "m")
    frame.loc[30, "timestamp"] -= np.timedelta64(7, "m")
    write(frame, source / "x.csv")
    data = prepare(snap(source, home), home, irregular="mean")
    expected = np.arange(60, dtype=np.float32)
    expected[29], expected[30] = 29.5, np.nan
    np.testing.assert_array_equal(data.window(0, 60, 60)[0], expected)
    assert data.manifest.n_missing == 1
    assert "2 rows off the grid of h" in data.manifest.repairs[0]


def test_averaged_to_a_longer_step(source: Path, home: Home) -> None:
    write(wide(n=24 * 60, columns=("a",)), source / "x.csv")
    data = prepare(snap(source, home), home, irregular="mean", frequency="D")
    assert data.manifest.frequency == "D"
    assert data.manifest.season == 7
    np.testing.assert_array_equal(data.window(0, 60, 60)[0], np.arange(60) * 24 + 11.5)


def test_short_series(source: Path, home: Home) -> None:
    frame = wide()
    frame.loc[:45, "b"] = np.nan
    write(frame, source / "x.csv")
    data = prepare(snap(source, home), home, short_series="drop")
    assert data.ids == ["a"]
    (sentence,) = data.manifest.dropped
    assert "'b'" in sentence
    assert "20 steps" in sentence


def test_time_zones_become_utc(source: Path, home: Home) -> None:
    zoned = wide(columns=("a",))
    zoned["timestamp"] = zoned["timestamp"].dt.tz_localize("Asia/Tokyo")
    write(zoned, source / "x.parquet")
    taken = snap(source, home)
    assert taken.manifest.start == "2023-12-31T15:00:00"
    assert taken.manifest.repairs == ["Timestamps in Asia/Tokyo are kept in UTC."]
    write(zoned, source / "x.parquet").unlink()
    write(zoned, source / "x.csv")
    assert snap(source, home).fingerprint == taken.fingerprint


def test_summer_time_in_text(source: Path, home: Home) -> None:
    zoned = wide(n=72, columns=("a",), start="2024-03-30", freq="h")
    zoned["timestamp"] = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    write(zoned, source / "x.csv")
    taken = snap(source, home)
    assert (taken.manifest.start, taken.manifest.frequency, taken.manifest.n_gaps) == ("2024-03-29T23:00:00", "h", 0)
    assert "+01:00 and +02:00" in taken.manifest.repairs[0]
