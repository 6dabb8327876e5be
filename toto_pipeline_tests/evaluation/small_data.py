"""A small data set with what evaluation asks of training data, and forecasters to score on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from toto_pipeline.evaluation.metrics import METRICS
from toto_pipeline.evaluation.windows import open_task
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
    chunk: int = 1000,
) -> SmallData:
    """Write `series` (name to (steps,) or (variates, steps)), each beginning `starts` steps after the first.

    `chunk` series are a row group of the file.
    """
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
    pq.write_table(pa.table(columns), folder / "evaluation.parquet", row_group_size=chunk)
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


def fev_summary(data: SmallData, forecaster: Any, cache: Path) -> dict[str, float]:
    """What fev says of a forecaster that is asked for one series and window at a time, with all series in one task."""
    columns = ["target"] if len(data.manifest.variates) == 1 else data.manifest.variates
    length = max(data.manifest.context_length, getattr(forecaster, "history_length", 0))
    predictions = []
    with open_task(data, cache) as task:
        for window in task.iter_windows(num_proc=0):
            past, _ = window.get_input_data()
            answers = []
            for row in past:
                history = np.full((1, len(columns), length), np.nan, dtype=np.float32)
                values = np.stack([row[name] for name in columns])[:, -length:]
                history[0, :, length - values.shape[1] :] = values
                answers.append(forecaster.forecast(history, task.horizon)[0])
            predictions.append(_fev_predictions(task.target_columns, columns, np.stack(answers)))
        summary = task.evaluation_summary(predictions, model_name="any")
    return {metric: float(summary[metric]) for metric in METRICS}


def _fev_predictions(targets: Sequence[str], columns: Sequence[str], forecast_NVHQ: np.ndarray) -> Any:
    tables = {}
    for target in targets:
        own = forecast_NVHQ[:, columns.index(target)].astype(np.float64)
        levels = {str(level): list(own[..., place]) for place, level in enumerate(QUANTILES)}
        tables[target] = datasets.Dataset.from_dict({"predictions": levels["0.5"], **levels})
    return datasets.DatasetDict(tables)


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
