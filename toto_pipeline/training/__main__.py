"""A training process: `python -m toto_pipeline.training RUN_FOLDER`, started by the launcher, one for each rank.

It reads the run's order, resumes or begins, trains, and appends events. A fault that a user can mend ends the run in
order (exit 0, the reason in the `run_ended` event), because starting again would not help; any other fault exits
non-zero, and the launcher starts the processes again from the last good checkpoint. Of several processes only the
first, rank 0, holds the run's lock and writes its log.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from toto_pipeline.errors import PipelineError
from toto_pipeline.events.log import EventWriter, NoLog, read_events
from toto_pipeline.events.narrator import Narrator
from toto_pipeline.events.system_monitor import SystemMonitor
from toto_pipeline.training.process import die_with_parent, lock_run
from toto_pipeline.training.run_files import TrainingOrder, read_order

if TYPE_CHECKING:
    from toto_pipeline.settings.training import TrainingSettings
    from toto_pipeline.training.trainer import Trainer

LOCK_PATIENCE_SECONDS = 60.0


def main(arguments: list[str]) -> int:
    die_with_parent()
    told_to_stop = _listen_for_signals()
    run_folder = Path(arguments[0])
    if int(os.environ.get("RANK", "0")) > 0:
        return _run(run_folder, NoLog(), told_to_stop)
    try:
        narrator = Narrator()
        lock = lock_run(run_folder, LOCK_PATIENCE_SECONDS)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    attempt = 1 + sum(event["type"] == "run_started" for event in read_events(run_folder))
    with EventWriter(run_folder, attempt=attempt, watch=narrator) as log:
        code = _run(run_folder, log, told_to_stop)
    os.close(lock)
    return code


def _listen_for_signals() -> list[int]:
    """Numbers of the signals that asked this process to stop; it looks at them when a step is done."""
    heard: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return heard


def _run(run_folder: Path, log: EventWriter | NoLog, told_to_stop: list[int]) -> int:
    try:
        _train(run_folder, read_order(run_folder), log, told_to_stop)
    except PipelineError as error:
        print(error, file=sys.stderr)
        log.append("run_ended", outcome="failed", reason=str(error), error=type(error).__name__, best=None)
    except Exception:
        traceback.print_exc()
        log.append("warning", name="trainer_died", message=traceback.format_exc(limit=-1).strip())
        return 1
    return 0


def _train(run_folder: Path, order: TrainingOrder, log: EventWriter | NoLog, told_to_stop: list[int]) -> None:
    from toto_pipeline.data.training_data import TrainingData
    from toto_pipeline.home import Home
    from toto_pipeline.models import families
    from toto_pipeline.models.device import choose_device
    from toto_pipeline.models.weights import locate_weights
    from toto_pipeline.training.distributed import join_world, local_device
    from toto_pipeline.training.precision import make_repeatable
    from toto_pipeline.training.trainer import Trainer

    settings = order.settings
    home = Home(run_folder.parent.parent)
    device = choose_device(local_device(settings.device))
    name = settings.model.weights
    weights = None if name is None else locate_weights(name, home.cache)
    data = TrainingData.open(home.root / order.training_data)
    world = join_world(device, settings.distributed.timeout_seconds)
    make_repeatable(settings)
    trainer = Trainer(
        run_folder,
        settings,
        data,
        lambda: families.build_for_training(settings, weights),
        log=log,
        device=device,
        world=world,
        canceled=lambda: bool(told_to_stop),
        observations=order.observations,
    )
    resumed_from = trainer.resume()
    _log_start(log, run_folder, order, trainer, resumed_from)
    _warn_of_random_weights(log, settings)
    with _machine_watched(log, run_folder, order, trainer):
        ending = trainer.fit()
    best = trainer.best
    log.append(
        "run_ended",
        step=trainer.progress.step,
        epoch=trainer.progress.epoch,
        outcome=ending.outcome,
        reason=ending.reason,
        best=None if best is None else {**best.to_json(), "checkpoint": trainer.saved(best.step)},
    )
    world.leave()


def _machine_watched(
    log: EventWriter | NoLog, run_folder: Path, order: TrainingOrder, trainer: Trainer
) -> AbstractContextManager[object]:
    """Readings of the machine go into the log while the block runs; of several processes one takes them for all."""
    if isinstance(log, NoLog):
        return nullcontext()

    def report(type: str, **fields: Any) -> None:
        log.append(type, step=trainer.progress.step, epoch=trainer.progress.epoch, **fields)

    return SystemMonitor(
        report,
        interval_seconds=order.system_seconds,
        paths={"home": run_folder},
        pid=os.getppid() if trainer.world.size > 1 else None,
    )


def _log_start(
    log: EventWriter | NoLog, run_folder: Path, order: TrainingOrder, trainer: Trainer, resumed_from: int | None
) -> None:
    import platform

    import psutil

    from toto_pipeline.events.processes import process_name
    from toto_pipeline.version import code_version

    parameters = list(trainer.forecaster.module.parameters())
    log.append(
        "run_started",
        run=run_folder.name,
        config=order.settings.model_dump(mode="json"),
        config_hash=order.settings.fingerprint(),
        data_fingerprint=order.data_fingerprint,
        code_version=code_version(),
        host=platform.node(),
        pid=os.getpid(),
        process=process_name(),
        supervisor=process_name(psutil.Process(os.getppid())),
        device=str(trainer.device),
        processes=trainer.world.size,
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        epochs=order.settings.epochs,
        steps_per_epoch=order.settings.steps_per_epoch,
        total_steps=trainer.total_steps,
        resumed_from=resumed_from,
    )
    if resumed_from is None:
        trainer.observation.start()
    log.flush()


def _warn_of_random_weights(log: EventWriter | NoLog, settings: TrainingSettings) -> None:
    if settings.tune == "full" or settings.model.weights is not None:
        return
    log.append(
        "warning",
        name="adapters_on_random_weights",
        message=f"training.tune is {settings.tune} and training.model.weights is not set, so all that is frozen is "
        "random: little can be learned. Set training.model.weights to a trained model, or training.tune to full.",
    )
    log.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
