"""Which weights of a model are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from toto_pipeline.models.lora import add_adapters
from toto_pipeline.settings.training import LoraSettings

Tune = Literal["full", "head", "lora"]


def prepare(
    module: nn.Module, tune: Tune, lora: LoraSettings, *, head: Sequence[nn.Module], transformer: nn.Module
) -> None:
    """Set what of `module` requires a gradient, and add the adapters that `tune` asks for.

    full: everything. head: the parts in `head`. lora: adapters on linear layers of `transformer`.

    Raises:
        ConfigError: a target of `lora` names no linear layer of the transformer.
    """
    module.requires_grad_(tune == "full")
    if tune == "head":
        for part in head:
            part.requires_grad_(True)
    elif tune == "lora":
        add_adapters(transformer, lora.targets, rank=lora.rank, alpha=lora.alpha)
