"""What the page draws: curves of a run's event log, thinned so that the page stays small.

A curve of a million steps is cut into buckets and each bucket keeps its lowest and its highest point, so that a spike
is never smoothed away. Numbers are rounded to six significant digits, missing and non-finite ones become null.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.events.schema import Event, number

BUCKETS = 400
"""Each curve keeps at most twice so many points."""

Floats = NDArray[np.float64]
Curve = dict[str, list[float | None]]
EPOCH_FIELDS = {
    "train_loss": "train_loss",
    "validation_loss": "validation_loss",
    "epoch_windows_per_second": "windows_per_second",
}
STEP_FIELDS = ("loss", "learning_rate", "gradient_norm", "seconds", "data_seconds")


@dataclass(frozen=True)
class Steps:
    """The steps of a run in order, one array of a field each; a later attempt's step stands for an earlier's."""

    step: Floats
    fields: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.step)


def steps(events: Iterable[Event]) -> Steps:
    rows = [
        (float(event["step"]), *(number(event.get(name)) for name in STEP_FIELDS))
        for event in events
        if event["type"] == "step"
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 1 + len(STEP_FIELDS))
    _, last = np.unique(table[::-1, 0], return_index=True)
    kept = table[len(table) - 1 - last] if len(table) else table
    return Steps(kept[:, 0], {name: kept[:, 1 + index] for index, name in enumerate(STEP_FIELDS)})


def curve(x: Floats, y: Floats, buckets: int = BUCKETS) -> Curve:
    """`x` and `y` as lists for JSON, thinned."""
    kept = thinned(y, buckets)
    return {"x": plain(x[kept]), "y": plain(y[kept])}


def thinned(y: Floats, buckets: int = BUCKETS) -> NDArray[np.intp]:
    """Indices to keep: all of a short curve, else the first, the last, each bucket's extremes and first gap."""
    if len(y) <= 2 * buckets:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    edges = np.linspace(0, len(y), buckets + 1).astype(int)
    for start, end in itertools.pairwise(edges):
        part = y[start:end]
        finite = np.isfinite(part)
        if finite.any():
            kept |= {start + int(np.where(finite, part, np.inf).argmin())}
            kept |= {start + int(np.where(finite, part, -np.inf).argmax())}
        if not finite.all():
            kept |= {start + int(finite.argmin())}
    return np.array(sorted(kept), dtype=np.intp)


def plain(values: Iterable[float]) -> list[float | None]:
    return [rounded(float(value)) for value in values]


def rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def training_curves(recorded: Steps, epochs: list[Event], batch_size: int) -> dict[str, Any]:
    """Curves over steps and over epochs, as the page's script reads them."""
    fields = recorded.fields
    with np.errstate(divide="ignore", invalid="ignore"):
        throughput = np.where(fields["seconds"] > 0, batch_size / fields["seconds"], np.nan)
    curves: dict[str, Any] = {
        "step_loss": curve(recorded.step, fields["loss"]),
        "learning_rate": curve(recorded.step, fields["learning_rate"]),
        "gradient_norm": curve(recorded.step, fields["gradient_norm"]),
        "windows_per_second": curve(recorded.step, throughput),
    }
    places = [float(event["step"]) for event in epochs]
    for key, name in EPOCH_FIELDS.items():
        curves[key] = {"x": places, "y": plain(number(event.get(name)) for event in epochs)}
    return curves


def forecast_pictures(forecasts: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation's forecasts, every number rounded; models and series in the order they were written."""
    return {
        "quantiles": plain(number(level) for level in forecasts["quantiles"]),
        "series": [_picture(series) for series in forecasts["series"]],
    }


def _picture(series: Mapping[str, Any]) -> dict[str, Any]:
    variate = series.get("variate")
    return {
        "id": str(series["id"]),
        "variate": None if variate is None else str(variate),
        "mase": rounded(number(series.get("mase"))),
        "times": [str(time) for time in (*series["timestamps_history"], *series["timestamps"])],
        "history": plain(number(value) for value in series["history"]),
        "actual": plain(number(value) for value in series["actual"]),
        "forecasts": {
            str(model): [plain(number(value) for value in step) for step in values]
            for model, values in series["forecasts"].items()
        },
    }
