"""Muon for the hidden matrices against AdamW alone: what the validation loss gains, and what a step costs.

Muon (Jordan et al., 2024) steps along the orthogonalized momentum of a matrix. It takes the matrices of the transformer
layers: attention in and out, feed-forward in and out. All else stays with AdamW, as the authors advise. Its rate
scales with depth alone, as in `dd_unit_scaling.NorMuon`. Each optimizer has the rate that was best on this data:
AdamW out of 0.05 to 1.6, Muon out of 0.03 to 0.4 beside AdamW at 0.05 to 0.4.

To compare them at equal time, AdamW alone is given more steps: as many as Muon takes, and then 20 % more.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

ADAMW_RATE = 0.2
MUON_RATE, MUON_ADAMW_RATE = 0.2, 0.1
MORE_STEPS = 1.2
STEPS = 900


def run(quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    steps, seeds = (60, (0,)) if quick else (STEPS, (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        muon = [_train(Path(folder), _muon_and_adamw, steps, seed) for seed in seeds]
        adamw = [_train(Path(folder), _adamw, steps, seed) for seed in seeds]
        longer = [_train(Path(folder), _adamw, round(steps * MORE_STEPS), seed) for seed in seeds]
    muon_loss, adamw_loss, longer_loss = (statistics.fmean(loss for loss, _ in each) for each in (muon, adamw, longer))
    seconds = [statistics.fmean(each for _, each in runs) for runs in (muon, adamw)]
    return [
        _result(f"AdamW: validation loss after {steps} steps", adamw_loss, ""),
        _result(f"Muon and AdamW: validation loss after {steps} steps", muon_loss, ""),
        _result("validation loss, Muon and AdamW / AdamW, equal steps", muon_loss / adamw_loss, "ratio"),
        _result("the same with 20 % more steps for AdamW", muon_loss / longer_loss, "ratio"),
        _result("CPU time of a step, Muon and AdamW / AdamW", seconds[0] / seconds[1], "ratio"),
    ]


def _adamw(module: nn.Module) -> list[Optimizer]:
    from toto_pipeline.models.optimizer import adamw

    return [adamw(module, ADAMW_RATE, 0.0)]


def _muon_and_adamw(module: nn.Module) -> list[Optimizer]:
    from unit_scaling.optim import lr_scale_for_depth  # type: ignore[import-untyped]

    from toto_pipeline.models.optimizer import adamw

    hidden = [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and name.startswith("transformer.layers.")
    ]
    rates = [MUON_RATE * lr_scale_for_depth(parameter) for parameter in hidden]
    groups = [
        {"params": [parameter], "lr": rate, "initial_lr": rate} for parameter, rate in zip(hidden, rates, strict=True)
    ]
    for parameter in hidden:
        parameter.requires_grad_(False)  # what is frozen, AdamW leaves alone
    rest = adamw(module, MUON_ADAMW_RATE, 0.0)
    for parameter in hidden:
        parameter.requires_grad_(True)
    return [torch.optim.Muon(groups, weight_decay=0.0), rest]


def _train(
    folder: Path, optimizers_of: Callable[[nn.Module], list[Optimizer]], steps: int, seed: int
) -> tuple[float, float]:
    """The sample preset's training, but for the optimizer; its validation loss and the seconds of CPU a step."""
    from benchmarks.sample_run import SampleRun
    from toto_pipeline.models.optimizer import set_rates
    from toto_pipeline.training.schedule import factor

    sample = SampleRun(folder, epochs=1, steps_per_epoch=steps, seed=seed)
    settings, forecaster = sample.settings, sample.build()
    optimizers = optimizers_of(forecaster.module)
    started = time.process_time()
    for step, batch in enumerate(sample.batches()):
        targets = forecaster.targets(batch.values_BVT, batch.kept_BT)
        (forecaster.loss(batch.values_BVT, batch.kept_BT) / targets).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(forecaster.module.parameters(), settings.gradient_clip)
        part = factor(
            step,
            total_steps=steps,
            warmup_fraction=settings.warmup_fraction,
            decay_fraction=settings.decay_fraction,
        )
        for optimizer in optimizers:
            set_rates(optimizer, part)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    seconds = (time.process_time() - started) / steps
    return _validation_loss(sample, forecaster), seconds


def _validation_loss(sample: Any, forecaster: Any) -> float:
    from toto_pipeline.training.distributed import World
    from toto_pipeline.training.validation import validate
    from toto_pipeline.training.windows import validation_places

    settings = sample.settings
    validation = validate(
        forecaster,
        forecaster.windows,
        sample.data,
        validation_places(sample.data, most=settings.validation_batches * settings.batch_size, seed=0),
        batch_size=settings.batch_size,
        device=torch.device("cpu"),
        world=World(),
        canceled=lambda: False,
    )
    assert validation is not None
    return validation.loss


def _result(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "limit": None, "ok": None}
