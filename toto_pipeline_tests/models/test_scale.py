"""However a step is split over micro-batches and processes, its gradient is that of the undivided step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toto_pipeline.models import toto2
from toto_pipeline_tests.models.small_models import tiny_forecaster, trained_parameters, windows

Gradients = dict[str, Tensor]


def _build(tune: str) -> toto2.Toto2Forecaster:
    forecaster = tiny_forecaster(tune=tune)
    with torch.no_grad():
        for name, parameter in trained_parameters(forecaster).items():
            if name.endswith(".B"):  # else A would have no gradient
                parameter.normal_()
    return forecaster


def _gradients_of_a_process(
    forecaster: toto2.Toto2Forecaster,
    part: tuple[Tensor, Tensor],
    *,
    micro_batches: int,
    targets: Tensor,
    processes: int,
) -> Gradients:
    """What the trainer does in one of several processes, before gradients are averaged over them."""
    forecaster.module.zero_grad()
    for values, kept in zip(*(tensor.chunk(micro_batches) for tensor in part), strict=True):
        (forecaster.loss(values, kept) / targets * processes).backward()
    return {name: p.grad.clone() for name, p in trained_parameters(forecaster).items() if p.grad is not None}


def _gradients(
    forecaster: toto2.Toto2Forecaster, *, processes: int, accumulation: int, said: tuple[int, int] | None = None
) -> Gradients:
    """Gradients of one step on the same windows; `said` is what the model is told, if it is told something else."""
    values, kept = windows()
    told_processes, told_accumulation = said or (processes, accumulation)
    forecaster.set_scale(processes=told_processes, accumulation=told_accumulation)
    targets = forecaster.targets(values, kept)
    parts = zip(values.chunk(processes), kept.chunk(processes), strict=True)
    ranks = [
        _gradients_of_a_process(forecaster, part, micro_batches=accumulation, targets=targets, processes=processes)
        for part in parts
    ]
    return {name: torch.stack([rank[name] for rank in ranks]).mean(dim=0) for name in ranks[0]}


def _difference(found: Gradients, expected: Gradients) -> float:
    """The largest difference between the gradients of a parameter, as a share of the expected one's norm."""
    assert found.keys() == expected.keys()
    return max(((found[name] - g).norm() / g.norm()).item() for name, g in expected.items())


@pytest.mark.parametrize("tune", ["full", "head", "lora"])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 2), (1, 4), (2, 1), (2, 2), (4, 2)])
def test_a_step_in_parts_has_the_gradient_of_the_whole(tune: str, processes: int, accumulation: int) -> None:
    forecaster = _build(tune)
    whole = _gradients(forecaster, processes=1, accumulation=1)
    assert whole.keys() == trained_parameters(forecaster).keys()
    assert all(gradient.norm() > 0 for gradient in whole.values())
    parts = _gradients(forecaster, processes=processes, accumulation=accumulation)
    assert _difference(parts, whole) < 2e-5


def test_parts_of_a_step_differ_in_what_they_count() -> None:
    forecaster = tiny_forecaster()
    values, kept = windows()
    counts = [int(forecaster.targets(*part)) for part in zip(values.chunk(4), kept.chunk(4), strict=True)]
    assert len(set(counts)) == 4
    assert min(counts) < max(counts) / 2
    assert sum(counts) == forecaster.targets(values, kept)


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 2), (2, 1)])
def test_a_model_that_is_not_told_of_the_parts_has_other_gradients(processes: int, accumulation: int) -> None:
    forecaster = _build("full")
    whole = _gradients(forecaster, processes=1, accumulation=1)
    untold = _gradients(forecaster, processes=processes, accumulation=accumulation, said=(1, 1))
    assert _difference(untold, whole) > 0.4


def test_the_loss_of_a_batch_is_the_sum_of_its_parts() -> None:
    forecaster = tiny_forecaster()
    values, kept = windows()
    with torch.no_grad():
        whole = forecaster.loss(values, kept)
        parts = sum(forecaster.loss(*part) for part in zip(values.chunk(4), kept.chunk(4), strict=True))
    torch.testing.assert_close(parts, whole)
