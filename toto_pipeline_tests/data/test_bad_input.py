"""Every fault is refused by name, and leaves the snapshots as they were."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toto_pipeline.errors import DataError, StorageError
from toto_pipeline.home import Home
from toto_pipeline_tests.data.helpers import long, prepare, snap, tree, wide, write, write_text

HEAD = "timestamp,a,b\n"
ROWS = "2024-01-01 00:00:00,1,5\n2024-01-01 01:00:00,2,6\n2024-01-01 02:00:00,3,7\n"


@contextmanager
def refused(home: Home, *parts: str | Path, **settings: str) -> Iterator[None]:
    """A DataError whose message has all `parts`; the snapshots are the same before and after."""
    before = tree(home.snapshots)
    with pytest.raises(DataError) as caught:
        yield
    message = str(caught.value)
    assert [part for part in map(str, parts) if part not in message] == [], message
    assert "Expected: " in message
    assert "What to do: " in message
    assert tree(home.snapshots) == before
    assert list(home.snapshots.glob(".tmp-*")) == []


@pytest.fixture
def home_with_snapshot(home: Home, tmp_path: Path) -> Home:
    """A home that has a snapshot of something else, which must survive."""
    snap(write(wide(), tmp_path / "earlier" / "x.csv"), home)
    return home


def test_empty_folder(source: Path, home_with_snapshot: Home) -> None:
    with refused(home_with_snapshot, source, "empty", ".csv"):
        snap(source, home_with_snapshot)


def test_folder_without_data_files(source: Path, home: Home) -> None:
    write_text("hello", source / "notes.txt")
    with refused(home, source, "notes.txt", ".parquet"):
        snap(source, home)


def test_source_that_does_not_exist(source: Path, home: Home) -> None:
    with refused(home, source / "nowhere.csv", "no such file", "data.source"):
        snap(source / "nowhere.csv", home)


def test_glob_that_fits_nothing(source: Path, home: Home) -> None:
    with refused(home, "*.csv", "fits no"):
        snap(source / "*.csv", home)


def test_text_as_parquet(source: Path, home_with_snapshot: Home) -> None:
    file = write_text(HEAD + ROWS, source / "x.parquet")
    with refused(home_with_snapshot, file, "not Parquet", "suffix"):
        snap(source, home_with_snapshot)


def test_binary_as_csv(source: Path, home: Home) -> None:
    file = write(wide(), source / "x.parquet").rename(source / "x.csv")
    with refused(home, file, "binary", "suffix"):
        snap(source, home)


def test_text_as_gzip(source: Path, home: Home) -> None:
    file = write_text(HEAD + ROWS, source / "x.csv.gz")
    with refused(home, file, "cannot be read"):
        snap(source, home)


def test_truncated_parquet(source: Path, home: Home) -> None:
    file = write(wide(), source / "x.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with refused(home, file, "damaged"):
        snap(source, home)


def test_missing_timestamp_column(source: Path, home: Home) -> None:
    file = write_text("when,a\n2024-01-01,1\n", source / "x.csv")
    with refused(home, file, "no timestamp column", "when, a", "data.timestamp_column"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_unreadable_timestamp(source: Path, home_with_snapshot: Home, name: str) -> None:
    frame = wide().astype({"timestamp": str})
    frame.loc[4, "timestamp"] = "yesterday"
    file = write(frame, source / name)
    with refused(home_with_snapshot, file, "column 'timestamp'", "row 5", "'yesterday'", "ISO 8601"):
        snap(source, home_with_snapshot)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("make", [wide, long])
def test_missing_timestamp(source: Path, home: Home, name: str, make: Callable[[], pd.DataFrame]) -> None:
    frame = make()
    frame.loc[6, "timestamp"] = pd.NaT
    file = write(frame, source / name)
    with refused(home, file, "column 'timestamp'", "row 7", "missing", "delete the row"):
        snap(source, home)


def test_timestamps_as_numbers(source: Path, home: Home) -> None:
    file = write(pd.DataFrame({"timestamp": range(40), "a": range(40)}), source / "x.parquet")
    with refused(home, file, "column 'timestamp'", "int64", "data.timestamp_column"):
        snap(source, home)


def test_time_zone_in_some_rows(source: Path, home: Home) -> None:
    file = write_text(
        "timestamp,a\n2024-01-01T00:00:00Z,1\n2024-01-01T01:00:00Z,2\n2024-01-01T02:00:00,3\n", source / "x.csv"
    )
    with refused(home, file, "column 'timestamp'", "row 3", "mixed time zones", "UTC"):
        snap(source, home)


def test_different_offsets(source: Path, home: Home) -> None:
    file = write_text("timestamp,a\n2024-01-01T00:00:00Z,1\n2024-01-01T03:00:00+02:00,2\n", source / "x.csv")
    with refused(home, file, "row 2", "mixed time zones", "+02:00"):
        snap(source, home)


def test_time_zone_in_some_files(source: Path, home: Home) -> None:
    naive = write(long(ids=("a",)), source / "1.parquet")
    zoned = long(ids=("b",))
    zoned["timestamp"] = zoned["timestamp"].dt.tz_localize("Europe/Berlin")
    file = write(zoned, source / "2.parquet")
    with refused(home, file, naive, "Europe/Berlin", "mixed time zones"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_duplicate_timestamps(source: Path, home_with_snapshot: Home, name: str) -> None:
    frame = wide()
    frame.loc[3, "timestamp"] = frame.loc[2, "timestamp"]
    file = write(frame, source / name)
    with refused(
        home_with_snapshot,
        file,
        "column 'timestamp'",
        "row 4",
        "also in row 3",
        "2024-01-01T02:00:00",
        "data.duplicates=last",
    ):
        snap(source, home_with_snapshot)


def test_duplicate_timestamps_of_one_series_of_many(source: Path, home: Home) -> None:
    frame = long()
    frame.loc[65, "timestamp"] = frame.loc[64, "timestamp"]
    file = write(frame, source / "x.csv")
    with refused(home, file, "row 66", "series 'b'", "data.duplicates=last"):
        snap(source, home)


def test_unsorted_rows(source: Path, home: Home) -> None:
    frame = wide().iloc[[0, 1, 3, 2, *range(4, 60)]]
    file = write(frame, source / "x.csv")
    with refused(home, file, "column 'timestamp'", "row 4", "go backwards", "data.unsorted=sort"):
        snap(source, home)


def test_constant_series(source: Path, home: Home) -> None:
    file = write(wide().assign(b=7.5), source / "x.csv")
    with refused(home, file, "column 'b'", "always 7.5", "data.constant_series=drop"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_series_without_values(source: Path, home: Home, name: str) -> None:
    file = write(wide().assign(b=float("nan")), source / name)
    with refused(home, file, "column 'b'", "no value", "data.missing_series=drop"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("row", [1, 30])
def test_text_in_a_number_column(source: Path, home_with_snapshot: Home, name: str, row: int) -> None:
    frame = wide().astype({"b": str})
    frame.loc[row - 1, "b"] = "broken"
    file = write(frame, source / name)
    with refused(
        home_with_snapshot, file, "column 'b'", f"row {row}:", "'broken' is not a number", "data.value_columns"
    ):
        snap(source, home_with_snapshot)


def test_text_in_a_number_column_of_a_long_file(source: Path, home: Home) -> None:
    frame = long().astype({"target": str})
    frame.loc[70, "target"] = "--"
    file = write(frame, source / "x.csv")
    with refused(home, file, "column 'target'", "row 71", "'--' is not a number"):
        snap(source, home)


def test_text_behind_the_rows_that_were_looked_at(source: Path, home: Home) -> None:
    frame = wide(n=30_000).astype({"b": str})
    frame.loc[29_000, "b"] = "broken"
    file = write(frame, source / "x.csv")
    with refused(home, file, "column 'b'", "row 29001"):
        snap(source, home)


@pytest.mark.parametrize("separator", [",", ";"])
def test_decimal_commas(source: Path, home: Home, separator: str) -> None:
    text = f'timestamp{separator}a\n2024-01-01{separator}"1,5"\n2024-01-02{separator}"2,5"\n'
    file = write_text(text if separator == "," else text.replace('"', ""), source / "x.csv")
    with refused(home, file, "column 'a'", "row 1", "decimal comma", "decimal point"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e300])
def test_infinities(source: Path, home: Home, name: str, value: float) -> None:
    frame = wide()
    frame.loc[8, "a"] = value
    file = write(frame, source / name)
    with refused(home, file, "column 'a'", "row 9", "infinite", "data.infinities=missing"):
        snap(source, home)


def test_series_too_short(source: Path, home: Home) -> None:
    file = write(wide(n=31), source / "x.csv")
    taken = snap(source, home)
    with refused(home, file, "'a'", "31 steps", "at least 20", "preparation.short_series=drop", "context_length"):
        prepare(taken, home)
    assert list(home.training_data.iterdir()) == []


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_irregular_timestamps(source: Path, home: Home, name: str) -> None:
    frame = wide()
    frame.loc[20, "timestamp"] += np.timedelta64(7, "m")
    file = write(frame, source / name)
    taken = snap(source, home)
    with refused(home, file, "column 'timestamp'", "row 21", "2024-01-01T20:07:00", "preparation.irregular=mean"):
        prepare(taken, home)


def test_frequency_that_the_data_does_not_have(source: Path, home: Home) -> None:
    file = write(wide(n=24 * 60), source / "x.csv")
    taken = snap(source, home)
    with refused(home, file, "row 2", "off the regular grid of D", "preparation.frequency"):
        prepare(taken, home, frequency="D")


def test_a_timestamp_far_off(source: Path, home: Home) -> None:
    frame = wide()
    frame.loc[59, "timestamp"] = pd.Timestamp("2099-01-01")
    file = write(frame, source / "x.csv")
    taken = snap(source, home)
    with refused(home, file, "'a'", "60 rows in", "far off"):
        prepare(taken, home)


@pytest.mark.parametrize("make", [wide, long])
def test_two_files_with_the_same_series(source: Path, home: Home, make: Callable[[], pd.DataFrame]) -> None:
    first = write(make(), source / "1.csv")
    second = write(make(), source / "2.parquet")
    with refused(home, first, second, "series 'a'", "one file"):
        snap(source, home)


def test_two_files_of_the_same_symbol(source: Path, home: Home) -> None:
    prices = wide(columns=("Open", "High", "Low", "Close"))
    first, second = write(prices, source / "x" / "ACME.csv"), write(prices, source / "y" / "ACME.csv")
    with refused(home, first, second, "series 'ACME'"):
        snap(source, home)


def test_a_series_in_two_rows_of_a_list_file(source: Path, home: Home) -> None:
    row = {"id": "a", "timestamp": [pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")], "target": [1.0, 2.0]}
    pq.write_table(pa.Table.from_pylist([row, row]), source / "x.parquet")
    with refused(home, source / "x.parquet", "series 'a'", "twice"):
        snap(source, home)


def test_column_that_vanished(source: Path, home: Home) -> None:
    write(wide(), source / "x.csv")
    snap(source, home)
    write(wide(columns=("a",)), source / "x.csv")
    with refused(home, source, "column 'b'", "vanished", "data.vanished=accept"):
        snap(source, home)


def test_variate_that_vanished(source: Path, home: Home) -> None:
    prices = wide(columns=("Open", "High", "Low", "Close", "Volume"))
    write(prices, source / "ACME.csv")
    snap(source, home)
    write(prices.drop(columns="Volume"), source / "ACME.csv")
    with refused(home, source, "column 'Volume'", "vanished"):
        snap(source, home)


def test_symbol_without_a_column_of_the_others(source: Path, home: Home) -> None:
    prices = wide(columns=("Open", "High", "Low", "Close", "Volume"))
    first = write(prices, source / "ACME.csv")
    second = write(prices.drop(columns="Volume"), source / "OTHER.csv")
    with refused(home, second, first, "Volume", "data.value_columns"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_empty_file(source: Path, home: Home, name: str) -> None:
    (source / name).touch()
    with refused(home, source / name, "empty"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_file_without_rows(source: Path, home: Home, name: str) -> None:
    file = write(wide().iloc[:0], source / name)
    with refused(home, file, "no rows"):
        snap(source, home)


@pytest.mark.parametrize("row", ["2024-01-01 03:00:00,4", "2024-01-01 03:00:00,4,8,9"])
def test_ragged_rows(source: Path, home: Home, row: str) -> None:
    file = write_text(HEAD + ROWS + row + "\n", source / "x.csv")
    with refused(home, file, "row 4", "cells", "3 cells in every row"):
        snap(source, home)


@pytest.mark.parametrize("rows", [0, 20_000])
def test_bad_encoding(source: Path, home: Home, rows: int) -> None:
    text = long(n=max(2, rows), ids=("a",)).to_csv(index=False).encode()
    file = source / "x.csv"
    file.write_bytes(text + "Z\u00fcrich,2024-01-01,1\n".encode("latin-1"))
    with refused(home, file, f"row {max(2, rows) + 1}", "UTF-8"):
        snap(source, home)


def test_column_named_twice(source: Path, home: Home) -> None:
    file = write_text("timestamp,a,a\n2024-01-01,1,2\n", source / "x.csv")
    with refused(home, file, "column 'a'", "twice"):
        snap(source, home)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_missing_series_id(source: Path, home: Home, name: str) -> None:
    frame = long()
    frame.loc[11, "item_id"] = None
    file = write(frame, source / name)
    with refused(home, file, "column 'item_id'", "row 12", "missing"):
        snap(source, home)


def test_setting_that_names_no_column(source: Path, home: Home) -> None:
    file = write(wide(), source / "x.csv")
    with refused(home, file, "'c'", "data.value_columns", "timestamp, a, b"):
        snap(source, home, value_columns=["c"])


def test_layouts_mixed(source: Path, home: Home) -> None:
    first, second = write(wide(), source / "1.csv"), write(long(ids=("c",)), source / "2.csv")
    with refused(home, first, second, "long", "wide", "data.layout"):
        snap(source, home)


def test_unwritable_home(source: Path, tmp_path: Path) -> None:
    write(wide(), source / "x.csv")
    blocker = write_text("", tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be written"):
        snap(source, Home(blocker / "home"))


FULL_DISK = """
import resource, sys
from pathlib import Path
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline.data.snapshot import open_snapshot, take_snapshot
from toto_pipeline.data.training_data import prepare_training_data
from toto_pipeline.errors import StorageError
from toto_pipeline.home import Home

