"""The training loop.

    resume from the newest good checkpoint, if there is one
    for each epoch:
        for each batch: forward, backward, clip, step, schedule; one `step` event
        validate; callbacks decide; save a checkpoint; one `epoch` event
    load the best weights; publish the model folder; one `run_ended` event

What a step trains on follows from (seed, epoch, index), so a resumed run does what an uninterrupted one would have
done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from toto_pipeline.checkpoints.manager import CheckpointManager
from toto_pipeline.checkpoints.store import publish_folder
from toto_pipeline.config import TrainingSettings
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.events.log import EventWriter
from toto_pipeline.events.schema import Outcome
from toto_pipeline.models.forecaster import TrainableForecaster, WindowShape
from toto_pipeline.training.callbacks import (
    BestTracker,
    Callback,
    EarlyStopping,
    EpochResult,
    Stop,
    StopOnDivergence,
)
from toto_pipeline.training.schedule import factor
from toto_pipeline.training.state import Progress, capture, restore
from toto_pipeline.training.validation import validate
from toto_pipeline.training.windows import Batch, TrainingWindows, training_batches, validation_places

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Ending:
    outcome: Outcome
    reason: str


class Trainer:
    """One training run in one process: the parts, and `fit` that moves them."""

    def __init__(
        self,
        run_folder: Path,
        settings: TrainingSettings,
        data: TrainingData,
        forecaster: TrainableForecaster,
        shape: WindowShape,
        *,
        log: EventWriter,
        device: torch.device,
        canceled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run_folder = run_folder
        self.settings = settings
        self.data = data
        self.forecaster = forecaster
        self.shape = shape
        self.log = log
        self.device = device
        self.canceled = canceled
        self.total_steps = settings.epochs * settings.steps_per_epoch
        self.optimizer = forecaster.optimizer(settings.learning_rate, settings.weight_decay)
        self.scheduler = LambdaLR(self.optimizer, self._factor)
        self.checkpoints = CheckpointManager(run_folder, keep_last=settings.keep_checkpoints)
        self.best = BestTracker()
        self.policies: dict[str, Callback] = {"divergence": StopOnDivergence()}
        if settings.patience is not None:
            self.policies["early_stopping"] = EarlyStopping(settings.patience)
        self.progress = Progress()
        self.places = validation_places(
            data, most=settings.validation_batches * settings.batch_size, seed=settings.seed
        )

    def fit(self) -> Ending:
        """Train to the end, or until a policy or a cancel ends it; the best weights are then in `model/`."""
        settings, progress = self.settings, self.progress
        stop = Stop(progress.stopped) if progress.stopped else None
        while progress.epoch < settings.epochs and stop is None:
            windows = TrainingWindows(
                self.data,
                self.shape,
                batch_size=settings.batch_size,
                steps=settings.steps_per_epoch,
                seed=settings.seed,
                epoch=progress.epoch,
            )
            losses, started = [], time.perf_counter()
            waiting_since = started
            for batch in training_batches(windows, first_step=0, workers=settings.loader_workers):
                data_seconds = time.perf_counter() - waiting_since
                loss = self.forecaster.loss(*_on(batch, self.device))
                loss.backward()  # type: ignore[no-untyped-call]
                norm = torch.nn.utils.clip_grad_norm_(self.forecaster.module.parameters(), settings.gradient_clip)
                rate = self.learning_rate
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.scheduler.step()
                progress.step += 1
                losses.append(loss.detach())
                now = time.perf_counter()
                self.log.append(
                    "step",
                    step=progress.step,
                    epoch=progress.epoch,
                    loss=losses[-1],
                    learning_rate=rate,
                    gradient_norm=norm.detach(),
                    seconds=now - waiting_since,
                    data_seconds=data_seconds,
                )
                waiting_since = now
                if self.canceled():
                    return Ending("canceled", "stopped from outside")
            progress.epoch += 1
            stop = self._end_epoch(torch.stack(losses).mean().item(), norm.item(), time.perf_counter() - started)
        self._publish_best()
        return Ending("completed", "all epochs done") if stop is None else Ending("stopped", stop.reason)

    @property
    def learning_rate(self) -> float:
        """The base rate times the schedule's factor of the coming step."""
        return self.settings.learning_rate * self._factor(self.progress.step)

    def resume(self) -> int | None:
        """Go back to the newest checkpoint that verifies; the step it was at, or None where there is none."""
        self.checkpoints.prepare()
        checkpoint = self.checkpoints.latest(self._report_quarantine)
        if checkpoint is None:
            return None
        restore(self.checkpoints.load(checkpoint), self)
        return self.progress.step

    def _end_epoch(self, train_loss: float, gradient_norm: float, train_seconds: float) -> Stop | None:
        settings, progress = self.settings, self.progress
        validation = validate(
            self.forecaster,
            self.shape,
            self.data,
            self.places,
            batch_size=settings.batch_size,
            device=self.device,
        )
        result = EpochResult(progress.epoch, progress.step, train_loss, validation.loss)
        self.best.after_epoch(result)
        stops = [stop for policy in self.policies.values() if (stop := policy.after_epoch(result))]
        progress.stopped = stops[0].reason if stops else None
        path = self._save_checkpoint(validation.loss) if math.isfinite(train_loss + validation.loss) else None
        self.log.append(
            "epoch",
            step=progress.step,
            epoch=progress.epoch,
            train_loss=train_loss,
            validation_loss=validation.loss,
            metrics=validation.metrics,
            learning_rate=self.settings.learning_rate * self._factor(progress.step - 1),
            gradient_norm=gradient_norm,
            seconds=train_seconds,
            windows_per_second=settings.batch_size * settings.steps_per_epoch / train_seconds,
            checkpoint=path,
            is_best=self.best.best is not None and self.best.best.epoch == progress.epoch,
        )
        self.log.flush(durable=True)
        return stops[0] if stops else None

    def _save_checkpoint(self, validation_loss: float) -> str:
        started = time.perf_counter()
        checkpoint = self.checkpoints.save(capture(self, validation_loss))
        path = str(checkpoint.folder.relative_to(self.run_folder))
        self.log.append(
            "checkpoint_saved",
            step=self.progress.step,
            epoch=self.progress.epoch,
            checkpoint=path,
            bytes=checkpoint.manifest.size_bytes,
            seconds=time.perf_counter() - started,
        )
        return path

    def _publish_best(self) -> None:
        """Write the weights with the lowest validation loss to `model/`, in the family's public format."""
        checkpoint = self.checkpoints.best(self._report_quarantine)
        if checkpoint is None:
            return
        weights = self.checkpoints.load(checkpoint).tensors["model"]
        self.forecaster.module.load_state_dict(weights)
        publish_folder(self.run_folder / MODEL_FOLDER, self.forecaster.save)

    def _factor(self, step: int) -> float:
        return factor(
            step,
            total_steps=self.total_steps,
            warmup_fraction=self.settings.warmup_fraction,
            decay_fraction=self.settings.decay_fraction,
        )

    def _report_quarantine(self, folder: Path, moved_to: Path, reason: str) -> None:
        self.log.append(
            "checkpoint_quarantined",
            checkpoint=str(folder.relative_to(self.run_folder)),
            moved_to=str(moved_to.relative_to(self.run_folder)),
            reason=reason,
        )


def _on(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    moved = batch.to(device)
    return moved.values_BVT, moved.kept_BT
