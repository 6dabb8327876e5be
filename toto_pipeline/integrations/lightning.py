"""The event log for Lightning's trainer.

    from toto_pipeline.integrations.lightning import TrainingLoggerCallback

    trainer = Trainer(callbacks=[TrainingLoggerCallback("runs/mine", sinks=["tensorboard"])])

step         every optimizer step: the loss that `training_step` returns, the learning rate, and what the module logs
             with `on_step=True`
epoch        what the module logs with `on_epoch=True`; what is named `val_...` is under `validation/`
run_started  the hyper-parameters of module and data module, and the step that a checkpoint was loaded at
run_ended    completed, stopped early, interrupted, or failed with the error

A validation in the middle of an epoch is recorded with the next step. Of several processes the first one records.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from toto_pipeline.events.training_logger import TrainingLogger
from toto_pipeline.integrations.naming import as_json, of_epoch


class TrainingLoggerCallback(Callback):  # type: ignore[misc]  # Lightning is not looked into for types
    """See the module.

    Args:
        run_folder: where the log is written.
        options: further arguments of `TrainingLogger`, such as `sinks`; `config` is added to the hyper-parameters.

    Attributes:
        training_logger: while the training runs, for what is recorded beside: histograms, figures, texts.
    """

    def __init__(self, run_folder: Path | str, **options: Any) -> None:
        self.training_logger: TrainingLogger | None = None
        self._folder, self._options = run_folder, options
        self._state: dict[str, Any] = {}
        self._step_names: set[str] = set()
        self._epoch_names: set[str] = set()
        self._validated: dict[str, Any] = {}
        self._ended_epoch: int | None = None
        self._loss: Any = None
        self._learning_rate: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        hyperparameters = {**getattr(trainer.datamodule, "hparams", {}), **pl_module.hparams}
        options = {
            "epochs": epochs if epochs and epochs > 0 else None,
            "steps_per_epoch": -(-batches // trainer.accumulate_grad_batches) if math.isfinite(batches) else None,
            "resumed_from": trainer.global_step or None,
            **self._options,
            "config": as_json({**hyperparameters, **self._options.get("config", {})}),
        }
        self.training_logger = TrainingLogger(self._folder, **options).__enter__()
        if self._state:
            self.training_logger.load_state_dict(self._state)
        self.training_logger.epochs = trainer.current_epoch
        self.training_logger.model(pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]  # before a scheduler sets that of the next step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        log = self.training_logger
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if log is None:
            return
        if loss is not None:  # that of a step is the sum over its batches: Lightning has divided by their number
            self._loss = loss.detach() + (0 if self._loss is None else self._loss)
        found = {name: value for name, value in trainer.callback_metrics.items() if name not in self._epoch_names}
        self._step_names |= found.keys()
        if trainer.global_step == log.steps:
            return  # gradients are accumulated
        values = {**found, **self._validated, "loss": self._loss, "lr": self._learning_rate}
        log.step(step=trainer.global_step, **values)
        self._loss, self._validated = None, {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._validated = self._of_epochs(trainer) if self.training_logger is not None else {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._ended_epoch = trainer.current_epoch + 1  # the module may yet log: what it has is taken by the next hook

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._record_epoch(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._record_epoch(trainer)
        if self.training_logger is not None and trainer.should_stop:
            self.training_logger.stop("the trainer was told to stop")
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._record_epoch(trainer)
        self._close(exception)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.training_logger is None else self.training_logger.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def _record_epoch(self, trainer: Any) -> None:
        if self.training_logger is not None and self._ended_epoch is not None:
            self.training_logger.epoch(epoch=self._ended_epoch, **of_epoch(self._of_epochs(trainer)))
            self._ended_epoch, self._validated = None, {}

    def _of_epochs(self, trainer: Any) -> dict[str, Any]:
        """What is logged for whole epochs and validations, as it is now."""
        found = {name: value for name, value in trainer.callback_metrics.items() if name not in self._step_names}
        self._epoch_names |= found.keys()
        return found

    def _close(self, error: BaseException | None = None) -> None:
        if self.training_logger is not None:
            self.training_logger.__exit__(None if error is None else type(error), error, None)
            self.training_logger = None
