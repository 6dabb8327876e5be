"""Snapshots: layouts, formats, identity, and what is told about them."""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toto_pipeline.data import csv_files, readers, rows
from toto_pipeline.data.snapshot import open_snapshot, picture, preview
from toto_pipeline.home import Home
from toto_pipeline_tests.data.helpers import long, read, snap, times, tree, wide, write, write_text


def test_sample(home: Home) -> None:
    said: list[tuple[str, float]] = []
    from toto_pipeline.data.snapshot import take_snapshot
    from toto_pipeline.settings.data import DataSettings

    taken = take_snapshot(DataSettings(), home, lambda what, share: said.append((what, share)))
    manifest = taken.manifest
    assert (manifest.n_series, manifest.n_rows, manifest.layout) == (26, 26 * 19_735, "wide")
    assert (manifest.start, manifest.end) == ("2016-01-11T17:00:00", "2016-05-27T18:00:00")
    assert (manifest.frequency, manifest.n_missing, manifest.n_gaps, manifest.repairs) == ("10min", 0, 0, [])
    assert manifest.columns[0] == {"name": "timestamp", "type": "timestamp[ms]"}
    assert open_snapshot(taken.folder) == taken
    assert taken.folder == home.snapshots / taken.fingerprint
    assert preview(taken, rows=2)[1] == {"id": "Appliances", "timestamp": "2016-01-11T17:10:00", "target": 60.0}
    assert picture(taken).startswith(b"\x89PNG")
    assert said[-1][1] == 1.0
    assert [share for _, share in said] == sorted(share for _, share in said)


@pytest.mark.parametrize(
    "names",
    [
        ("item_id", "timestamp", "target"),
        ("unique_id", "ds", "y"),
        ("id", "timestamp", "target"),
        ("series_id", "Date", "value"),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_long_names(source: Path, home: Home, names: tuple[str, ...], name: str) -> None:
    write(long().set_axis(names, axis=1), source / name)
    taken = snap(source, home)
    assert (taken.manifest.layout, taken.manifest.variates) == ("long", ["target"])
    assert list(read(taken)["b"]["target"]) == list(range(100, 160))


def test_configured_names(source: Path, home: Home) -> None:
    write(long().set_axis(["sensor", "when", "reading"], axis=1), source / "x.csv")
    taken = snap(source, home, id_column="sensor", timestamp_column="when", value_columns=["reading"])
    assert sorted(read(taken)) == ["a", "b"]


def test_long_with_variates(source: Path, home: Home) -> None:
    frame = long().rename(columns={"target": "load"})
    frame["wind"] = frame["load"] * 2
    write(frame, source / "x.parquet")
    taken = snap(source, home, value_columns=["load", "wind"])
    assert taken.manifest.variates == ["load", "wind"]
    assert taken.manifest.n_values == 240
    assert list(read(taken)["b"]["wind"])[:2] == [200, 202]


def test_numeric_ids(source: Path, home: Home) -> None:
    frame = long()
    frame["item_id"] = frame["item_id"].map({"a": 7, "b": 10})
    write(frame, source / "x.parquet")
    as_numbers = snap(source, home)
    write(frame, source / "x.parquet").unlink()
    write(frame, source / "x.csv")
    assert snap(source, home).fingerprint == as_numbers.fingerprint


def test_lists(source: Path, home: Home) -> None:
    write(long(), source / "x.parquet")
    as_rows = snap(source, home)
    grouped = [
        {"id": name, "timestamp": list(one["timestamp"]), "target": list(one["target"])}
        for name, one in long().groupby("item_id")
    ]
    pq.write_table(pa.Table.from_pylist(grouped), source / "x.parquet")
    assert snap(source, home).fingerprint == as_rows.fingerprint


def test_symbols(source: Path, home: Home) -> None:
    names = ("Open", "High", "Low", "Close", "Volume")
    first, second = wide(columns=names), wide(columns=names)
    second[list(names)] += 1
    write(first.rename(columns={"timestamp": "Date"}), source / "ACME.csv")
    write(second[["timestamp", *names[::-1]]].rename(columns={"timestamp": "Date"}), source / "OTHER.parquet")
    taken = snap(source, home)
    assert (taken.manifest.layout, taken.manifest.variates) == ("symbols", list(names))
    series = read(taken)
    assert sorted(series) == ["ACME", "OTHER"]
    assert list(series["OTHER"]["Volume"])[:2] == [401, 402]
    assert list(preview(taken, 1)[0]) == ["id", "timestamp", *names]


def test_any_columns_as_symbols(source: Path, home: Home) -> None:
    for name in ("north", "south"):
        write(wide(columns=("wind", "sun")), source / f"{name}.csv")
    taken = snap(source / "*.csv", home, layout="symbols", value_columns=["sun"])
    assert (taken.manifest.n_series, taken.manifest.variates) == (2, ["sun"])


def test_single_file_in_gzip(source: Path, home: Home) -> None:
    write(wide(), source / "x.csv")
    plain = snap(source / "x.csv", home)
    (source / "x.csv.gz").write_bytes(gzip.compress((source / "x.csv").read_bytes()))
    assert snap(source / "x.csv.gz", home).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("timestamp,a,b", '"timestamp","a","b"'),
        lambda text: "\ufeff" + text.replace("timestamp,a,b", '"timestamp","a","b"'),
        lambda text: text + "\n\n\n",
        lambda text: "\n\n" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace(" 00:00:00", "T00:00:00").replace(",5.0", ", 5.0"),
    ],
)
def test_dialects_of_csv(source: Path, home: Home, change: object) -> None:
    write(wide(), source / "x.csv")
    plain = snap(source, home)
    write_text(change((source / "x.csv").read_text()), source / "x.csv")  # type: ignore[operator]
    assert snap(source, home).fingerprint == plain.fingerprint


