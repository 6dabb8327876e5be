"""Training data: values on the grid, splits in time, windows, and the file for evaluation."""

from __future__ import annotations

import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.data.snapshot import take_snapshot
from toto_pipeline.data.training_data import TrainingData, picture, prepare_training_data
from toto_pipeline.errors import DataError
from toto_pipeline.home import Home
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline_tests.data.helpers import SMALL, long, prepare, snap, times, tree, wide, write

CONTEXT, HORIZON = SMALL["context_length"], SMALL["horizon"]


def test_sample(home: Home) -> None:
    taken = take_snapshot(DataSettings(), home)
    data = prepare_training_data(taken, PreparationSettings(), home)
    manifest = data.manifest
    assert (manifest.season, manifest.frequency, manifest.n_series) == (144, "10min", 26)
    assert set(data.lengths) == {19_735}
    assert set(data.lengths - data.validation_ends) == {5 * 96}
    assert set(data.validation_ends - data.train_ends) == {2 * 96}
    assert manifest.test_start == "2016-05-24T10:10:00"
    assert manifest.end == "2016-05-27T18:00:00"
    assert data.ids == sorted(data.ids)
    assert picture(data).startswith(b"\x89PNG")


@pytest.fixture
def data(source: Path, home: Home) -> TrainingData:
    """Two series of 60 hourly steps."""
    write(wide(), source / "x.csv")
    return prepare(snap(source, home), home)


def test_windows(data: TrainingData) -> None:
    nan = np.nan
    np.testing.assert_array_equal(data.window(0, 5, 3), [[2, 3, 4]])
    np.testing.assert_array_equal(data.window(1, 2, 4), [[nan, nan, 100, 101]])
    np.testing.assert_array_equal(data.window(0, 61, 3), [[58, 59, nan]])
    np.testing.assert_array_equal(data.window(0, 0, 2), [[nan, nan]])
    np.testing.assert_array_equal(data.window(0, 99, 2), [[nan, nan]])
    assert data.window(0, 5, 3).dtype == np.float32


def test_a_window_is_a_copy(data: TrainingData) -> None:
    data.window(0, 5, 3)[:] = 7
    np.testing.assert_array_equal(data.window(0, 5, 3), [[2, 3, 4]])


def test_the_map_is_read_on_demand(data: TrainingData) -> None:
    assert isinstance(data.values(0).base, np.memmap)


def test_pickles_as_its_folder(data: TrainingData) -> None:
    data.window(0, 5, 3)
    text = pickle.dumps(data)
    assert len(text) < 1000
    again = pickle.loads(text)  # noqa: S301
    assert again.folder == data.folder
    np.testing.assert_array_equal(again.window(1, 60, 10), data.window(1, 60, 10))


def test_gaps_are_nan_and_edges_without_values_are_cut(source: Path, home: Home) -> None:
    frame = wide(columns=("a", "b")).drop(index=[10, 11, 40])
    frame.loc[:2, "b"] = np.nan
    frame.loc[55:, "b"] = np.nan
    frame.loc[30, "a"] = np.nan
    write(frame, source / "x.csv")
    data = prepare(snap(source, home), home)
    assert list(data.lengths) == [60, 52]
    assert data.starts[1] == np.datetime64("2024-01-01T03:00")
    assert list(np.flatnonzero(np.isnan(data.values(0)[0]))) == [10, 11, 30, 40]
    assert list(np.flatnonzero(np.isnan(data.values(1)[0]))) == [7, 8, 37]
    assert data.manifest.n_missing == 7


def test_a_series_that_ends_early_has_fewer_test_windows(source: Path, home: Home) -> None:
    frame = wide()
    frame.loc[57:, "b"] = np.nan
    write(frame, source / "x.csv")
    data = prepare(snap(source, home), home)
    assert list(data.lengths - data.validation_ends) == [8, 5]
    assert "'b'" in data.manifest.dropped[0]
    assert "fewer than 2 test windows" in data.manifest.dropped[0]


def test_one_odd_short_series_does_not_move_the_cuts(source: Path, home: Home) -> None:
    odd = pd.DataFrame({"item_id": "odd", "timestamp": times(5, start="2030-01-01"), "target": range(5)})
    write(pd.concat([long(), odd]), source / "x.csv")
    data = prepare(snap(source, home), home, short_series="drop")
    assert data.ids == ["a", "b"]
    assert data.manifest.end == "2024-01-03T11:00:00"


def test_nothing_left(source: Path, home: Home) -> None:
    write(wide(n=20), source / "x.csv")
    with pytest.raises(DataError, match="20 steps"):
        prepare(snap(source, home), home, short_series="drop")


def test_same_settings_same_folder(source: Path, home: Home, data: TrainingData) -> None:
    before = tree(home.training_data)
    marks = {path: path.stat().st_mtime_ns for path in home.training_data.rglob("*")}
    again = prepare(snap(source, home), home)
    assert again.folder == data.folder == home.training_data / data.fingerprint
    assert tree(home.training_data) == before
    assert {path: path.stat().st_mtime_ns for path in home.training_data.rglob("*")} == marks
    assert prepare(snap(source, home), home, horizon=5).fingerprint != data.fingerprint


def test_content_does_not_depend_on_the_order_of_series(source: Path, tmp_path: Path) -> None:
    contents = []
    for number, ids in enumerate((("a", "b", "c"), ("c", "a", "b"))):
        home = Home(tmp_path / f"home{number}").prepare()
        write(wide(columns=("a", "b", "c"))[["timestamp", *ids]], source / "x.csv")
        data = prepare(snap(source, home), home)
        contents.append({name: content for name, content in tree(data.folder).items() if name != "items.parquet"})
        assert data.ids == ["a", "b", "c"]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("frequency", ["MS", "ME", "QS-FEB", "QE-DEC", "W-WED", "B", "D", "YS-JAN"])
