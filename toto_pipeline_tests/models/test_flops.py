"""The formula against PyTorch's own count of what is computed."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from toto_pipeline.models import toto2
from toto_pipeline.models.flops import flops_per_window
from toto_pipeline.settings.training import ModelSettings


@pytest.mark.parametrize(
    ("settings", "length", "variates"),
    [
        (ModelSettings(), 608, 1),
        (ModelSettings(patch_size=8, d_model=16, num_heads=2, num_layers=8), 80, 3),
        (ModelSettings(patch_size=32, d_model=64, num_heads=4, d_ff=688), 256, 2),
    ],
)
def test_the_formula_counts_what_pytorch_counts(settings: ModelSettings, length: int, variates: int) -> None:
    forecaster = toto2.build(settings, None)
    batch = torch.randn(2, variates, length), torch.ones(2, length, dtype=torch.bool)
    per_window = flops_per_window(forecaster.module.config, length, variates)

    with FlopCounterMode(display=False) as forward, torch.no_grad():
        forecaster.loss(*batch)
    assert forward.get_total_flops() == 2 * per_window / 3

    with FlopCounterMode(display=False) as both:
        forecaster.loss(*batch).backward()
    # The windows themselves need no gradient; attention computes its scores anew in the backward pass.
    assert both.get_total_flops() == pytest.approx(2 * per_window, rel=0.02)
