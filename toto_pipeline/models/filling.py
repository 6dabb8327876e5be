"""Values to stand where there are none."""

from __future__ import annotations

import torch
from torch import Tensor


def forward_fill(values_BVT: Tensor, observed_BVT: Tensor) -> Tensor:
    """Missing steps take the last observed value, 0 before the first; they stay masked."""
    steps = torch.arange(values_BVT.shape[-1], device=values_BVT.device)
    last = torch.where(observed_BVT, steps, 0).cummax(dim=-1).values
    return values_BVT.where(observed_BVT, 0.0).gather(-1, last)