what, source, home, limit = sys.argv[1], sys.argv[2], Home(Path(sys.argv[3])), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if what == "snapshot":
        take_snapshot(DataSettings(source=source), home)
    else:
        prepare_training_data(open_snapshot(Path(source)), PreparationSettings(), home)
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def on_a_full_disk(what: str, source: Path, home: Home, limit: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FULL_DISK, what, str(source), str(home.root), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("limit", [100, 50_000])
def test_snapshot_on_a_full_disk(source: Path, home_with_snapshot: Home, limit: int) -> None:
    write(wide(n=200_000), source / "x.parquet")
    before = tree(home_with_snapshot.snapshots)
    ended = on_a_full_disk("snapshot", source, home_with_snapshot, limit)
    assert ended.returncode == StorageError.exit_code, ended.stderr
    assert "the disk is full" in ended.stdout
    assert tree(home_with_snapshot.snapshots) == before
    assert len(list(home_with_snapshot.snapshots.iterdir())) == 2


@pytest.mark.parametrize("limit", [100, 300_000, 801_000])
def test_training_data_on_a_full_disk(source: Path, home: Home, limit: int) -> None:
    taken = snap(write(wide(n=100_000), source / "x.parquet"), home)
    before = tree(home.root)
    ended = on_a_full_disk("training data", taken.folder, home, limit)
    assert ended.returncode == StorageError.exit_code, ended.stderr
    assert "the disk is full" in ended.stdout
    assert tree(home.root) == before
    assert list(home.training_data.iterdir()) == []
