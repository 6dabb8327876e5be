"""What a model family must offer, so that training, evaluation and promotion need not know which one it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class TrainableForecaster(Forecaster, Protocol):
    """A forecaster whose weights can be trained and written in the family's own public format.

    A step's loss is a sum divided by a count, both over everything the step sees. So the two are asked for apart:
    the mean of a step is the sum of `loss` over all its parts, divided by the sum of `targets`, however the step is
    split over micro-batches and processes.
    """

    @property
    def module(self) -> torch.nn.Module:
        """The bare module, which holds the parameters; it stays bare when it is wrapped or compiled."""
        ...

    @property
    def windows(self) -> WindowShape: ...

    def blocks(self) -> Sequence[torch.nn.Module]:
        """The repeated parts of the module, in order: what is sharded and gathered as one."""
        ...

    def targets(self, values_BVT: torch.Tensor, kept_BT: torch.Tensor) -> torch.Tensor:
        """How many positions the loss of this batch counts: a scalar."""
        ...

    def loss(self, values_BVT: torch.Tensor, kept_BT: torch.Tensor) -> torch.Tensor:
        """The training loss of a batch of windows, summed over the counted positions: a float32 scalar.

        Args:
            values_BVT: (batch, variates, time); NaN marks a missing value.
            kept_BT: (batch, time) bool; False marks the steps that are hidden from the model.
        """
        ...

    def optimizer(
        self, learning_rate: float, weight_decay: float, muon_learning_rate: float | None = None
    ) -> torch.optim.Optimizer:
        """An optimizer over what is trained; each of its groups holds its own rate as `initial_lr`.

        With a `muon_learning_rate` the hidden matrices are trained by Muon, which needs all of them to be trained.
        """
        ...

    def wrap(self, parallel: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
        """Have `loss` call what `parallel` makes of the module, such as DistributedDataParallel."""
        ...

    def set_scale(self, *, processes: int, accumulation: int) -> None:
        """Tell the family into how many processes and micro-batches a step is split."""
        ...

    def compile(self) -> None:
        """Compile the module in place; the names in its state dict stay as they are."""
        ...

    def save(self, folder: Path) -> None:
        """Write the weights so that the family's own package opens `folder`; the module is left as it is."""
        ...


def pad_left(histories: Sequence[NDArray[np.float32]], length: int) -> NDArray[np.float32]:
    """Stack (variates, time) histories into (batch, variates, length): cut to the last `length` steps, NaN before."""
    batch = np.full((len(histories), histories[0].shape[0], length), np.nan, dtype=np.float32)
    for row, history in zip(batch, histories, strict=True):
        kept = history[:, -length:]
        row[:, length - kept.shape[1] :] = kept
    return batch
