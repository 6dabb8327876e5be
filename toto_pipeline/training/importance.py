"""How much a forecast owes to each variate: permutation importance (Breiman, 2001; Fisher et al., 2019).

The history of one variate is taken from other validation windows, those of the others are left, and the importance of
the variate is by how much the scaled quantile loss of the forecasts of all variates rises, in percent. Scaled means
divided by the error of the seasonal naive forecast within the history, as MASE is, so that variates of any unit count
alike.

The cost is bounded: all forecasts together are of no more windows than half of those that are validated (which takes
two passes over each), or of two windows for each variate where that is more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.events import figures
from toto_pipeline.events.figures import Figure
from toto_pipeline.training.validation import mean_observed, quantile_losses, seasonal_errors
from toto_pipeline.training.windows import Place

MOST_VARIATES = 24
"""Of more variates so many are drawn; a figure has room for as many bars."""
_SHARE_OF_WINDOWS = 0.5
_FEWEST_WINDOWS = 2
_MOST_WINDOWS = 64

Forecast = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""As `Forecaster.forecast`."""


@dataclass(frozen=True)
class Plan:
    """Which variates are permuted, over which windows."""

    variates: list[int]
    places: list[Place]

    @property
    def windows(self) -> int:
        """Windows to be forecast: every one as it is, and once for each variate."""
        return len(self.places) * (1 + len(self.variates))


def plan(variates: int, places: list[Place], random: np.random.Generator) -> Plan | None:
    """What an importance of so many variates is computed from; None where there is nothing to be compared."""
    if variates < 2 or len(places) < _FEWEST_WINDOWS:
        return None
    chosen = np.sort(random.choice(variates, size=min(variates, MOST_VARIATES), replace=False))
    affordable = int(len(places) * _SHARE_OF_WINDOWS) // (1 + len(chosen))
    count = min(max(affordable, _FEWEST_WINDOWS), _MOST_WINDOWS, len(places))
    spread = [places[index * len(places) // count] for index in range(count)]
    return Plan(chosen.tolist(), spread)


def importance(
    forecast: Forecast, data: TrainingData, plan: Plan, random: np.random.Generator, *, batch_size: int
) -> dict[str, float]:
    """The rise of the scaled quantile loss in percent, by the name of each variate; the largest first.

    NaN where no loss can be told, because nothing came or all histories are constant.
    """
    manifest = data.manifest
    whole = np.stack([data.window(p.series, p.end, manifest.context_length + manifest.horizon) for p in plan.places])
    history_BVT, actual_BVH = whole[..., : manifest.context_length], whole[..., manifest.context_length :]
    scale_BV = seasonal_errors(history_BVT, manifest.season)
    order = exchanged(len(plan.places), random)
    rows = len(plan.places)
    losses = np.empty((plan.windows, whole.shape[1]), dtype=np.float64)
    for first in range(0, plan.windows, batch_size):
        numbers = np.arange(first, min(first + batch_size, plan.windows))
        windows = numbers % rows
        histories = history_BVT[windows]
        for row, number, window in zip(histories, numbers, windows, strict=True):
            if number >= rows:
                variate = plan.variates[number // rows - 1]
                row[variate] = history_BVT[order[window], variate]
        answers = forecast(histories, manifest.horizon)
        losses[numbers] = mean_observed(quantile_losses(actual_BVH[windows], answers)) / scale_BV[windows]
    usual, *permuted = losses.reshape(-1, rows, whole.shape[1])
    rises = {manifest.variates[v]: _rise(usual, each) for v, each in zip(plan.variates, permuted, strict=True)}
    return dict(sorted(rises.items(), key=lambda item: (-np.nan_to_num(item[1], nan=-np.inf), item[0])))


def exchanged(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """A permutation in which nothing stays in its place."""
    cycle = random.permutation(count)
    order = np.empty(count, dtype=np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order


def figure(rises: dict[str, float], variates: int) -> Figure:
    """The importance as bars."""
    some = f" ({len(rises)} of {variates})" if len(rises) < variates else ""
    label = "rise of the scaled quantile loss when the variate's history is permuted, %"
    return figures.bars(f"Importance of each variate{some}", list(rises), list(rises.values()), x_label=label)


def _rise(usual_BV: NDArray[np.float64], permuted_BV: NDArray[np.float64]) -> float:
    known = np.isfinite(usual_BV) & np.isfinite(permuted_BV)
    before = float(usual_BV[known].sum())
    return 100 * (float(permuted_BV[known].sum()) / before - 1) if before > 0 else float("nan")
