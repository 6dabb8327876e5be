"""Small data sets on disk, and settings for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toto_pipeline.data.snapshot import Snapshot, take_snapshot
from toto_pipeline.data.training_data import TrainingData, prepare_training_data
from toto_pipeline.home import Home
from toto_pipeline.settings.data import DataSettings, PreparationSettings

SMALL = {"context_length": 16, "horizon": 4, "validation_windows": 1, "test_windows": 2}


def times(n: int, start: str = "2024-01-01", freq: str = "h") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=n, freq=freq)


def wide(n: int = 60, columns: tuple[str, ...] = ("a", "b"), **where: str) -> pd.DataFrame:
    """A timestamp column and series that count up, each from another number."""
    values = {name: np.arange(n, dtype=float) + 100 * number for number, name in enumerate(columns)}
    return pd.DataFrame({"timestamp": times(n, **where), **values})


def long(n: int = 60, ids: tuple[str, ...] = ("a", "b")) -> pd.DataFrame:
    frame = wide(n, ids).melt("timestamp", var_name="item_id", value_name="target")
    return frame[["item_id", "timestamp", "target"]]


def write(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def write_text(text: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def snap(source: Path | str, home: Home, **settings: Any) -> Snapshot:
    return take_snapshot(DataSettings(source=str(source), **settings), home)


def prepare(snapshot: Snapshot, home: Home, **settings: Any) -> TrainingData:
    return prepare_training_data(snapshot, PreparationSettings(**(SMALL | settings)), home)


def read(snapshot: Snapshot) -> dict[str, pd.DataFrame]:
    """The series of a snapshot as frames, by id."""
    table = pd.read_parquet(snapshot.file)
    return {
        row["id"]: pd.DataFrame({name: row[name] for name in ("timestamp", *snapshot.manifest.variates)})
        for _, row in table.iterrows()
    }


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
