"""Choosing where a model runs."""

from __future__ import annotations

import torch

from toto_pipeline.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means on this machine.

    Raises:
        ConfigError: there is no such device.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is no device. Expected: auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (not available or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"device: there is no {name}; PyTorch sees {torch.cuda.device_count()} GPUs here. "
            "What to do: set device=auto, or see `toto-pipeline doctor`."
        )
    return device
