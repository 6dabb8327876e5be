"""What a model is worth after an epoch: the training objective and forecast scores on the validation windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.models.forecaster import QUANTILES, TrainableForecaster, WindowShape
from toto_pipeline.training.distributed import World
from toto_pipeline.training.windows import Place


@dataclass(frozen=True)
class Validation:
    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of a batch of validation windows, and what came instead. NaN marks a missing value."""

    places: list[Place]
    history_BVT: NDArray[np.float32]
    actual_BVH: NDArray[np.float32]
    forecast_BVHQ: NDArray[np.float32]


Watch = Callable[[Forecasts], None]


def validate(
    forecaster: TrainableForecaster,
    shape: WindowShape,
    data: TrainingData,
    places: list[Place],
    *,
    batch_size: int,
    device: torch.device,
    world: World,
    canceled: Callable[[], bool],
    watch: Watch | None = None,
) -> Validation | None:
    """The mean objective with the horizon hidden, and MASE, WQL and 80 % coverage of the forecasts.

    Each process takes every `world.size`-th batch, and the sums of all are put together, so the numbers do not depend
    on how many there are. `watch` is shown this process's forecasts, each window once in all. None where `canceled()`
    was true in between.
    """
    manifest = data.manifest
    length = shape.length(manifest.context_length, manifest.horizon)
    kept = torch.from_numpy(shape.forecast_mask(length, manifest.horizon)).to(device)
    scores = _Scores()
    forecaster.module.eval()
    with torch.no_grad():
        for batch, counted in _share(places, batch_size, world):
            if canceled():
                forecaster.module.train()
                return None
            ends = _end_of_horizon(batch, length, manifest.horizon, shape)
            values = np.stack([data.window(place.series, end, length) for place, end in zip(batch, ends, strict=True)])
            windows = torch.from_numpy(_blank_beyond(values, batch, ends)).to(device)
            masks = kept.expand(len(batch), -1)
            loss, targets = forecaster.loss(windows, masks), forecaster.targets(windows, masks)
            whole = np.stack([data.window(p.series, p.end, manifest.context_length + manifest.horizon) for p in batch])
            history, actual = whole[..., : manifest.context_length], whole[..., manifest.context_length :]
            forecasts = Forecasts(batch, history, actual, forecaster.forecast(history, manifest.horizon))
            if counted:
                scores.add_loss(float(loss), float(targets))
                scores.add_forecasts(forecasts, manifest.season)
                if watch is not None:
                    watch(forecasts)
    forecaster.module.train()
    return scores.summary(world)


def _share(places: list[Place], batch_size: int, world: World) -> Iterator[tuple[list[Place], bool]]:
    """This process's batches, and whether each counts: all do equally many, because a sharded model takes all along."""
    batches = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
    for first in range(0, len(batches), world.size):
        mine = first + world.rank
        yield (batches[mine], True) if mine < len(batches) else (batches[first], False)


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
        self._loss = 0.0
        self._targets = 0.0
        self._scaled_error = 0.0
        self._scaled_errors = 0
        self._quantile_loss = 0.0
        self._absolute_actual = 0.0
        self._covered = 0
        self._counted = 0

    def add_loss(self, loss: float, targets: float) -> None:
        self._loss += loss
        self._targets += targets

    def add_forecasts(self, forecasts: Forecasts, season: int) -> None:
        actual_BVH, forecast_BVHQ = forecasts.actual_BVH, forecasts.forecast_BVHQ
        observed = np.isfinite(actual_BVH)
        scaled = scaled_errors(forecasts, season)
        usable = np.isfinite(scaled)
        self._scaled_error += float(scaled[usable].sum(dtype=np.float64))
        self._scaled_errors += int(usable.sum())
        self._quantile_loss += float(quantile_losses(actual_BVH, forecast_BVHQ)[observed].sum())
        self._absolute_actual += float(np.abs(actual_BVH[observed]).sum())
        inside = (actual_BVH >= forecast_BVHQ[..., 0]) & (actual_BVH <= forecast_BVHQ[..., -1])
        self._covered += int(inside[observed].sum())
        self._counted += int(observed.sum())

    def summary(self, world: World) -> Validation:
        """What the sums of all processes come to."""
        everyone = world.gather(vars(self))
        total = {name: sum(sums[name] for sums in everyone) for name in vars(self)}
        return Validation(
            _ratio(total["_loss"], total["_targets"]),
            {
                "MASE": _ratio(total["_scaled_error"], total["_scaled_errors"]),
                "WQL": _ratio(total["_quantile_loss"], total["_absolute_actual"]),
                "coverage_80": _ratio(total["_covered"], total["_counted"]),
            },
        )


def scaled_errors(forecasts: Forecasts, season: int) -> NDArray[np.float64]:
    """(batch, variates): MASE of each median forecast; NaN where nothing came, or the history tells no scale."""
    error = mean_observed(np.abs(forecasts.actual_BVH - forecasts.forecast_BVHQ[..., len(QUANTILES) // 2]))
    return error / seasonal_errors(forecasts.history_BVT, season)


def seasonal_errors(history_BVT: NDArray[np.float32], season: int) -> NDArray[np.float64]:
    """(batch, variates): mean error of the seasonal naive forecast within each history; NaN where it is 0 or none."""
    lag = season if season < history_BVT.shape[-1] else 1
    error = mean_observed(np.abs(history_BVT[..., lag:] - history_BVT[..., :-lag]))
    return np.where(error > 0, error, np.nan)


def quantile_losses(actual_BVH: NDArray[np.float32], forecast_BVHQ: NDArray[np.float32]) -> NDArray[np.float32]:
    """(batch, variates, horizon): twice the pinball loss, as a mean over the levels; NaN where nothing came."""
    levels = np.asarray(QUANTILES, dtype=np.float32)
    residual = actual_BVH[..., None] - forecast_BVHQ
    losses = 2 * np.maximum(levels * residual, (levels - 1) * residual).mean(axis=-1)
    return losses.astype(np.float32, copy=False)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def mean_observed(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not missing; NaN where all is."""
    counted = np.isfinite(values)
    total = np.where(counted, values, 0).sum(axis=-1)
    count = counted.sum(axis=-1)
    result: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return result
