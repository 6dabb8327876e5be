"""The training loop.

    resume from the newest good checkpoint, if there is one
    for each epoch:
        for each batch:
            step        forward and backward of each micro-batch, clip, optimizer, learning rate
                        (observed: the last step of some epochs, and their forecasts)
            callbacks   see the steps, in groups
            save        where a checkpoint is due
        validate
        callbacks       see the epoch, and decide
        save            where a checkpoint is due; one `epoch` event
    publish the best weights as the model folder; one `run_ended` event

What a step trains on follows from (seed, epoch, index), so a resumed run does what an uninterrupted one would have
done. Told to stop, it finishes the step, saves, and ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toto_pipeline.checkpoints.manager import CheckpointManager
from toto_pipeline.checkpoints.store import publish_folder
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import PipelineError, TrainingError
from toto_pipeline.events.log import EventWriter, NoLog
from toto_pipeline.events.schema import Outcome
from toto_pipeline.models import families
from toto_pipeline.models.forecaster import TrainableForecaster
from toto_pipeline.models.optimizer import apply_unless, set_rates
from toto_pipeline.settings.monitoring import OBSERVATIONS
from toto_pipeline.settings.training import TrainingSettings
from toto_pipeline.training.callbacks import (
    Action,
    BestTracker,
    EpochResult,
    Record,
    ReduceLearningRate,
    StepResult,
    Stop,
    Warn,
    build_callbacks,
)
from toto_pipeline.training.distributed import World, spread
from toto_pipeline.training.observation import Observation
from toto_pipeline.training.precision import loss_scaler
from toto_pipeline.training.schedule import factor
from toto_pipeline.training.state import REPORT_STEPS, Progress, Tally, capture, live_tensors, restore
from toto_pipeline.training.validation import Validation, validate
from toto_pipeline.training.windows import Batch, TrainingWindows, training_batches, validation_places

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Ending:
    outcome: Outcome
    reason: str


class Trainer:
    """One training run, in one process or as one of several: the parts, and `fit` that moves them.

    `build` makes the forecaster that is trained, and at the end a second one that takes the best weights to be
    published. `observations` are as the setting `monitoring.observations` says.
    """

    def __init__(
        self,
        run_folder: Path,
        settings: TrainingSettings,
        data: TrainingData,
        build: Callable[[], TrainableForecaster],
        *,
        log: EventWriter | NoLog,
        device: torch.device,
        world: World | None = None,
        canceled: Callable[[], bool] = lambda: False,
        observations: int = OBSERVATIONS,
    ) -> None:
        self.run_folder = run_folder
        self.settings = settings
        self.data = data
        self.build = build
        self.log = log
        self.device = device
        self.world = world or World()
        self.told_to_stop = canceled
        self.total_steps = settings.epochs * settings.steps_per_epoch
        self.forecaster = build()
        self.shape = self.forecaster.windows
        self.forecaster.module.to(device)
        self.forecaster.set_scale(processes=self.world.size, accumulation=settings.accumulation)
        self.synchronize = spread(self.forecaster, settings.distributed, self.world)
        if settings.compile:
            self.forecaster.compile()
        self.optimizer = self.forecaster.optimizer(
            settings.learning_rate,
            settings.weight_decay,
            settings.muon_learning_rate if settings.optimizer == "muon" else None,
        )
        self.scaler = loss_scaler(settings, device)
        self.callbacks = build_callbacks(settings)
        self.progress = Progress()
        self.tally = Tally(device)
        self.checkpoints = CheckpointManager(
            run_folder,
            settings.checkpoints,
            ranks=self.world,
            report=log.append,
            before_commit=lambda: log.flush(durable=True),
        )
        self.saved_step = -1
        self.saved_at = time.monotonic()
        self.places = validation_places(
            data, most=settings.validation_batches * settings.batch_size, seed=settings.seed
        )
        self.observation = Observation(
            forecaster=self.forecaster,
            settings=settings,
            data=data,
            places=self.places,
            world=self.world,
            log=log,
            most=observations,
        )

    @property
    def best(self) -> EpochResult | None:
        tracker = self.callbacks["best"]
        assert isinstance(tracker, BestTracker)  # noqa: S101 - it is the one that build_callbacks makes
        return tracker.best

    def saved(self, step: int) -> str | None:
        """The checkpoint of a step, relative to the run; None where none was saved or kept."""
        path = self.checkpoints.path(step)
        return path if (self.run_folder / path).is_dir() else None

    def resume(self) -> int | None:
        """Go back to the newest checkpoint that verifies; the step it was at, or None where there is none."""
        self.checkpoints.prepare()
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            return None
        into = live_tensors(self) if checkpoint.manifest.format == "sharded" else None
        restore(self.checkpoints.load(checkpoint, into=into), self)
        self.saved_step = self.progress.step
        return self.progress.step

    def fit(self) -> Ending:
        """Train to the end, or until a callback or a cancel ends it; the best weights are then in `model/`.

        Raises:
            PipelineError: the training cannot go on, and starting it again would not help.
        """
        progress, per_epoch = self.progress, self.settings.steps_per_epoch
        with self.checkpoints, closing(self._batches()) as batches:
            while progress.epoch < self.settings.epochs and progress.stopped is None:
                started, waiting_since = time.perf_counter(), time.perf_counter()
                steps_here = (progress.epoch + 1) * per_epoch - progress.step
                while progress.step < (progress.epoch + 1) * per_epoch and progress.stopped is None:
                    batch = next(batches)
                    data_seconds = time.perf_counter() - waiting_since
                    loss, norm, skip = self.step(batch.to(self.device))
                    now = time.perf_counter()
                    self._count_step(loss, norm, skip, now - waiting_since, data_seconds)
                    waiting_since = now
                    self._save_after_step()
                    if self.canceled():
                        return self._cancel()
                seconds = time.perf_counter() - started
                if progress.stopped is None:
                    validation = self._validate()
                    if validation is None:
                        return self._cancel()
                    self._end_epoch(validation, seconds, steps_here)
            self._publish()
        return self._ending()

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One optimizer step on this process's part of a batch; loss, gradient norm, and whether it was skipped.

        The loss is the mean over all positions of the step, on however many processes and micro-batches. A step whose
        loss or gradient is not finite changes neither weights nor optimizer.
        """
        forecaster, parts = self.forecaster, self.settings.accumulation
        targets = self.world.sum(forecaster.targets(batch.values_BVT, batch.kept_BT)).clamp(min=1)
        loss = torch.zeros((), device=self.device)
        for number, micro in enumerate(batch.split(parts), start=1):
            with self.synchronize(number == parts):
                part = forecaster.loss(micro.values_BVT, micro.kept_BT) / targets
                self.scaler.scale(part * self.world.size).backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        loss = self.world.sum(loss)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(forecaster.module, self.settings.gradient_clip)
        skip = ~(loss.isfinite() & norm.isfinite())
        set_rates(self.optimizer, self._factor(self.progress.step))
        with self.observation.of_update(self.progress):
            apply_unless(self.optimizer, skip)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, skip

    def canceled(self) -> bool:
        """Whether any process was told to stop; all stop at the same step."""
        return self.world.any(self.told_to_stop())

    def learning_rate(self, step: int) -> float:
        """The base rate in the step with index `step`; unit scaling gives each parameter group a multiple of it."""
        return self.settings.learning_rate * self._factor(step)

    def _factor(self, step: int) -> float:
        return self.progress.rate_factor * factor(
            step,
            total_steps=self.total_steps,
            warmup_fraction=self.settings.warmup_fraction,
            decay_fraction=self.settings.decay_fraction,
        )

    def _batches(self) -> Generator[Batch]:
        settings = self.settings
        windows = TrainingWindows(
            self.data,
            self.shape,
            batch_size=settings.batch_size,
            steps_per_epoch=settings.steps_per_epoch,
            epochs=settings.epochs,
            seed=settings.seed,
            rank=self.world.rank,
            ranks=self.world.size,
        )
        return training_batches(windows, first_step=self.progress.step, workers=settings.loader_workers)

    def _count_step(
        self, loss: torch.Tensor, norm: torch.Tensor, skip: torch.Tensor, seconds: float, data_seconds: float
    ) -> None:
        progress = self.progress
        self.tally.add(progress.step % REPORT_STEPS, loss, norm, skip)
        rate = self.learning_rate(progress.step)
        progress.step += 1
        self.log.append(
            "step",
            step=progress.step,
            epoch=progress.epoch,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            seconds=seconds,
            data_seconds=data_seconds,
            **self.observation.take_ratios(),
        )
        if progress.step % REPORT_STEPS == 0 or progress.step % self.settings.steps_per_epoch == 0:
            self._report_steps()

    def _report_steps(self) -> None:
        """Show the callbacks the steps since the last group ended."""
        progress = self.progress
        group = (progress.step - 1) // REPORT_STEPS * REPORT_STEPS
        first = max(group, progress.epoch * self.settings.steps_per_epoch)  # the epoch before has shown its own
        rows = self.tally.recent[first % REPORT_STEPS :][: progress.step - first].tolist()
        steps = [
            StepResult(step=number, epoch=progress.epoch, loss=loss, gradient_norm=norm, skipped=bool(skipped))
            for number, (loss, norm, skipped) in enumerate(rows, start=first + 1)
        ]
        progress.skipped += sum(step.skipped for step in steps)
        self._apply(a for callback in self.callbacks.values() for a in callback.after_steps(steps) or ())

    def _validate(self) -> Validation | None:
        parts = self.world.size * self.settings.accumulation
        return validate(
            self.forecaster,
            self.shape,
            self.data,
            self.places,
            batch_size=max(1, self.settings.batch_size // parts),
            device=self.device,
            world=self.world,
            canceled=self.canceled,
            watch=self.observation.watch(self.progress),
        )

    def _end_epoch(self, validation: Validation, seconds: float, steps: int) -> None:
        progress, tally = self.progress, self.tally
        good_steps = tally.steps.item()
        result = EpochResult(
            epoch=progress.epoch + 1,
            step=progress.step,
            train_loss=tally.loss_sum.item() / good_steps if good_steps else math.nan,
            validation_loss=validation.loss,
            metrics=validation.metrics,
            learning_rate=self.learning_rate(progress.step - 1),
            gradient_norm=tally.recent[(progress.step - 1) % REPORT_STEPS, 1].item(),
        )
        skipped = int(tally.skipped.item())
        progress.epoch += 1
        tally.start_epoch()
        statistics = self._apply(a for c in self.callbacks.values() for a in c.after_epoch(result) or ())
        self.observation.end_epoch(progress)
        due = self._is_due_after_epoch(result)
        self.log.append(
            "epoch",
            step=progress.step,
            epoch=progress.epoch,
            train_loss=result.train_loss,
            validation_loss=result.validation_loss,
            metrics=dict(result.metrics),
            learning_rate=result.learning_rate,
            gradient_norm=result.gradient_norm,
            seconds=seconds,
            windows_per_second=self.settings.batch_size * steps / seconds if seconds else math.nan,
            skipped_steps=skipped,
            statistics=statistics,
            checkpoint=self.checkpoints.path(progress.step) if due else None,
            is_best=self.best is not None and self.best.epoch == progress.epoch,
        )
        self.log.flush()
        if due:  # after its event: who finds the checkpoint must find the history that led to it
            self._save(result.values)

    def _apply(self, actions: Iterable[Action]) -> dict[str, Any]:
        """Do what the callbacks ask for; what they want recorded is returned.

        Raises:
            TrainingError: one ends the run, and there is no good checkpoint to end it with.
        """
        recorded: dict[str, Any] = {}
        for action in actions:
            if isinstance(action, Record):
                recorded |= action.values
            elif isinstance(action, Warn):
                self._warn(action.name, action.message)
            elif isinstance(action, ReduceLearningRate):
                self.progress.rate_factor *= action.factor
                self._warn("learning_rate_reduced", action.reason)
            elif isinstance(action, Stop) and self.progress.stopped is None:
                if action.failed and self.best is None:
                    raise TrainingError(action.reason)
                self.progress.stopped = action.reason
        return recorded

    def _warn(self, name: str, message: str) -> None:
        self.log.append("warning", step=self.progress.step, epoch=self.progress.epoch, name=name, message=message)

    def _save_after_step(self) -> None:
        """Save in mid-epoch where the settings ask for it; the end of an epoch has its own save."""
        settings, step = self.settings.checkpoints, self.progress.step
        if step % self.settings.steps_per_epoch == 0 or self.progress.stopped is not None:
            return
        if (settings.every_steps and step % settings.every_steps == 0) or self._minutes_have_passed():
            self._save({})

    def _is_due_after_epoch(self, result: EpochResult) -> bool:
        settings, progress = self.settings.checkpoints, self.progress
        last = progress.epoch == self.settings.epochs or progress.stopped is not None
        due = (
            (settings.every_epochs is not None and progress.epoch % settings.every_epochs == 0)
            or (settings.every_steps is not None and progress.step % settings.every_steps == 0)
            or self._minutes_have_passed()
        )
        return (due or last) and math.isfinite(result.train_loss + result.validation_loss)

    def _minutes_have_passed(self) -> bool:
        minutes = self.settings.checkpoints.every_minutes
        return minutes is not None and self.world.any(time.monotonic() - self.saved_at >= 60 * minutes)

    def _save(self, metrics: Mapping[str, float], *, wait: bool = False) -> None:
        """Save on all processes, or raise on all what one of them could not do."""
        failure = None
        state = capture(self, metrics)
        try:
            self.checkpoints.save(state, wait=wait)
        except PipelineError as error:
            failure = error
        failures = [each for each in self.world.gather(failure) if each is not None]
        if failures:
            raise failures[0]
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()

    def _cancel(self) -> Ending:
        if self.saved_step != self.progress.step:
            self._save({}, wait=True)
        return Ending("canceled", "stopped from outside")

    def _publish(self) -> None:
        """Write the weights that the run is about to `model/`, in the family's public format."""
        self.checkpoints.wait()
        checkpoint = self.checkpoints.best() if self.settings.restore_best else self.checkpoints.latest()
        if checkpoint is not None:
            forecaster = self.build()
            state = self.checkpoints.load(checkpoint, into={"model": forecaster.module.state_dict()})
            forecaster.module.load_state_dict(state.tensors["model"])
            if self.world.rank == 0:
                publish_folder(self.run_folder / MODEL_FOLDER, lambda folder: families.save(forecaster, folder))
        self.world.barrier()

    def _ending(self) -> Ending:
        stopped = self.progress.stopped
        return Ending("completed", "all epochs done") if stopped is None else Ending("stopped", stopped)


def clip_gradients(module: torch.nn.Module, largest: float) -> torch.Tensor:
    """Scale the gradients down to a norm of at most `largest`; the norm before, over all processes."""
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), largest)
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
