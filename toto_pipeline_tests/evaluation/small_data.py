"""A small data set with what evaluation asks of training data, and forecasters to score on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from toto_pipeline.models.forecaster import QUANTILES

SEASON, HORIZON, WINDOWS, CONTEXT = 24, 12, 4, 48


@dataclass(frozen=True)
class SmallData:
    manifest: SimpleNamespace
    evaluation_file: Path

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.evaluation_file.read_bytes()).hexdigest()


def wave(steps: int, seed: int, *, start: int = 0) -> np.ndarray:
    """A daily wave with noise, float32."""
    random = np.random.default_rng(seed)
    t = np.arange(start, start + steps)
    return (10 + 5 * np.sin(2 * np.pi * t / SEASON + seed) + random.normal(0, 1, steps)).astype(np.float32)


def small_data(
    folder: Path,
    series: Mapping[str, np.ndarray],
    *,
    starts: Mapping[str, int] | None = None,
    steps: int = 300,
    variates: tuple[str, ...] = ("target",),
    frequency: str = "h",
    windows: int = WINDOWS,
) -> SmallData:
    """Write `series` (name to (steps,) or (variates, steps)), each beginning `starts` steps after the first."""
    grid = pd.date_range("2024-01-01", periods=steps, freq=frequency).as_unit("us")
    names = list(series)
    values = [np.atleast_2d(series[name]) for name in names]
    begin = [(starts or {}).get(name, 0) for name in names]
    stamps = [grid[first : first + v.shape[1]].to_numpy() for first, v in zip(begin, values, strict=True)]
    columns = {
        "id": pa.array(names),
        "timestamp": pa.array(stamps, pa.list_(pa.timestamp("us"))),
        **{name: pa.array([v[i] for v in values], pa.list_(pa.float32())) for i, name in enumerate(variates)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "evaluation.parquet")
    return SmallData(
        manifest=SimpleNamespace(
            frequency=frequency,
            season=SEASON,
            context_length=CONTEXT,
            horizon=HORIZON,
            test_windows=windows,
            variates=list(variates),
            test_start=grid[steps - windows * HORIZON].isoformat(),
        ),
        evaluation_file=folder / "evaluation.parquet",
    )


class Steady:
    """Forecasts the mean of the history plus `bias`, with quantiles `width` apart; remembers what it was given."""

    def __init__(self, bias: float = 0.0, width: float = 0.5) -> None:
        self.bias, self.width = bias, width
        self.batches: list[np.ndarray] = []

    @property
    def name(self) -> str:
        return f"steady_{self.bias}"

    def forecast(self, history_BVT: np.ndarray, horizon: int) -> np.ndarray:
        self.batches.append(history_BVT.copy())
        mean = np.nan_to_num(np.nanmean(history_BVT, axis=-1)) + self.bias
        spread = (np.array(QUANTILES) - 0.5) * self.width
        return (np.repeat(mean[..., None], horizon, axis=-1)[..., None] + spread).astype(np.float32)


class Broken(Steady):
    def forecast(self, history_BVT: np.ndarray, horizon: int) -> np.ndarray:
        forecast = super().forecast(history_BVT, horizon)
        forecast[-1, 0, 2, 3] = np.nan
        return forecast