def test_text_columns_are_left_out_and_named(source: Path, home: Home) -> None:
    write(wide().assign(comment="fine"), source / "x.csv")
    taken = snap(source, home)
    assert sorted(read(taken)) == ["a", "b"]
    assert "comment" in taken.manifest.repairs[0]


def test_an_index_without_a_name_is_left_out(source: Path, home: Home) -> None:
    wide().to_csv(source / "x.csv")
    assert sorted(read(snap(source, home))) == ["a", "b"]


def test_names_with_dots_and_text_as_categories(source: Path, home: Home) -> None:
    write(wide(columns=("a.b", "a.c", "a")), source / "x.parquet")
    assert list(read(snap(source, home))["a.c"]["target"])[:2] == [100, 101]
    write(long().astype({"item_id": "category"}), source / "y.parquet")
    assert sorted(read(snap(source / "y.parquet", home))) == ["a", "b"]


def test_other_columns_of_the_same_source_have_not_vanished(source: Path, home: Home) -> None:
    write(wide(), source / "x.csv")
    snap(source, home)
    assert snap(source, home, value_columns=["a"]).manifest.n_series == 1


def test_missing_values_and_gaps_are_counted_and_kept(source: Path, home: Home) -> None:
    frame = wide(columns=("a",)).drop(index=[5, 6, 20])
    frame.loc[30, "a"] = np.nan
    write(frame, source / "x.csv")
    taken = snap(source, home)
    assert (taken.manifest.n_missing, taken.manifest.n_gaps, taken.manifest.n_rows) == (1, 2, 57)


def test_unchanged_data_writes_nothing(source: Path, home: Home) -> None:
    write(wide(), source / "x.csv")
    first = snap(source, home)
    marks = {path: path.stat().st_mtime_ns for path in home.snapshots.rglob("*")}
    assert snap(source, home) == first
    assert {path: path.stat().st_mtime_ns for path in home.snapshots.rglob("*")} == marks


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.assign(a=frame["a"] + 1e-3),
        lambda frame: frame.rename(columns={"a": "c"}),
        lambda frame: frame.assign(timestamp=frame["timestamp"] + np.timedelta64(1, "s")),
        lambda frame: frame.iloc[:-1],
        lambda frame: frame.rename(columns={"a": "b", "b": "a"}),
    ],
)
def test_changed_data_has_another_fingerprint(source: Path, home: Home, change: object) -> None:
    write(wide(), source / "x.csv")
    first = snap(source, home)
    before = tree(first.folder)
    write(change(wide()), source / "x.csv")  # type: ignore[operator]
    assert snap(source, home, vanished="accept").fingerprint != first.fingerprint
    assert tree(first.folder) == before


