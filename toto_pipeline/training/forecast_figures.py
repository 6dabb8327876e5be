"""Figures of an epoch's validation forecasts, the same however many processes made them.

predicted_vs_actual   median forecasts against what came, at most 2000 points: the same steps after every epoch
forecast/best         quantile forecasts of the window and variate with the lowest MASE of the epoch,
forecast/median       the middle one,
forecast/worst        and the highest, each beside its history and what came
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.events import figures
from toto_pipeline.events.figures import Figure
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.training.distributed import World
from toto_pipeline.training.validation import Forecasts, scaled_errors
from toto_pipeline.training.windows import Place, window_random

MOST_POINTS = 2000
MOST_BYTES = 64 << 20
"""Forecasts and histories are kept in memory until the epoch ends; beyond this, only every n-th window is."""
_SHOWN_HISTORY = 4
"""How many times as long as the forecast."""
_POINTS_EPOCH = 2**32 - 2
_MEDIAN = len(QUANTILES) // 2

Key = tuple[int, int]
"""Number of a validation window, and of a variate in it."""


@dataclass(frozen=True)
class Shown:
    """The end of a history, what came, and the forecast: (..., time), (..., horizon), (..., horizon, levels).

    Of all variates of a window, or of one.
    """

    history: NDArray[np.float32]
    actual: NDArray[np.float32]
    forecast: NDArray[np.float32]


class KeptForecasts:
    """What an epoch's validation forecasts were, until figures are made of them; a `Watch` of the validation."""

    def __init__(self, data: TrainingData, places: list[Place], seed: int) -> None:
        self._data = data
        self._places = places
        self._seed = seed
        self._horizon = data.manifest.horizon
        self._kept_history = min(data.manifest.context_length, _SHOWN_HISTORY * max(self._horizon, 16))
        every = max(1, -(-len(places) // min(MOST_POINTS, self._most_windows())))
        self._numbers = {place: number for number, place in enumerate(places) if number % every == 0}
        self._scores: dict[Key, float] = {}
        self._windows: dict[int, Shown] = {}

    def __call__(self, forecasts: Forecasts) -> None:
        errors = scaled_errors(forecasts, self._data.manifest.season)
        for row, place in enumerate(forecasts.places):
            number = self._numbers.get(place)
            if number is not None:
                self._scores |= {(number, v): float(e) for v, e in enumerate(errors[row]) if np.isfinite(e)}
                self._windows[number] = Shown(
                    forecasts.history_BVT[row, :, -self._kept_history :].copy(),
                    forecasts.actual_BVH[row].copy(),
                    forecasts.forecast_BVHQ[row].copy(),
                )

    def figures(self, world: World) -> list[tuple[str, Figure]]:
        """Figures by name, of the forecasts of all processes; to be asked for by all of them at once."""
        scores = {key: score for each in world.gather(self._scores) for key, score in each.items()}
        chosen = best_median_worst(scores)
        mine = {key: self._variate(*key) for key in chosen.values() if key[0] in self._windows}
        shown = {key: each for part in world.gather(mine) for key, each in part.items()}
        points = {number: pairs for part in world.gather(self._points()) for number, pairs in part.items()}
        found = [("predicted_vs_actual", _scatter([points[number] for number in sorted(points)]))] if points else []
        for name, key in chosen.items():
            found.append((f"forecast/{name}", self._forecast(key, scores[key], shown[key])))
        return found

    def _most_windows(self) -> int:
        variates, levels = len(self._data.manifest.variates), len(QUANTILES)
        window_bytes = 4 * variates * (self._kept_history + self._horizon * (1 + levels))
        return max(3, MOST_BYTES // window_bytes)

    def _variate(self, number: int, variate: int) -> Shown:
        window = self._windows[number]
        return Shown(window.history[variate], window.actual[variate], window.forecast[variate])

    def _points(self) -> dict[int, NDArray[np.float32]]:
        """By the number of each window that this process has seen, (2, points): what came, and the median forecast."""
        found = {}
        for number, window in self._windows.items():
            pairs = np.stack([window.actual.ravel(), window.forecast[..., _MEDIAN].ravel()])
            share = min(pairs.shape[1], MOST_POINTS // len(self._numbers))
            random = window_random(self._seed, _POINTS_EPOCH, number)
            pairs = pairs[:, np.sort(random.choice(pairs.shape[1], share, replace=False))]
            found[number] = pairs[:, np.isfinite(pairs).all(axis=0)]
        return found

    def _forecast(self, key: Key, score: float, shown: Shown) -> Figure:
        number, variate = key
        place, manifest = self._places[number], self._data.manifest
        name = self._data.ids[place.series] + (f" {manifest.variates[variate]}" if len(manifest.variates) > 1 else "")
        start = self._data.timestamps(place.series)[place.end - self._horizon].astype("datetime64[m]")
        quantiles = dict(zip(QUANTILES, shown.forecast.T, strict=True))
        return figures.forecast(f"{name} from {start}: MASE {score:.3g}", shown.history, shown.actual, quantiles)


def best_median_worst(scores: dict[Key, float]) -> dict[str, Key]:
    """The keys with the lowest, the middle and the highest score; of equal ones the first. None where there is none."""
    ordered = sorted(scores, key=lambda key: (scores[key], key))
    if not ordered:
        return {}
    return {"best": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "worst": ordered[-1]}


def _scatter(points: list[NDArray[np.float32]]) -> Figure:
    actual, predicted = np.concatenate(points, axis=1)
    title = "Median forecasts of the validation windows"
    return figures.scatter(title, actual, predicted, x_label="actual", y_label="predicted", diagonal=True)
