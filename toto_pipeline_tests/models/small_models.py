"""A model that is small enough for a test, and windows for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toto_pipeline.models import toto2
from toto_pipeline.settings.training import LoraSettings, ModelSettings, TrainingSettings

TINY = ModelSettings(patch_size=8, d_model=16, num_heads=2, num_layers=4, layer_group_size=4)


def tiny_forecaster(seed: int = 0, tune: str = "full", **settings: Any) -> toto2.Toto2Forecaster:
    torch.manual_seed(seed)
    return toto2.build_for_training(TrainingSettings(model=TINY, tune=tune, **settings), None)


def tiny_lora(seed: int = 0, rank: int = 4, alpha: float = 8.0) -> toto2.Toto2Forecaster:
    return tiny_forecaster(seed, "lora", lora=LoraSettings(rank=rank, alpha=alpha))


def windows(batch: int = 8, variates: int = 2, steps: int = 80) -> tuple[Tensor, Tensor]:
    """Noisy waves of which each row misses more than the row before, and what of them is kept."""
    random = np.random.default_rng(0)
    time = np.arange(steps, dtype=np.float32)
    phase = np.arange(batch * variates).reshape(batch, variates, 1)
    values = 5 * phase + np.sin(time / 5 + phase) + 0.1 * random.normal(size=(batch, variates, steps))
    for row in range(batch):
        values[row, :, random.random(steps) < row / batch] = np.nan
    kept = torch.ones(batch, steps, dtype=torch.bool)
    kept[::2, -16:] = False
    return torch.from_numpy(values.astype(np.float32)), kept


def history(batch: int = 2, variates: int = 1, steps: int = 64) -> np.ndarray:
    time = np.arange(steps, dtype=np.float32)
    rows = [[10 * v + np.sin(time / 5 + b) for v in range(variates)] for b in range(batch)]
    return np.asarray(rows, dtype=np.float32)


def mean_loss(forecaster: toto2.Toto2Forecaster, values: Tensor, kept: Tensor) -> Tensor:
    return forecaster.loss(values, kept) / forecaster.targets(values, kept)


def train(
    forecaster: toto2.Toto2Forecaster, optimizer: torch.optim.Optimizer, steps: int, batch: tuple[Tensor, Tensor]
) -> list[float]:
    """Plain steps on one batch; the loss of each."""
    losses = []
    for _ in range(steps):
        loss = mean_loss(forecaster, *batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trained_parameters(forecaster: toto2.Toto2Forecaster) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in forecaster.module.named_parameters() if p.requires_grad}


def equal_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def copies(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}
