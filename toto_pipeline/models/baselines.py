"""Forecasts that need no training: the floor that a model must beat.

Shapes: B batch, V variates, T steps of history, K whole seasons in it, S steps in a season, H horizon, Q levels.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.models.forecaster import QUANTILES

_Z_Q = np.array([NormalDist().inv_cdf(level) for level in QUANTILES])
_LARGEST = float(np.finfo(np.float32).max)


class SeasonalNaive:
    """What was observed one season ago, with normal quantiles around it.

    The forecast of a step is the newest observed value at the same place in the season. Its standard deviation is
    sigma * sqrt(k), k being the seasons from that value to the step and sigma the root mean square of the seasonal
    differences in the history: Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition, table
    5.2 (sigma_h = sigma * sqrt(k + 1) with k the whole seasons before step h), here counted on past missing values.

    A place in the season that was never observed takes the last observed value of the series. A history without any
    seasonal difference takes sigma from its one-step differences, growing with sqrt(h) (the naive method of the same
    table). A history without any value is forecast as 0.
    """

    def __init__(self, season: int) -> None:
        if season < 1:
            raise ValueError(f"season must be at least 1, not {season}")
        self.season = season

    @property
    def name(self) -> str:
        return "seasonal_naive"

    @property
    def history_length(self) -> int:
        """Steps of history it wants: fewer hold no seasonal difference."""
        return 2 * self.season

    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        """As `Forecaster.forecast`."""
        history = np.asarray(history_BVT, dtype=np.float64)
        last_BV, _ = last_observed(history)
        last_BVS, seasons_back_BVS = last_observed(self._by_season(history).swapaxes(-1, -2))

        steps_H = np.arange(horizon)
        place_H, seasons_ahead_H = steps_H % self.season, steps_H // self.season + 1
        value_BVH = last_BVS[..., place_H]
        seen_BVH = ~np.isnan(value_BVH)
        value_BVH = np.where(seen_BVH, value_BVH, last_BV[..., None])
        seasons_BVH = seasons_ahead_H + np.where(seen_BVH, seasons_back_BVS[..., place_H], 0)

        deviation_BVH = self._deviation(history, seasons_BVH, steps_H + 1)
        forecast = np.nan_to_num(value_BVH)[..., None] + deviation_BVH[..., None] * _Z_Q
        clipped: NDArray[np.float32] = np.clip(forecast, -_LARGEST, _LARGEST).astype(np.float32)
        return clipped

    def _by_season(self, history_BVT: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B, V, K, S): the history cut into seasons that end where it ends, NaN before it."""
        missing = -history_BVT.shape[-1] % self.season or (0 if history_BVT.shape[-1] else self.season)
        padded = np.pad(history_BVT, ((0, 0), (0, 0), (missing, 0)), constant_values=np.nan)
        return padded.reshape(*padded.shape[:2], -1, self.season)

    def _deviation(
        self, history_BVT: NDArray[np.float64], seasons_BVH: NDArray[np.int64], steps_H: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        seasonal_BV = root_mean_square(history_BVT[..., self.season :] - history_BVT[..., : -self.season])
        one_step_BV = np.nan_to_num(root_mean_square(np.diff(history_BVT, axis=-1)))
        return np.where(
            np.isnan(seasonal_BV)[..., None],
            one_step_BV[..., None] * np.sqrt(steps_H),
            seasonal_BV[..., None] * np.sqrt(seasons_BVH),
        )


class Drift:
    """A straight line from the first observed value through the last, with normal quantiles around it.

    Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition, section 5.2 and table 5.2: the value
    h steps ahead is y_T + h * slope with slope = (y_T - y_1) / (T - 1), its standard deviation is
    sigma * sqrt(h * (1 + h / (T - 1))), and sigma is that of the one-step changes about the slope, one degree of
    freedom being spent on it. Where values are missing, y_1 and y_T are the first and the last that were observed, h
    counts from the last, and sigma is that of the changes between neighbours that were both observed.

    A history with one value is forecast as that value without spread, one without any as 0.
    """

    @property
    def name(self) -> str:
        return "drift"

    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        """As `Forecaster.forecast`."""
        history = np.asarray(history_BVT, dtype=np.float64)
        last_BV, behind_BV = last_observed(history)
        first_BV, before_BV = last_observed(history[..., ::-1])
        span_BV = np.maximum(history.shape[-1] - 1 - behind_BV - before_BV, 1)
        slope_BV = np.nan_to_num(last_BV - first_BV) / span_BV

        steps_BVH = behind_BV[..., None] + np.arange(1, horizon + 1)
        sigma_BV = _sample_deviation(np.diff(history, axis=-1) - slope_BV[..., None])
        deviation_BVH = sigma_BV[..., None] * np.sqrt(steps_BVH * (1 + steps_BVH / span_BV[..., None]))
        value_BVH = np.nan_to_num(last_BV)[..., None] + slope_BV[..., None] * steps_BVH
        forecast = value_BVH[..., None] + deviation_BVH[..., None] * _Z_Q
        clipped: NDArray[np.float32] = np.clip(forecast, -_LARGEST, _LARGEST).astype(np.float32)
        return clipped


def last_observed(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The last value along the last axis that is not NaN, and how many steps before the end it stands.

    NaN, and the length of the axis, where there is none.
    """
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan), np.zeros(values.shape[:-1], dtype=np.int64)
    backwards = values[..., ::-1]
    observed = ~np.isnan(backwards)
    first = observed.argmax(axis=-1)
    value = np.take_along_axis(backwards, first[..., None], axis=-1)[..., 0]
    return value, np.where(observed.any(axis=-1), first, values.shape[-1])


def root_mean_square(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis, over what is not NaN; NaN where nothing is."""
    observed = ~np.isnan(differences)
    count = observed.sum(axis=-1)
    total = np.square(np.where(observed, differences, 0.0)).sum(axis=-1)
    return np.where(count > 0, np.sqrt(total / np.maximum(count, 1)), np.nan)


def _sample_deviation(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root of the sum of squares over one less than their number, along the last axis; 0 where there is but one."""
    count = (~np.isnan(residuals)).sum(axis=-1)
    total = np.square(np.nan_to_num(residuals)).sum(axis=-1)
    deviation: NDArray[np.float64] = np.sqrt(total / np.maximum(count - 1, 1))
    return np.where(count > 1, deviation, 0.0)
