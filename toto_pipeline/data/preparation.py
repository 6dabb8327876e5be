"""Writes training data: which series to use, then their values on the grid, then the file for evaluation.

What each series will be like (start, length, splits) follows from the first and last timestamps that the snapshot keeps
beside the series. So every series can be written straight to its place, in one pass over the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toto_pipeline.data.frequency import Grid, default_season, parse_frequency
from toto_pipeline.data.list_files import GROUP_VALUES, ListFileWriter, list_arrays, list_fields
from toto_pipeline.data.regular import OffGridError, regularise, series_grid
from toto_pipeline.data.repairs import Repairs
from toto_pipeline.data.series import TARGET, Int64Array, iso
from toto_pipeline.data.snapshot import Snapshot
from toto_pipeline.data.splits import Cuts, Splits, find_cuts, split
from toto_pipeline.data.training_files import EVALUATION_FILE, ITEMS_FILE, VALUES_FILE, TrainingDataManifest
from toto_pipeline.errors import DataError
from toto_pipeline.settings.data import PreparationSettings

_MOST_STEPS_A_ROW = 100
_SPARE_STEPS = 100_000


@dataclass(frozen=True)
class Items:
    """The series of a snapshot, sorted by id: (n_series,) each. Times in microseconds, spans as observed."""

    ids: list[str]
    files: list[str]
    first_rows: list[int | None]
    n_rows: Int64Array
    starts: Int64Array
    ends: Int64Array
    lengths: Int64Array

    def take(self, kept: Int64Array) -> Items:
        places = kept.tolist()
        return Items(
            [self.ids[place] for place in places],
            [self.files[place] for place in places],
            [self.first_rows[place] for place in places],
            self.n_rows[kept],
            self.starts[kept],
            self.ends[kept],
            self.lengths[kept],
        )


def lay_out(
    snapshot: Snapshot,
    settings: PreparationSettings,
    name: str,
    folder: Path,
    report: Callable[[str, float], None],
) -> TrainingDataManifest:
    """Write the files of training data into `folder` and say what they are."""
    grid = parse_frequency(_frequency(snapshot, settings))
    items = _read_items(snapshot, grid, settings)
    dropped, repairs = Repairs(), Repairs()
    items, cuts = _usable(items, grid, settings, snapshot, dropped)
    splits = split(items.starts, items.lengths, grid, cuts)
    _note_early_ends(items, splits, settings, dropped)
    variates = snapshot.manifest.variates
    offsets = np.concatenate(([0], np.cumsum(items.lengths * len(variates))))[:-1].astype(np.int64)
    n_missing = _write_values(snapshot, items, offsets, grid, settings, folder, repairs, report)
    _write_items(folder, items, offsets, splits)
    _write_evaluation(folder, items, variates, grid, report)
    return TrainingDataManifest(
        fingerprint=name,
        snapshot=snapshot.fingerprint,
        frequency=grid.alias,
        season=settings.season or default_season(grid),
        context_length=settings.context_length,
        horizon=settings.horizon,
        validation_windows=settings.validation_windows,
        test_windows=settings.test_windows,
        variates=variates,
        n_series=len(items.ids),
        n_steps=int(items.lengths.sum()),
        n_missing=n_missing,
        train_start=iso(int(items.starts.min())),
        validation_start=iso(cuts.validation_start),
        test_start=iso(cuts.test_start),
        end=iso(cuts.end),
        dropped=dropped.sentences(),
        repairs=repairs.sentences(),
    )


def _frequency(snapshot: Snapshot, settings: PreparationSettings) -> str:
    frequency = settings.frequency or snapshot.manifest.frequency
    if frequency is None:
        raise DataError(
            "no series has two rows, so there is no frequency",
            expected="series of many rows",
            remedy="check data.layout and data.id_column",
            file=snapshot.manifest.source,
        )
    return frequency


def _read_items(snapshot: Snapshot, grid: Grid, settings: PreparationSettings) -> Items:
    table = pq.read_table(snapshot.file, columns=["id", "source_file", "first_row", "n_rows", "start", "end"])
    table = table.sort_by("id")
    starts, ends = (table.column(one).to_numpy().astype("datetime64[us]").view(np.int64) for one in ("start", "end"))
    files, n_rows = table.column("source_file").to_pylist(), table.column("n_rows").to_numpy()
    starts, ends = np.array(starts), np.array(ends)
    lengths = np.empty_like(starts)
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        own = series_grid(grid, start, settings.irregular)
        first, last = own.ordinal(np.array([start, end]))
        lengths[place] = last - first + 1
        starts[place], ends[place] = own.time(np.array([first, last]))
    items = Items(
        table.column("id").to_pylist(), files, table.column("first_row").to_pylist(), n_rows, starts, ends, lengths
    )
    _check_density(items, grid)
    return items


def _check_density(items: Items, grid: Grid) -> None:
    sparse = items.lengths > _MOST_STEPS_A_ROW * items.n_rows + _SPARE_STEPS
    if sparse.any():
        place = int(np.argmax(sparse))
        raise DataError(
            f"series {items.ids[place]!r} has {items.n_rows[place]} rows in "
            f"{items.lengths[place]} steps of {grid.alias}",
            expected="a value at most of the steps",
            remedy="correct the timestamps that are far off, or set preparation.frequency to a longer step (and "
            "preparation.irregular=mean)",
            file=items.files[place],
        )


def _usable(
    items: Items, grid: Grid, settings: PreparationSettings, snapshot: Snapshot, dropped: Repairs
) -> tuple[Items, Cuts]:
    """The series that are long enough, and the cuts. A series that could never be used does not move the cuts."""
    needed = settings.context_length + settings.horizon
    long_enough = items.lengths >= needed
    newest = items.ends[long_enough].max() if long_enough.any() else items.ends.max()
    cuts = find_cuts(int(newest), grid, settings)
    before = split(items.starts, items.lengths, grid, cuts).train_ends
    short = before < needed
    for place in np.flatnonzero(short).tolist():
        if settings.short_series == "error":
            raise _too_short(items, place, int(before[place]), cuts, settings, snapshot)
        dropped.count(
            "{series} in {file}: left out, fewer than " + f"{needed} steps before {iso(cuts.validation_start)}.",
            items.files[place],
            items.ids[place],
        )
    if short.all():
        raise _too_short(items, 0, int(before[0]), cuts, settings, snapshot)
    return items.take(np.flatnonzero(~short)), cuts


def _too_short(
    items: Items, place: int, before: int, cuts: Cuts, settings: PreparationSettings, snapshot: Snapshot
) -> DataError:
    needed = settings.context_length + settings.horizon
    held_out = (settings.validation_windows + settings.test_windows) * settings.horizon
    return DataError(
        f"series {items.ids[place]!r} has {items.lengths[place]} steps, {before} of them before the validation span "
        f"starts at {iso(cuts.validation_start)}",
        expected=f"at least {needed} steps to train on (context_length {settings.context_length} + horizon "
        f"{settings.horizon}), besides the {held_out} that are held out at the end",
        remedy="set preparation.short_series=drop, or lower preparation.context_length, horizon, validation_windows or "
        "test_windows",
        file=items.files[place],
        column=items.ids[place] if snapshot.manifest.layout == "wide" else None,
    )


def _note_early_ends(items: Items, splits: Splits, settings: PreparationSettings, dropped: Repairs) -> None:
    windows = (items.lengths - splits.validation_ends) // settings.horizon
    for place in np.flatnonzero(windows < settings.test_windows).tolist():
        dropped.count(
            "{series} in {file}: ends early and has fewer than " + f"{settings.test_windows} test windows, or none.",
            items.files[place],
            items.ids[place],
        )


def _write_values(
    snapshot: Snapshot,
    items: Items,
    offsets: Int64Array,
    grid: Grid,
    settings: PreparationSettings,
    folder: Path,
    repairs: Repairs,
    report: Callable[[str, float], None],
) -> int:
    """Write every series to its place; returns how many values are missing."""
    places = {identifier: place for place, identifier in enumerate(items.ids)}
    missing = 0
    with (folder / VALUES_FILE).open("wb") as stream:
        position = 0
        for share, identifier, timestamps, values in _read_series(snapshot):
            report("putting series on the grid", 0.7 * share)
            place = places.get(identifier)
            if place is None:
                continue
            start = int(items.starts[place])
            first, last = _observed(values)
            try:
                own = series_grid(grid, start, settings.irregular)
                regular, n_off = regularise(timestamps[first:last], values[:, first:last], own, settings.irregular)
            except OffGridError as error:
                raise _irregular(snapshot, items, place, timestamps, first + error.place, grid) from None
            if n_off:
                repairs.count(
                    "{series} in {file}: {count} rows off the grid of " + f"{grid.alias} averaged into their steps.",
                    items.files[place], identifier, n_off,
                )  # fmt: skip
            missing += int(np.count_nonzero(np.isnan(regular)))
            if position != 4 * offsets[place]:
                stream.seek(4 * int(offsets[place]))
            stream.write(np.ascontiguousarray(regular).data)
            position = 4 * int(offsets[place]) + regular.nbytes
    return missing


def _observed(values: np.ndarray) -> tuple[int, int]:
    """First step that has a value, and the one behind the last."""
    if not (np.isnan(values[:, 0]).all() or np.isnan(values[:, -1]).all()):
        return 0, values.shape[1]
    places = np.flatnonzero(~np.isnan(values).all(axis=0))
    return int(places[0]), int(places[-1]) + 1


def _irregular(
    snapshot: Snapshot, items: Items, place: int, timestamps: Int64Array, step: int, grid: Grid
) -> DataError:
    first_row = items.first_rows[place]
    before = f" (after {iso(timestamps[step - 1])})" if step else ""
    return DataError(
        f"the timestamp {iso(timestamps[step])}{before} of series {items.ids[place]!r} is off "
        f"the regular grid of {grid.alias}",
        expected=f"one row every {grid.alias}, gaps allowed",
        remedy="set preparation.irregular=mean, or preparation.frequency to the true step",
        file=items.files[place],
        column=snapshot.manifest.timestamp_column,
        row=None if first_row is None else first_row + step,
    )


def _read_series(snapshot: Snapshot) -> Iterator[tuple[float, str, Int64Array, np.ndarray]]:
    """(share read, id, timestamps, values (variates, n)) of each series, a row group in memory at a time."""
    variates = snapshot.manifest.variates
    with pq.ParquetFile(snapshot.file, pre_buffer=False) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=["id", "timestamp", *variates]).combine_chunks()
            ids = table.column("id").to_pylist()
            times, *values = (table.column(name).chunk(0) for name in ("timestamp", *variates))
            edges = times.offsets.to_numpy()
            stamps = times.values.view(pa.int64()).to_numpy()
            flat = [one.values.to_numpy() for one in values]
            for number, identifier in enumerate(ids):
                span = slice(int(edges[number]), int(edges[number + 1]))
                one = flat[0][None, span] if len(flat) == 1 else np.stack([variate[span] for variate in flat])
                yield group / parquet.num_row_groups, identifier, stamps[span], one


def _write_items(folder: Path, items: Items, offsets: Int64Array, splits: Splits) -> None:
    table = pa.table(
        {
            "id": pa.array(items.ids, pa.string()),
            "source_file": pa.array(items.files, pa.string()),
            "offset": offsets,
            "start": pa.array(items.starts).cast(pa.timestamp("us")),
            "length": items.lengths,
            "train_end": splits.train_ends,
            "validation_end": splits.validation_ends,
        }
    )
    with (folder / ITEMS_FILE).open("wb") as stream:
        pq.write_table(table, stream)


def _write_evaluation(
    folder: Path, items: Items, variates: list[str], grid: Grid, report: Callable[[str, float], None]
) -> None:
    names = [TARGET] if len(variates) == 1 else variates
    schema = pa.schema([pa.field("id", pa.string()), *list_fields(names)])
    spans = list(zip(items.starts.tolist(), items.lengths.tolist(), strict=True))
    times_from = lru_cache(maxsize=1)(grid.times_from)  # Most series share their start and length with the last.
    with (folder / EVALUATION_FILE).open("wb") as file, (folder / VALUES_FILE).open("rb") as values:
        writer = ListFileWriter(file, schema)
        try:
            for first, last in _groups(items.lengths * len(names)):
                report("writing the evaluation data", 0.7 + 0.3 * first / len(items.ids))
                times = [times_from(*span) for span in spans[first:last]]
                read = [np.fromfile(values, np.float32, n * len(names)) for _, n in spans[first:last]]
                lists = list_arrays(times, [one.reshape(len(names), -1) for one in read])
                writer.write(pa.Table.from_arrays([pa.array(items.ids[first:last]), *lists], schema=schema))
            writer.close()
        finally:
            writer.abandon()


def _groups(sizes: Int64Array) -> Iterator[tuple[int, int]]:
    """Ranges of series with about `GROUP_VALUES` values each."""
    start = held = 0
    for place, size in enumerate(sizes.tolist()):
        held += size
        if held >= GROUP_VALUES:
            yield start, place + 1
            start, held = place + 1, 0
    if start < len(sizes):
        yield start, len(sizes)
