"""`optimizer: muon` against `adamw` on the sample: what the validation loss gains, and what a step costs.

Each has the rates that were best on this data: AdamW out of 0.05 to 1.6, Muon out of 0.03 to 0.4 beside AdamW at 0.05
to 0.4. To compare them at equal time, AdamW is given more steps: as many as Muon takes, and then 20 % more.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

ADAMW: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 0.2}
MUON: dict[str, Any] = {"optimizer": "muon", "learning_rate": 0.1, "muon_learning_rate": 0.2}
MORE_STEPS = 1.2
STEPS = 900
LARGEST_LOSS_RATIO = 0.98
LARGEST_TIME_RATIO = 1.4


def run(quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    steps, seeds = (60, (0,)) if quick else (STEPS, (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        muon = [_train(Path(folder), MUON, steps, seed) for seed in seeds]
        adamw = [_train(Path(folder), ADAMW, steps, seed) for seed in seeds]
        longer = [_train(Path(folder), ADAMW, round(steps * MORE_STEPS), seed) for seed in seeds]
    muon_loss, adamw_loss, longer_loss = (statistics.fmean(loss for loss, _ in each) for each in (muon, adamw, longer))
    seconds = [statistics.fmean(each for _, each in runs) for runs in (muon, adamw)]
    loss_limit = None if quick else LARGEST_LOSS_RATIO  # in so few steps neither has learned what counts
    return [
        _result(f"AdamW: validation loss after {steps} steps", adamw_loss, ""),
        _result(f"Muon and AdamW: validation loss after {steps} steps", muon_loss, ""),
        _result("validation loss, Muon and AdamW / AdamW, equal steps", muon_loss / adamw_loss, "ratio", loss_limit),
        _result("the same with 20 % more steps for AdamW", muon_loss / longer_loss, "ratio"),
        _result("CPU time of a step, Muon and AdamW / AdamW", seconds[0] / seconds[1], "ratio", LARGEST_TIME_RATIO),
    ]


def _train(folder: Path, choice: dict[str, Any], steps: int, seed: int) -> tuple[float, float]:
    """The sample preset's training, but for the optimizer; its validation loss and the seconds of CPU a step."""
    from benchmarks.sample_run import SampleRun
    from toto_pipeline.models.optimizer import set_rates
    from toto_pipeline.training.schedule import factor

    sample = SampleRun(folder, epochs=1, steps_per_epoch=steps, seed=seed, **choice)
    settings, forecaster = sample.settings, sample.build()
    optimizer = forecaster.optimizer(
        settings.learning_rate,
        settings.weight_decay,
        settings.muon_learning_rate if settings.optimizer == "muon" else None,
    )
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


def _result(name: str, value: float, unit: str, limit: float | None = None) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "limit": limit, "ok": None if limit is None else value <= limit}