def test_calendar_frequencies(source: Path, home: Home, frequency: str) -> None:
    frame = wide(columns=("a",), freq=frequency).drop(index=[20])
    write(frame, source / "x.csv")
    data = prepare(snap(source, home), home)
    grid = times(60, freq=frequency)
    assert data.manifest.frequency == frequency
    assert list(pd.DatetimeIndex(data.timestamps(0))) == list(grid)
    assert list(np.flatnonzero(np.isnan(data.values(0)[0]))) == [20]
    assert data.manifest.test_start == grid[52].isoformat()
    assert data.manifest.validation_start == grid[48].isoformat()
    assert (int(data.train_ends[0]), int(data.validation_ends[0])) == (48, 52)


def test_evaluation_file(source: Path, home: Home) -> None:
    frame = wide().drop(index=[10])
    write(frame, source / "x.csv")
    data = prepare(snap(source, home), home)
    table = pd.read_parquet(data.evaluation_file)
    assert list(table) == ["id", "timestamp", "target"]
    assert list(table["id"]) == data.ids
    for number in range(2):
        np.testing.assert_array_equal(table["target"][number], data.values(number)[0])
        np.testing.assert_array_equal(table["timestamp"][number], data.timestamps(number))
    assert np.isnan(table["target"][0][10])


def test_variates(source: Path, home: Home) -> None:
    names = ("Open", "High", "Low", "Close")
    write(wide(columns=names), source / "ACME.csv")
    data = prepare(snap(source, home), home)
    assert data.window(0, 3, 2).tolist() == [[1, 2], [101, 102], [201, 202], [301, 302]]
    assert list(pd.read_parquet(data.evaluation_file)) == ["id", "timestamp", *names]


def test_evaluation_file_opens_in_fev_form(data: TrainingData) -> None:
    import pyarrow.parquet as pq

    schema = pq.read_schema(data.evaluation_file)
    assert [str(field.type) for field in schema] == [
        "string",
        "list<element: timestamp[us]>",
        "list<element: float>",
    ]


@st.composite
def ragged(draw: st.DrawFn) -> pd.DataFrame:
    """Series that start and end at different hours, with rows missing inside."""
    parts = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        first, n = draw(st.integers(0, 30)), draw(st.integers(50, 90))
        random = np.random.default_rng(draw(st.integers(0, 9)))
        kept = np.sort(random.permutation(n)[: max(45, n - draw(st.integers(0, 10)))])
        stamps = times(n + first)[first:][kept]
        parts.append(pd.DataFrame({"item_id": name, "timestamp": stamps, "target": random.normal(size=len(kept))}))
    return pd.concat(parts, ignore_index=True)


@given(ragged(), st.integers(-5, 130), st.integers(1, 140))
@settings(max_examples=20, deadline=None)
def test_windows_and_splits_of_ragged_series(frame: pd.DataFrame, end: int, length: int) -> None:
    with TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home").prepare()
        taken = snap(write(frame, Path(folder) / "x.parquet"), home)
        data = prepare(taken, home, short_series="drop", context_length=8, frequency="h")
        assert_spans_do_not_overlap(data)
        for number, name in enumerate(data.ids):
            regular = frame[frame["item_id"] == name].set_index("timestamp")["target"].astype("float32").asfreq("h")
            assert list(regular.index) == list(pd.DatetimeIndex(data.timestamps(number)))
            expected = regular.reset_index(drop=True).reindex(range(end - length, end)).to_numpy()
            np.testing.assert_array_equal(data.window(number, end, length)[0], expected)


def assert_spans_do_not_overlap(data: TrainingData) -> None:
    train, validation, test = [], [], []
    for number in range(len(data.ids)):
        stamps = data.timestamps(number)
        first, second = data.train_ends[number], data.validation_ends[number]
        train.append(stamps[:first])
        validation.append(stamps[first:second])
        test.append(stamps[second:])
    spans = [np.concatenate(one) for one in (train, validation, test)]
    assert sum(map(len, spans)) == data.lengths.sum()
    assert spans[0].max() < spans[1].min()
    assert spans[1].max() < spans[2].min()
    assert spans[1].min() >= np.datetime64(data.manifest.validation_start)
    assert spans[2].min() >= np.datetime64(data.manifest.test_start)
    assert spans[2].max() == np.datetime64(data.manifest.end)


def test_splits_of_series_on_different_minutes(source: Path, home: Home) -> None:
    """Series may be a fraction of a step apart; the cuts are still points in time."""
    shifted = long(ids=("b",))
    shifted["timestamp"] += np.timedelta64(25, "m")
    write(pd.concat([long(ids=("a",)), shifted]), source / "x.csv")
    data = prepare(snap(source, home), home)
    assert_spans_do_not_overlap(data)
    assert data.manifest.end == "2024-01-03T11:25:00"


def test_real_series_cut_ragged(home: Home, tmp_path: Path) -> None:
    from toto_pipeline.data.sources import SAMPLE_FILE

    frame = pd.read_parquet(SAMPLE_FILE).iloc[:3000]
    for number, name in enumerate(frame.columns[1:]):
        frame.loc[: 13 * number, name] = np.nan
        frame.loc[2999 - 7 * (number % 5) :, name] = np.nan
    data = prepare(snap(write(frame.iloc[:-1], tmp_path / "x.parquet"), home), home, horizon=12, context_length=96)
    assert len(set(data.lengths)) > 5
    assert_spans_do_not_overlap(data)


def test_opening_what_is_no_training_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json"):
        TrainingData.open(tmp_path)
