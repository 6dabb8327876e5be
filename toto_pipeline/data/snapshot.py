"""Snapshots: validated input data under the name of its content.

    files -> layout of each -> series, one at a time -> mended or refused -> series.parquet, manifest.json

The fingerprint is the SHA-256 of the sorted series ids with their timestamps, variates and values. It depends neither
on the order or format of the files nor on the version of a library. A snapshot is written under a temporary name and
renamed; when the same content is there already, nothing changes on disk. Beside the snapshots, `source-<key>.json`
remembers the last one of each source.

`series.parquet` has one row a series: id, source_file, first_row, n_rows, start, end, timestamp (list), and a list for
each variate. Values are 32-bit floats, NaN for missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from toto_pipeline.data.layouts import Layout, common_variates, recognise
from toto_pipeline.data.readers import Reader, inspect
from toto_pipeline.data.repairs import Repairs
from toto_pipeline.data.sources import Columns, SourceFile, find_files, source_key
from toto_pipeline.data.staging import publish, staging_folder, write_atomically
from toto_pipeline.data.timestamps import Zones
from toto_pipeline.data.validation import mend
from toto_pipeline.data.writer import SERIES_FILE, SeriesWriter
from toto_pipeline.errors import DataError
from toto_pipeline.home import Home, storage_errors
from toto_pipeline.settings.data import DataSettings

MANIFEST_FILE = "manifest.json"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class SnapshotManifest:
    """Facts of a snapshot. Times are ISO 8601, in UTC where the source has time zones.

    Attributes:
        source: `data.source` as it was given.
        frequency: the most common step between rows as pandas writes it; None where no series has two rows.
        n_gaps: places where the next row is further away than one step.
        repairs: sentences that say what was mended, how often, and in which file.
        columns: name and type of each column of the source.
    """

    fingerprint: str
    source: str
    layout: str
    timestamp_column: str
    variates: list[str]
    n_series: int
    n_rows: int
    n_values: int
    start: str
    end: str
    frequency: str | None
    n_missing: int
    n_gaps: int
    repairs: list[str]
    columns: list[dict[str, str]]
    created: str


@dataclass(frozen=True)
class Snapshot:
    folder: Path
    manifest: SnapshotManifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def file(self) -> Path:
        return self.folder / SERIES_FILE

    def read_ids(self) -> list[str]:
        """Series ids in the order of the file."""
        ids: list[str] = pq.read_table(self.file, columns=["id"]).column("id").to_pylist()
        return ids


def take_snapshot(settings: DataSettings, home: Home, progress: Progress | None = None) -> Snapshot:
    """Read, validate and keep the data of `settings.source`.

    Args:
        progress: called with what is being done and the share that is done.

    Raises:
        DataError: the data cannot be used as it is; no snapshot was changed.
        StorageError: the home cannot be written; no snapshot was changed.
    """
    report = progress or _no_progress
    files = find_files(settings.source)
    columns = [inspect(file) for file in files]
    layouts = [recognise(one, settings) for one in columns]
    with storage_errors(home.snapshots), staging_folder(home.snapshots) as folder:
        manifest = _write_series(settings, home, columns, layouts, folder, report)
        _write_manifest(folder, manifest)
        report("keeping the snapshot", 1.0)
        place = home.snapshots / manifest.fingerprint
        publish(folder, place)
        _remember(settings, home, manifest.fingerprint)
    created = open_snapshot(place).manifest.created
    return Snapshot(place, replace(manifest, created=created))


def open_snapshot(folder: Path) -> Snapshot:
    """The snapshot in `folder`.

    Raises:
        DataError: there is none.
    """
    file = folder / MANIFEST_FILE
    try:
        values: dict[str, Any] = json.loads(file.read_bytes())
        return Snapshot(folder, SnapshotManifest(**{one.name: values[one.name] for one in fields(SnapshotManifest)}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is not the manifest of a snapshot ({type(error).__name__}: {error})",
            expected="a folder that take_snapshot wrote",
            remedy="take the snapshot again",
            file=file,
        ) from error


def preview(snapshot: Snapshot, rows: int = 5) -> list[dict[str, Any]]:
    """The first rows of the first series, one dict a row, for a table."""
    with pq.ParquetFile(snapshot.file, pre_buffer=False) as parquet:
        first = next(parquet.iter_batches(1)).to_pydict()
    return [
        {"id": first["id"][0], "timestamp": time.isoformat()}
        | {name: _number(first[name][0][place]) for name in snapshot.manifest.variates}
        for place, time in enumerate(first["timestamp"][0][:rows])
    ]


def picture(snapshot: Snapshot, series: int = 4) -> bytes:
    """A PNG of the first series."""
    from toto_pipeline.data.pictures import draw_snapshot

    return draw_snapshot(snapshot, series)


def _write_series(
    settings: DataSettings,
    home: Home,
    columns: Sequence[Columns],
    layouts: Sequence[Layout],
    folder: Path,
    report: Progress,
) -> SnapshotManifest:
    variates = common_variates(columns, layouts)
    repairs, zones, owners = Repairs(), Zones(), dict[str, str]()
    sizes = [one.file.bytes for one in columns]
    with SeriesWriter(folder, variates) as writer:
        for number, (one, layout) in enumerate(zip(columns, layouts, strict=True)):
            if layout.left_out:
                repairs.note(f"Columns not used in {one.file.name}: {', '.join(layout.left_out[:20])}.")
            share = _file_share(report, one.file, sizes, number)
            for series in Reader(one, layout.ordered(variates), zones, folder, share).series():
                _claim(owners, series.id, series.file)
                kept = mend(series, settings, repairs)
                if kept is not None:
                    writer.add(kept)
        summary = writer.finish()
    _check_any(summary.n_series, settings)
    _check_vanished(settings, home, owners, variates)
    for sentence in zones.sentences:
        repairs.note(sentence)
    return SnapshotManifest(
        source=settings.source,
        layout="long" if layouts[0].kind == "lists" else layouts[0].kind,
        timestamp_column=layouts[0].timestamp,
        variates=list(variates),
        repairs=repairs.sentences(),
        columns=_source_columns(columns),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **asdict(summary),
    )


def _write_manifest(folder: Path, manifest: SnapshotManifest) -> None:
    (folder / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def _claim(owners: dict[str, str], identifier: str, file: str) -> None:
    """Note that the series is in this file; `owners` also knows the series that are left out."""
    if identifier not in owners:
        owners[identifier] = file
        return
    before = owners[identifier]
    raise DataError(
        f"series {identifier!r} is in this file {'twice' if before == file else f'and in {before}'}",
        expected="each series once, all its rows in one file",
        remedy="join the rows, rename one of the series, or set data.layout=symbols if each file is a series",
        file=file,
        column=identifier,
    )


def _source_columns(columns: Sequence[Columns]) -> list[dict[str, str]]:
    types: dict[str, str] = {}
    for one in columns:
        for name, type_ in one.types.items():
            types.setdefault(name, type_)
    return [{"name": name, "type": type_} for name, type_ in types.items()]


def _file_share(report: Progress, file: SourceFile, sizes: list[int], number: int) -> Callable[[float], None]:
    done, total = sum(sizes[:number]), max(1, sum(sizes))
    return lambda share: report(f"reading {file.path.name}", (done + share * sizes[number]) / total)


def _check_any(n_series: int, settings: DataSettings) -> None:
    if n_series == 0:
        raise DataError(
            "every series was left out",
            expected="at least one series that has values and changes",
            remedy="check the data, or set data.constant_series=keep",
            file=settings.source,
        )


def _pointer(settings: DataSettings, home: Home) -> Path:
    return home.snapshots / f"source-{source_key(settings)}.json"


def _remember(settings: DataSettings, home: Home, fingerprint: str) -> None:
    pointer = _pointer(settings, home)
    content = json.dumps({"source": settings.source, "snapshot": fingerprint}) + "\n"
    if not pointer.exists() or pointer.read_text(encoding="utf-8") != content:
        write_atomically(pointer, content)


def _check_vanished(settings: DataSettings, home: Home, seen: dict[str, str], variates: Sequence[str]) -> None:
    pointer = _pointer(settings, home)
    if settings.vanished == "accept" or not pointer.is_file():
        return
    folder = home.snapshots / str(json.loads(pointer.read_bytes())["snapshot"])
    if not (folder / MANIFEST_FILE).is_file():
        return
    last = open_snapshot(folder)
    gone = sorted(set(last.manifest.variates) - set(variates)) or sorted(set(last.read_ids()) - set(seen))
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise DataError(
            f"{gone[0]!r}{more} vanished since the last snapshot of this source ({last.fingerprint[:12]})",
            expected="every column and series of the last snapshot",
            remedy="bring it back, or set data.vanished=accept",
            file=settings.source,
            column=gone[0],
        )


def _no_progress(_what: str, _share: float) -> None:
    return None


def _number(value: float) -> float | None:
    return None if value != value else value  # noqa: PLR0124
