"""What the training loop costs beyond a bare one written by hand, and how long a step waits for its data.

Both train the same model on the same windows for the same steps and validate after each epoch, in turns within one
process. Ours also logs every step, asks every callback, and saves a checkpoint an epoch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIMIT_OVERHEAD = 0.01


def run(quick: bool) -> list[dict[str, Any]]:
    from benchmarks.sample_run import SampleRun

    torch.set_num_threads(1)
    rounds, steps = (2, 40) if quick else (9, 100)
    with tempfile.TemporaryDirectory() as folder:
        sample = SampleRun(Path(folder), epochs=2, steps_per_epoch=steps)
        ratios = [_timed(lambda n=number: _ours(sample, n)) / _timed(lambda: _bare(sample)) for number in range(rounds)]
        waits = sample.data_wait_shares()
    overhead = statistics.median(ratios) - 1
    return [
        {
            "name": "training loop beyond a bare one, callbacks and a checkpoint an epoch included",
            "value": overhead,
            "unit": "share",
            "limit": f"<= {LIMIT_OVERHEAD}",
            "ok": overhead <= LIMIT_OVERHEAD,
        },
        {
            "name": "share of a step that waits for data",
            "value": statistics.median(waits),
            "unit": "share",
            "limit": None,
            "ok": None,
        },
    ]


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ours(sample: Any, number: int) -> None:
    sample.trainer(f"run-{number}").fit()


def _bare(sample: Any) -> None:
    """Forward, backward, clip, step; validate after each epoch. What a notebook would do."""
    from toto_pipeline.models.optimizer import set_rates
    from toto_pipeline.training.distributed import World
    from toto_pipeline.training.schedule import factor
    from toto_pipeline.training.validation import validate
    from toto_pipeline.training.windows import validation_places

    settings, data, forecaster = sample.settings, sample.data, sample.build()
    optimizer = forecaster.optimizer(settings.learning_rate, settings.weight_decay)
    total = settings.epochs * settings.steps_per_epoch
    places = validation_places(data, most=settings.validation_batches * settings.batch_size, seed=settings.seed)
    for step, batch in enumerate(sample.batches()):
        loss = forecaster.loss(batch.values_BVT, batch.kept_BT) / forecaster.targets(batch.values_BVT, batch.kept_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(forecaster.module.parameters(), settings.gradient_clip)
        rate = factor(step, total_steps=total, warmup_fraction=0.05, decay_fraction=0.3)
        set_rates(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % settings.steps_per_epoch == 0:
            validate(
                forecaster,
                forecaster.windows,
                data,
                places,
                batch_size=settings.batch_size,
                device=torch.device("cpu"),
                world=World(),
                canceled=lambda: False,
            )
    forecaster.save(sample.folder / "bare")
