"""What a model is worth after an epoch: the training objective and forecast scores on the validation windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.models.forecaster import QUANTILES, TrainableForecaster, WindowShape
from toto_pipeline.training.windows import Place


@dataclass(frozen=True)
class Validation:
    loss: float
    metrics: dict[str, float]


def validate(
    forecaster: TrainableForecaster,
    shape: WindowShape,
    data: TrainingData,
    places: list[Place],
    *,
    batch_size: int,
    device: torch.device,
) -> Validation:
    """The mean objective with the horizon hidden, and MASE, WQL and 80 % coverage of the forecasts."""
    manifest = data.manifest
    length = shape.length(manifest.context_length, manifest.horizon)
    kept = torch.from_numpy(shape.forecast_mask(length, manifest.horizon)).to(device)
    forecaster.module.eval()
    losses: list[float] = []
    scores = _Scores()
    with torch.no_grad():
        for first in range(0, len(places), batch_size):
            batch = places[first : first + batch_size]
            ends = _end_of_horizon(batch, length, manifest.horizon, shape)
            values = np.stack([data.window(place.series, end, length) for place, end in zip(batch, ends, strict=True)])
            windows = torch.from_numpy(_blank_beyond(values, batch, ends)).to(device)
            loss = forecaster.loss(windows, kept.expand(len(batch), -1))
            losses += [float(loss)] * len(batch)
            whole = np.stack([data.window(p.series, p.end, manifest.context_length + manifest.horizon) for p in batch])
            history, actual = whole[..., : manifest.context_length], whole[..., manifest.context_length :]
            scores.add(history, actual, forecaster.forecast(history, manifest.horizon), manifest.season)
    forecaster.module.train()
    return Validation(float(np.mean(losses)) if losses else math.nan, scores.summary())


def _end_of_horizon(batch: list[Place], length: int, horizon: int, shape: WindowShape) -> list[int]:
    """Windows end on a patch, a horizon need not: the steps between are beyond the forecast and left blank."""
    hidden = int((~shape.forecast_mask(length, horizon)).sum())
    return [place.end + hidden - horizon for place in batch]


def _blank_beyond(values_BVT: NDArray[np.float32], batch: list[Place], ends: list[int]) -> NDArray[np.float32]:
    """Hide what lies behind each place's own end, which may be the test span."""
    for row, place, end in zip(values_BVT, batch, ends, strict=True):
        if end > place.end:
            row[:, row.shape[-1] - (end - place.end) :] = np.nan
    return values_BVT


class _Scores:
    """Sums over forecasts. MASE after Hyndman and Koehler (2006); WQL as GluonTS' mean weighted quantile loss."""

    def __init__(self) -> None:
        self._scaled_errors: list[NDArray[np.float32]] = []
        self._quantile_loss = 0.0
        self._absolute_actual = 0.0
        self._covered = 0
        self._counted = 0

    def add(
        self,
        history_BVT: NDArray[np.float32],
        actual_BVH: NDArray[np.float32],
        forecast_BVHQ: NDArray[np.float32],
        season: int,
    ) -> None:
        observed = np.isfinite(actual_BVH)
        lag = season if season < history_BVT.shape[-1] else 1
        with np.errstate(invalid="ignore"):
            seasonal = _mean(np.abs(history_BVT[..., lag:] - history_BVT[..., :-lag]))
            error = _mean(np.abs(actual_BVH - forecast_BVHQ[..., len(QUANTILES) // 2]))
        usable = np.isfinite(error) & (seasonal > 0)
        self._scaled_errors.append((error[usable] / seasonal[usable]).ravel())
        levels = np.asarray(QUANTILES, dtype=np.float32)
        residual = actual_BVH[..., None] - forecast_BVHQ
        pinball = 2 * np.maximum(levels * residual, (levels - 1) * residual).mean(axis=-1)
        self._quantile_loss += float(pinball[observed].sum())
        self._absolute_actual += float(np.abs(actual_BVH[observed]).sum())
        inside = (actual_BVH >= forecast_BVHQ[..., 0]) & (actual_BVH <= forecast_BVHQ[..., -1])
        self._covered += int(inside[observed].sum())
        self._counted += int(observed.sum())

    def summary(self) -> dict[str, float]:
        errors = np.concatenate(self._scaled_errors) if self._scaled_errors else np.empty(0)
        return {
            "MASE": float(errors.mean()) if errors.size else math.nan,
            "WQL": self._quantile_loss / self._absolute_actual if self._absolute_actual else math.nan,
            "coverage_80": self._covered / self._counted if self._counted else math.nan,
        }


def _mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the last axis of what is not missing; NaN where all is."""
    counted = np.isfinite(values)
    total = np.where(counted, values, 0).sum(axis=-1)
    count = counted.sum(axis=-1)
    result: NDArray[np.float32] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return result