def test_fingerprint_of_known_data(source: Path, home: Home) -> None:
    """Pinned: a snapshot taken by another version or machine has the same name."""
    write(wide(), source / "x.csv")
    assert snap(source, home).fingerprint.startswith("80127004c5ac5f05605e7b23b5")


def test_abandoned_folders_are_removed(source: Path, home: Home) -> None:
    import os

    abandoned = home.snapshots / ".tmp-abandoned"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    write(wide(), source / "x.csv")
    snap(source, home)
    assert not abandoned.exists()


Arrangement = tuple[list[list[str]], list[str], int, bool]


@st.composite
def arrangements(draw: st.DrawFn) -> Arrangement:
    """Which series go into which file, each file's format, a seed for the rows, and whether they are interleaved."""
    ids = draw(st.permutations(["a", "b", "c", "d", "e"]))
    cut = draw(st.integers(0, 5))
    parts = [part for part in (list(ids[:cut]), list(ids[cut:])) if part]
    formats = [draw(st.sampled_from(["csv", "parquet", "csv.gz"])) for _ in parts]
    return parts, formats, draw(st.integers(0, 99)), draw(st.booleans())


def irregular_long(ids: list[str], seed: int, interleaved: bool) -> pd.DataFrame:
    """Series of different lengths with missing values; the rows of each in order, mixed with the others' or not."""
    parts = []
    for name in ids:
        random = np.random.default_rng(ord(name))
        n = int(random.integers(5, 80))
        values = np.where(random.random(n) < 0.1, np.nan, random.normal(size=n).astype(np.float32).astype(float))
        values[:2] = 0, 1
        parts.append(pd.DataFrame({"item_id": name, "timestamp": times(n), "target": values}))
    frame = pd.concat(parts, ignore_index=True)
    if not interleaved:
        return frame
    keys = np.random.default_rng(seed).random(len(frame))
    frame["key"] = frame.assign(key=keys).groupby("item_id")["key"].transform(np.sort)
    return frame.sort_values("key").drop(columns="key")


@given(arrangements())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fingerprint_does_not_depend_on_files_formats_and_order(
    arrangement: Arrangement,
) -> None:
    parts, formats, seed, interleaved = arrangement
    with TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        reference = write(irregular_long(list("abcde"), 0, False), Path(folder) / "reference.parquet")
        expected = snap(reference, home)
        for number, (ids, format) in enumerate(zip(parts, formats, strict=True)):
            write(irregular_long(ids, seed, interleaved), Path(folder) / "source" / f"{number}.{format}")
        assert snap(Path(folder) / "source", home).fingerprint == expected.fingerprint


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("layout", ["wide", "long", "interleaved"])
def test_data_larger_than_the_budget(
    source: Path, home: Home, monkeypatch: pytest.MonkeyPatch, name: str, layout: str
) -> None:
    ids = tuple(f"s{number}" for number in range(23))
    frame = wide(n=400, columns=ids) if layout == "wide" else long(n=400, ids=ids)
    if layout == "interleaved":
        frame = frame.sort_values(["timestamp", "item_id"])
    write(frame, source / name)
    expected = snap(source, home)
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(readers, "_BATCH_VALUES", 700)
    monkeypatch.setattr(rows, "BUDGET", 3000)
    assert snap(source, home).fingerprint == expected.fingerprint
    monkeypatch.setattr(rows, "BUDGET", 100)
    assert snap(source, home).fingerprint == expected.fingerprint
