"""What a model family must offer, so that training, evaluation and promotion need not know which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

QUANTILES: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The levels every forecaster answers with, in this order."""


class Forecaster(Protocol):
    """Histories in, quantile forecasts out."""

    @property
    def name(self) -> str: ...

    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        """Quantile forecasts of the `horizon` steps behind each history.

        Args:
            history_BVT: (batch, variates, time); NaN marks a missing value. Shorter histories are padded left with NaN.

        Returns:
            (batch, variates, horizon, 9), finite, not decreasing along the last axis.
        """
        ...


class TrainableForecaster(Forecaster, Protocol):
    """A forecaster whose weights can be trained and written in the family's own public format."""

    @property
    def module(self) -> torch.nn.Module: ...

    def loss(self, values_BVT: torch.Tensor, kept_BT: torch.Tensor) -> torch.Tensor:
        """Training loss of a batch of windows: a scalar.

        Args:
            values_BVT: (batch, variates, time); NaN marks a missing value.
            kept_BT: (batch, time) bool; False marks the steps that are hidden from the model.
        """
        ...

    def optimizer(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer: ...

    def save(self, folder: Path) -> None:
        """Write the weights so that the family's own package opens `folder`."""
        ...


class WindowShape(Protocol):
    """How a family cuts training windows; needs no weights, so that loader processes need no model."""

    def length(self, context_length: int, horizon: int) -> int:
        """Steps of a training window for forecasts of `horizon` steps from `context_length`."""
        ...

    def training_mask(self, length: int, horizon: int, random: np.random.Generator) -> NDArray[np.bool_]:
        """(length,) bool: which steps of a training window the model may see."""
        ...

    def forecast_mask(self, length: int, horizon: int) -> NDArray[np.bool_]:
        """(length,) bool: everything but the horizon at the end."""
        ...


def pad_left(histories: Sequence[NDArray[np.float32]], length: int) -> NDArray[np.float32]:
    """Stack (variates, time) histories into (batch, variates, length): cut to the last `length` steps, NaN before."""
    batch = np.full((len(histories), histories[0].shape[0], length), np.nan, dtype=np.float32)
    for row, history in zip(batch, histories, strict=True):
        kept = history[:, -length:]
        row[:, length - kept.shape[1] :] = kept
    return batch
