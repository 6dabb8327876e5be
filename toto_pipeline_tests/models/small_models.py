"""A model that is small enough for a test, and windows for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from toto_pipeline.models import toto2
from toto_pipeline.models.optimizer import remember_scales, restore_scales, state_by_name
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


def everything(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of the weights and of the optimizer's state, by name."""
    return copies((module.state_dict() | state_by_name(module, optimizer)).items())


def learning_rates(module: nn.Module, optimizer: Optimizer, key: str = "lr") -> dict[str, float]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def backward(forecaster: toto2.Toto2Forecaster) -> None:
    mean_loss(forecaster, *windows()).backward()


def sharded_forecaster(seed: int = 0) -> toto2.Toto2Forecaster:
    """A tiny model with FSDP2 over one rank, which needs the fixture `one_rank`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    forecaster = tiny_forecaster(seed)
    scales = remember_scales(forecaster.module)
    mesh = init_device_mesh("cpu", (1,))
    for part in [*forecaster.blocks(), forecaster.module]:
        fully_shard(part, mesh=mesh)
    restore_scales(forecaster.module, scales)
    return forecaster
