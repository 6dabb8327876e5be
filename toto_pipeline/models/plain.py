"""What the families without unit scaling have in common: tuning, optimizer, and spreading over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from toto_pipeline.errors import ConfigError
from toto_pipeline.models.optimizer import plain_adamw
from toto_pipeline.settings.training import TrainingSettings

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The number format of matrix products for each `precision`; None leaves them in float32."""


class PlainForecaster[M: nn.Module]:
    """The part of a `TrainableForecaster` that is the same for every model of ordinary PyTorch layers."""

    betas = (0.9, 0.999)
    eps = 1e-8

    def __init__(self, module: M, *, precision: str = "fp32") -> None:
        self.module = module
        self._parallel: nn.Module = module
        self._autocast_dtype = AUTOCAST_DTYPES[precision]

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def optimizer(
        self, learning_rate: float, weight_decay: float, muon_learning_rate: float | None = None
    ) -> torch.optim.Optimizer:
        if muon_learning_rate is not None:
            raise ConfigError(
                f"training.optimizer: muon is set up for unit-scaled models, which {self.name} is not. Expected: "
                "adamw. What to do: set training.optimizer=adamw."
            )
        return plain_adamw(self.module, learning_rate, weight_decay, betas=self.betas, eps=self.eps)

    def wrap(self, parallel: Callable[[nn.Module], nn.Module]) -> None:
        self._parallel = parallel(self.module)

    def set_scale(self, *, processes: int, accumulation: int) -> None:
        """Nothing to do: the gradients of the parts of a step add up as they are."""

    def compile(self) -> None:
        self.module.compile()

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        """What is drawn meanwhile leaves the generators of the training as they were."""
        devices = [] if self.device.type == "cpu" else [self.device]
        guard: AbstractContextManager[None] = torch.random.fork_rng(devices=devices)
        return guard

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None)


def prepare_plain(module: nn.Module, settings: TrainingSettings, *, head: Sequence[nn.Module]) -> None:
    """Set what of a module without unit scaling requires a gradient: everything, or the parts in `head`.

    Raises:
        ConfigError: `settings.tune` is lora.
    """
    if settings.tune == "lora":
        raise ConfigError(
            f"training.tune: lora adapts unit-scaled layers, which {settings.model.family} has not. Expected: full or "
            "head. What to do: set training.tune=full, or training.tune=head to train the output layers only."
        )
    module.requires_grad_(settings.tune == "full")
    for part in head:
        part.requires_grad_(True)
