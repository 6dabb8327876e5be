"""How good earlier forecasts were, now that actual values have come, beside what the evaluation promised.

A forecast is compared with a newer snapshot step by step. Scores are those of `evaluation.metrics`, over the steps that
are known by now; MASE and SQL are scaled by the history before the forecast. Drift is a score divided by what the
model's evaluation promised: 1 is as promised, 2 is twice the error.

Shapes: N series, V variates, T steps of history, H horizon, Q levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.data.frequency import parse_frequency
from toto_pipeline.data.regular import OffGridError, regularise, series_grid
from toto_pipeline.errors import DataError
from toto_pipeline.evaluation.metrics import METRICS, fraction, group_mean, mean_ratio, score, seasonal_scale
from toto_pipeline.forecasting import read_series
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.promotion.forecasts import KeptForecast

if TYPE_CHECKING:
    from toto_pipeline.data.frequency import Grid
    from toto_pipeline.data.snapshot import Snapshot

LEAST_KNOWN = 0.5
"""Share of a forecast's values that must be known before its drift means something: the first steps are the easiest."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Scores of one forecast: MASE, SQL, WQL, WAPE, coverage_80; NaN where undefined.

    known: how many of the forecast's `rows` have an actual value by now.
    """

    forecast: KeptForecast
    known: int
    scores: Mapping[str, float]

    @property
    def known_share(self) -> float:
        return self.known / max(1, self.forecast.rows)

    def drift(self, metric: str) -> float:
        """The score over what was promised; NaN where either is unknown."""
        promised = self.forecast.promised.get(metric, math.nan)
        return self.scores[metric] / promised if promised else math.nan


def score_forecasts(forecasts: Sequence[KeptForecast], snapshot: Snapshot, most: int = 10) -> list[Accuracy]:
    """The accuracy of the newest `most` forecasts that some actual value has come for, newest first.

    Raises:
        DataError: the snapshot's timestamps lie off the grid that the forecast was made on.
    """
    found: list[Accuracy] = []
    for forecast in forecasts:
        if len(found) == most:
            break
        if forecast.snapshot != snapshot.fingerprint and forecast.end < snapshot.manifest.end:
            accuracy = score_forecast(forecast, snapshot)
            found += [accuracy] if accuracy.known else []
    return found


def score_forecast(forecast: KeptForecast, snapshot: Snapshot) -> Accuracy:
    """Compare a forecast with the values that a snapshot has for its steps."""
    parts = list(_compared(forecast, snapshot))
    if not parts:
        return Accuracy(forecast=forecast, known=0, scores=dict.fromkeys((*METRICS, "coverage_80"), math.nan))
    actual_NVH, forecast_NVHQ, scale_NV = (np.stack(part) for part in zip(*parts, strict=True))
    columns = score(actual_NVH, forecast_NVHQ, scale_NV)
    return Accuracy(forecast=forecast, known=int(columns["steps"].sum()), scores=_aggregate(columns))


def settled(accuracies: Sequence[Accuracy], version: str) -> Accuracy | None:
    """The newest forecast of a version of which enough is known for its drift to mean something."""
    return next((one for one in accuracies if one.forecast.version == version and one.known_share >= LEAST_KNOWN), None)


def _compared(forecast: KeptForecast, snapshot: Snapshot) -> Iterator[tuple[Floats, NDArray[np.float32], Floats]]:
    """Actual values (V, H), quantiles (V, H, Q) and scale (V,) of each series that both have."""
    grid = parse_frequency(forecast.frequency)
    variates = snapshot.manifest.variates
    table = _read(forecast)
    for identifier, timestamps, values_VN in read_series(snapshot):
        made = [table.get((identifier, variate)) for variate in variates]
        if any(one is None for one in made):
            continue
        times_H = made[0][0]  # type: ignore[index]
        quantiles_VHQ = np.stack([one[1] for one in made])  # type: ignore[index]
        actual_VH, history_VT = _on_grid(forecast, snapshot, grid, timestamps, values_VN, times_H)
        scale_V = np.array([_scale(row, forecast.season) for row in history_VT])
        yield actual_VH, quantiles_VHQ, scale_V


def _on_grid(
    forecast: KeptForecast,
    snapshot: Snapshot,
    grid: Grid,
    timestamps: NDArray[np.int64],
    values_VN: NDArray[np.float32],
    times_H: NDArray[np.int64],
) -> tuple[Floats, Floats]:
    """The values at the forecast's steps, NaN where there is none, and those before."""
    policy: Any = forecast.irregular
    own = series_grid(grid, int(timestamps[0]), policy)
    try:
        values_VT, _ = regularise(timestamps, values_VN, own, policy)
    except OffGridError:
        raise DataError(
            f"its timestamps do not lie on the grid of {forecast.frequency} of the forecast {forecast.id}",
            expected="data at the step that the forecast was made for",
            remedy="set preparation.irregular=mean and retrain, or correct data.source",
            file=snapshot.manifest.source,
        ) from None
    ordinals = own.ordinal(times_H)
    places = ordinals - own.ordinal(timestamps[:1])[0]
    known = (places >= 0) & (places < values_VT.shape[1]) & (own.time(ordinals) == times_H)
    actual_VH = np.where(known, values_VT[:, np.where(known, places, 0)], np.nan).astype(np.float64)
    return actual_VH, values_VT[:, : max(0, int(places[0]))].astype(np.float64)


def _scale(history_T: Floats, season: int) -> float:
    return float(seasonal_scale(history_T, np.array([len(history_T)]), season)[0])


def _read(forecast: KeptForecast) -> dict[tuple[str, str], tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Timestamps (H,) in microseconds and quantiles (H, Q) by id and variate."""
    import pyarrow.parquet as pq

    table = pq.read_table(forecast.table, partitioning=None)
    times = table.column("timestamp").to_numpy().astype("datetime64[us]").astype(np.int64)
    levels = np.stack([table.column(f"{level:.1f}").to_numpy() for level in QUANTILES], axis=1)
    step = forecast.horizon
    keys = zip(table.column("id").to_pylist()[::step], table.column("variate").to_pylist()[::step], strict=True)
    return {
        key: (times[first : first + step], levels[first : first + step])
        for key, first in zip(keys, range(0, len(times), step), strict=True)
    }


def _aggregate(columns: Mapping[str, Floats]) -> dict[str, float]:
    """As an evaluation of one window is added up: over the series of each variate, then the mean of the variates."""
    sums = {metric: [part.sum(axis=0) for part in fraction(columns, metric)] for metric in METRICS}
    coverage = columns["coverage_80"].ravel()
    one = np.zeros(len(coverage), dtype=np.int64)
    return {
        **{metric: float(mean_ratio(*parts)) for metric, parts in sums.items()},
        "coverage_80": float(group_mean(coverage, one, 1, columns["steps"].ravel())[0]),
    }
