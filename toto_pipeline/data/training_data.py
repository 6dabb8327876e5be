"""Training data: every series on a regular grid in one memory-mapped file, and where train, validation and test part.

    values.float32       the series one after the other, each (variates, length) row by row
    items.parquet        a row a series: id, offset in values.float32, start, length, train_end, validation_end
    evaluation.parquet   the same series as fev reads them: id, timestamp (list), target or the variates (lists)
    manifest.json

The folder's name is the hash of the snapshot's fingerprint and the settings. Series are sorted by id. Missing values
are NaN and stay so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toto_pipeline.data.frequency import Grid, parse_frequency
from toto_pipeline.data.preparation import lay_out
from toto_pipeline.data.series import Float32Array, Int64Array
from toto_pipeline.data.snapshot import MANIFEST_FILE, Snapshot
from toto_pipeline.data.staging import publish, staging_folder
from toto_pipeline.data.training_files import (
    EVALUATION_FILE,
    ITEMS_FILE,
    SCHEMA,
    VALUES_FILE,
    TrainingDataManifest,
)
from toto_pipeline.errors import DataError
from toto_pipeline.home import Home, storage_errors
from toto_pipeline.settings.base import fingerprint
from toto_pipeline.settings.data import PreparationSettings

__all__ = ["TrainingData", "TrainingDataManifest", "picture", "prepare_training_data"]

Progress = Callable[[str, float], None]


class TrainingData:
    """Opened training data. Pickles as its folder, so that loader processes map the file by themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        items = pq.read_table(folder / ITEMS_FILE)
        self.ids: list[str] = items.column("id").to_pylist()
        self.lengths = _integers(items, "length")
        self.train_ends = _integers(items, "train_end")
        self.validation_ends = _integers(items, "validation_end")
        self.starts: NDArray[np.datetime64] = items.column("start").to_numpy().astype("datetime64[us]")
        self._offsets = _integers(items, "offset")

    @classmethod
    def open(cls, folder: Path) -> TrainingData:
        """The training data in `folder`.

        Raises:
            DataError: there is none.
        """
        return cls(Path(folder))

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def evaluation_file(self) -> Path:
        """One row a series, as fev reads it: id, timestamp, and `target` or a list for each variate."""
        return self.folder / EVALUATION_FILE

    def values(self, series: int) -> Float32Array:
        """(variates, length) of a series, read from the memory map as it is used."""
        offset, length, variates = int(self._offsets[series]), int(self.lengths[series]), len(self.manifest.variates)
        return self._map[offset : offset + variates * length].reshape(variates, length)

    def timestamps(self, series: int) -> NDArray[np.datetime64]:
        """(length,) datetime64[us] of a series' steps."""
        start = int(self.starts[series].astype(np.int64))
        return self._grid.times_from(start, int(self.lengths[series])).view("datetime64[us]")

    def window(self, series: int, end: int, length: int) -> Float32Array:
        """The `length` steps before step `end` of a series: (variates, length), NaN where the series is not."""
        values = self.values(series)
        window = np.full((values.shape[0], length), np.nan, dtype=np.float32)
        start = end - length
        first, last = max(0, start), min(values.shape[1], end)
        if first < last:
            window[:, first - start : last - start] = values[:, first:last]
        return window

    @cached_property
    def _map(self) -> Float32Array:
        return np.memmap(self.folder / VALUES_FILE, dtype=np.float32, mode="r")

    @cached_property
    def _grid(self) -> Grid:
        return parse_frequency(self.manifest.frequency)

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)  # type: ignore[misc]


def prepare_training_data(
    snapshot: Snapshot, settings: PreparationSettings, home: Home, progress: Progress | None = None
) -> TrainingData:
    """Regularise the series of a snapshot, split them by time and lay them out for training.

    Raises:
        DataError: off-grid timestamps or a series too short, and the settings do not allow to mend it.
        ConfigError: `settings.frequency` is not a frequency.
        StorageError: the home cannot be written.
    """
    name = fingerprint(
        {"schema": SCHEMA, "snapshot": snapshot.fingerprint, "settings": settings.model_dump(mode="json")}
    )
    place = home.training_data / name
    if (place / MANIFEST_FILE).is_file():
        return TrainingData.open(place)
    with storage_errors(home.training_data), staging_folder(home.training_data) as folder:
        manifest = lay_out(snapshot, settings, name, folder, progress or (lambda _what, _share: None))
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        publish(folder, place)
    return TrainingData.open(place)


def picture(data: TrainingData) -> bytes:
    """A PNG of some series with the spans of training, validation and test."""
    from toto_pipeline.data.pictures import draw_splits

    return draw_splits(data)


def _read_manifest(folder: Path) -> TrainingDataManifest:
    file = folder / MANIFEST_FILE
    try:
        values: dict[str, Any] = json.loads(file.read_bytes())
        return TrainingDataManifest(**{one.name: values[one.name] for one in fields(TrainingDataManifest)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is not the manifest of training data ({type(error).__name__}: {error})",
            expected="a folder that prepare_training_data wrote",
            remedy="prepare the training data again",
            file=file,
        ) from error


def _integers(table: Any, name: str) -> Int64Array:
    values: Int64Array = table.column(name).to_numpy().astype(np.int64)
    return values
