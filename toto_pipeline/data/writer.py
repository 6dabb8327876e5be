"""Writes the series of a snapshot as they come, and sums up what they are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toto_pipeline.data.frequency import count_steps, infer_frequency, largest_regular_step
from toto_pipeline.data.list_files import GROUP_VALUES, TIMESTAMP, ListFileWriter, list_arrays, list_fields
from toto_pipeline.data.series import Int64Array, Series, iso

SERIES_FILE = "series.parquet"
_EXAMPLES = 64


@dataclass(frozen=True)
class Summary:
    fingerprint: str
    n_series: int
    n_rows: int
    n_values: int
    n_missing: int
    n_gaps: int
    start: str
    end: str
    frequency: str | None


class SeriesWriter:
    """Appends series to `series.parquet`. Row groups are bounded, so that readers need little memory."""

    def __init__(self, folder: Path, variates: Sequence[str]) -> None:
        self._variates = list(variates)
        self._schema = _schema(variates)
        self._file = (folder / SERIES_FILE).open("wb")
        self._writer = ListFileWriter(self._file, self._schema)
        self._pending: list[Series] = []
        self._pending_values = 0
        self._digests: dict[str, bytes] = {}
        self._steps: Counter[int] = Counter()
        self._examples: list[Int64Array] = []
        self._times = _Times()
        self._rows = self._missing = 0
        self._start, self._end = np.iinfo(np.int64).max, np.iinfo(np.int64).min

    def add(self, series: Series) -> None:
        missing = np.isnan(series.values)
        n_missing = int(missing.sum())
        if n_missing:
            series.values[missing] = np.nan  # One bit pattern for all, so that equal data has equal hashes.
        self._times.look_at(series.timestamps)
        self._steps.update(self._times.steps)
        if len(self._examples) < _EXAMPLES:
            self._examples.append(series.timestamps)
        self._digests[series.id] = self._digest(series)
        self._rows += len(series.timestamps)
        self._missing += n_missing
        if len(series.timestamps):
            self._start = min(self._start, int(series.timestamps[0]))
            self._end = max(self._end, int(series.timestamps[-1]))
        self._pending.append(series)
        self._pending_values += series.values.size
        if self._pending_values >= GROUP_VALUES:
            self._flush()

    def __enter__(self) -> SeriesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.abandon()
        self._file.close()

    def finish(self) -> Summary:
        """Write what is waiting and sum up."""
        self._flush()
        self._writer.close()
        self._file.close()
        frequency = infer_frequency(self._steps, self._examples)
        regular = 0 if frequency is None else largest_regular_step(frequency)
        return Summary(
            fingerprint=self._fingerprint(),
            n_series=len(self._digests),
            n_rows=self._rows,
            n_values=self._rows * len(self._variates),
            n_missing=self._missing,
            n_gaps=sum(count for step, count in self._steps.items() if step > regular),
            start=iso(self._start) if self._rows else "",
            end=iso(self._end) if self._rows else "",
            frequency=frequency,
        )

    def _digest(self, series: Series) -> bytes:
        digest = hashlib.sha256(self._times.digest)
        digest.update(np.ascontiguousarray(series.values).data)
        return digest.digest()

    def _fingerprint(self) -> str:
        head = json.dumps(["toto-pipeline snapshot 1", self._variates])
        digest = hashlib.sha256(head.encode())
        for identifier in sorted(self._digests):
            name = identifier.encode()
            digest.update(len(name).to_bytes(8, "little") + name + self._digests[identifier])
        return digest.hexdigest()

    def _flush(self) -> None:
        if not self._pending:
            return
        pending, self._pending, self._pending_values = self._pending, [], 0
        self._writer.write(_table(pending, self._schema))


class _Times:
    """What is known of the timestamps looked at last; series that share theirs are common."""

    def __init__(self) -> None:
        self._known: Int64Array | None = None
        self.digest = b""
        self.steps: Counter[int] = Counter()

    def look_at(self, timestamps: Int64Array) -> None:
        if self._known is not None and (self._known is timestamps or np.array_equal(self._known, timestamps)):
            return
        self._known = timestamps
        self.digest = hashlib.sha256(np.ascontiguousarray(timestamps).data).digest()
        self.steps = count_steps(timestamps)


def first_row(series: Series) -> int | None:
    """The row of the first step, if the others follow it row by row."""
    rows = series.rows
    contiguous = len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
    return int(rows[0]) if contiguous else None


def observed_span(series: Series) -> tuple[int | None, int | None]:
    """Timestamps of the first and the last step that has a value."""
    if len(series.timestamps) == 0:
        return None, None
    if not (np.isnan(series.values[:, 0]).all() or np.isnan(series.values[:, -1]).all()):
        return int(series.timestamps[0]), int(series.timestamps[-1])
    places = np.flatnonzero(~np.isnan(series.values).all(axis=0))
    return int(series.timestamps[places[0]]), int(series.timestamps[places[-1]])


def _schema(variates: Sequence[str]) -> Any:
    head = [
        pa.field("id", pa.string()),
        pa.field("source_file", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("n_rows", pa.int64()),
        pa.field("start", TIMESTAMP),
        pa.field("end", TIMESTAMP),
    ]
    return pa.schema(head + list_fields(variates))


def _table(pending: list[Series], schema: Any) -> Any:
    spans = [observed_span(series) for series in pending]
    columns = [
        pa.array([series.id for series in pending]),
        pa.array([series.file for series in pending]),
        pa.array([first_row(series) for series in pending], pa.int64()),
        pa.array([len(series.timestamps) for series in pending], pa.int64()),
        pa.array([span[0] for span in spans], TIMESTAMP),
        pa.array([span[1] for span in spans], TIMESTAMP),
        *list_arrays([series.timestamps for series in pending], [series.values for series in pending]),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
