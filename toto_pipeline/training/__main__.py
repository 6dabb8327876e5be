"""The training process: `python -m toto_pipeline.training RUN_FOLDER`, started by the launcher.

It reads the run's order, resumes or begins, trains, and appends events. A fault that a user can mend ends the run in
order (exit 0, the reason in the `run_ended` event), because starting again would not help; any other fault exits
non-zero, and the launcher starts the process again from the last good checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from toto_pipeline.errors import PipelineError, TrainingError
from toto_pipeline.events.log import EventWriter, read_events
from toto_pipeline.training.process import die_with_parent, lock_run
from toto_pipeline.training.run_files import TrainingOrder, read_order

if TYPE_CHECKING:
    import torch


def main(arguments: list[str]) -> int:
    die_with_parent()
    run_folder = Path(arguments[0])
    try:
        lock = lock_run(run_folder)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    attempt = 1 + sum(event["type"] == "run_started" for event in read_events(run_folder))
    with EventWriter(run_folder, attempt=attempt) as log:
        try:
            _train(run_folder, read_order(run_folder), log)
        except PipelineError as error:
            log.append("run_ended", outcome="failed", reason=str(error), error=type(error).__name__, best=None)
        except Exception:
            traceback.print_exc()
            log.append("warning", name="trainer_died", message=traceback.format_exc(limit=-1).strip())
            return 1
    os.close(lock)
    return 0


def _train(run_folder: Path, order: TrainingOrder, log: EventWriter) -> None:
    canceled: list[int] = []

    def cancel(number: int, _frame: FrameType | None) -> None:
        canceled.append(number)

    signal.signal(signal.SIGTERM, cancel)
    signal.signal(signal.SIGINT, cancel)

    import torch

    from toto_pipeline.data.training_data import TrainingData
    from toto_pipeline.home import Home
    from toto_pipeline.models import toto2
    from toto_pipeline.models.device import choose_device
    from toto_pipeline.models.weights import locate_weights
    from toto_pipeline.training.trainer import Trainer

    settings = order.settings
    home = Home(run_folder.parent.parent)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = choose_device(settings.device)
    name = settings.model.weights
    weights = None if name is None else locate_weights(name, home.cache)
    data = TrainingData.open(home.root / order.training_data)
    forecaster = toto2.build(settings.model, weights, precision=settings.precision)
    forecaster.module.to(device)
    trainer = Trainer(
        run_folder,
        settings,
        data,
        forecaster,
        forecaster.windows,
        log=log,
        device=device,
        canceled=lambda: bool(canceled),
    )
    resumed_from = trainer.resume()
    _log_start(log, run_folder, order, trainer.total_steps, str(device), forecaster.module, resumed_from)
    ending = trainer.fit()
    best = trainer.best.best
    log.append(
        "run_ended",
        step=trainer.progress.step,
        epoch=trainer.progress.epoch,
        outcome=ending.outcome,
        reason=ending.reason,
        best=None if best is None else {**vars(best), "checkpoint": f"checkpoints/step_{best.step}"},
    )


def _log_start(
    log: EventWriter,
    run_folder: Path,
    order: TrainingOrder,
    total_steps: int,
    device: str,
    module: torch.nn.Module,
    resumed_from: int | None,
) -> None:
    import platform

    from toto_pipeline.version import code_version

    log.append(
        "run_started",
        run=run_folder.name,
        config=order.settings.model_dump(mode="json"),
        config_hash=order.settings.fingerprint(),
        data_fingerprint=order.data_fingerprint,
        code_version=code_version(),
        host=platform.node(),
        pid=os.getpid(),
        device=device,
        parameters=sum(p.numel() for p in module.parameters()),
        epochs=order.settings.epochs,
        steps_per_epoch=order.settings.steps_per_epoch,
        total_steps=total_steps,
        resumed_from=resumed_from,
    )
    log.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
