"""What is special to Toto 1.0: its objective, and which positions that counts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from toto_pipeline.models.families import build_for_training
from toto_pipeline.settings.training import ModelSettings, TrainingSettings
from toto_pipeline_tests.contracts.libraries import Libraries

pytestmark = pytest.mark.slow
MODEL = ModelSettings(family="toto1", patch_size=8, d_model=16, num_heads=2, num_layers=4)


@pytest.fixture(autouse=True)
def library(libraries: Libraries) -> Iterator[None]:
    with libraries.on_path("toto1"):
        yield


def test_the_loss_is_that_of_the_makers_own_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    from toto.data.util.dataset import CausalMaskedTimeseries
    from toto.model.lightning_module import TotoForFinetuning

    forecaster = build_for_training(TrainingSettings(model=MODEL), None)
    values = torch.from_numpy(np.random.default_rng(0).normal(5, 2, size=(3, 2, 64)).astype(np.float32))
    values[1, 0, 40:44] = torch.nan
    observed = ~values.isnan()
    filled = values.clone()
    filled[1, 0, 40:44] = values[1, 0, 39]
    zeros = torch.zeros_like(values, dtype=torch.int)
    batch = CausalMaskedTimeseries(
        series=filled,
        padding_mask=observed,
        id_mask=zeros,
        timestamp_seconds=zeros,
        time_interval_seconds=zeros[..., 0],
        input_slice=slice(0, -8),
        target_slice=slice(8, None),
        num_exogenous_variables=0,
    )
    upstream = TotoForFinetuning(pretrained_backbone=forecaster.module)
    monkeypatch.setattr(upstream, "log", lambda *_, **__: None)  # there is no Lightning trainer
    expected = upstream.training_step(batch, 0)
    kept = torch.ones(3, 64, dtype=torch.bool)
    ours = forecaster.loss(values, kept) / forecaster.targets(values, kept)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_counts_is_observed_and_predicted_from_enough() -> None:
    from toto_pipeline.models.toto1 import counted_positions

    observed, kept = torch.ones(1, 1, 32, dtype=torch.bool), torch.ones(1, 32, dtype=torch.bool)
    assert counted_positions(observed, kept, 8).nonzero()[:, -1].tolist() == list(range(24))  # of patches 2, 3 and 4
    observed[..., 20] = False
    assert counted_positions(observed, kept, 8)[0, 0].logical_not().nonzero().flatten().tolist() == [12]
    kept[:, 16:] = False  # only what is hidden counts, and of that the patch behind what is seen
    behind = [8, 9, 10, 11, 13, 14, 15]
    assert counted_positions(observed, kept, 8)[0, 0].nonzero().flatten().tolist() == behind
    kept[:] = True
    observed[..., 0] = False  # the second patch is predicted from 7 steps
    assert counted_positions(observed, kept, 8)[0, 0].nonzero().flatten().tolist() == [*behind, *range(16, 24)]
    kept[:, 12:] = False  # no patch is predicted from one that is hidden in part
    assert counted_positions(observed, kept, 8).sum() == 0
