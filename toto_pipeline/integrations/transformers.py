"""The event log for the trainer of Hugging Face's transformers, and for those built on it, such as TRL's.

    from toto_pipeline.integrations.transformers import TrainingLoggerCallback

    with TrainingLoggerCallback("runs/mine", sinks=["tensorboard"]) as callback:
        Trainer(model, arguments, callbacks=[callback], ...).train()

step         what the trainer logs, every `logging_steps` steps: the mean loss since the time before, learning rate,
             norm of the gradients; `logging_steps=1` records every step
epoch        the end of each epoch, and what an evaluation at that time gives: `eval_...` is under `validation/`
run_started  the training arguments and the configuration of the model, and the step that a checkpoint was loaded at
run_ended    completed, stopped early, interrupted, or failed with the error

An evaluation in the middle of an epoch is recorded with the next step that is logged. The trainer tells no callback of
an error: without `with` a training that fails is one whose process has gone without a word, when that ends. Of several
processes the first one records.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import TrainerCallback

from toto_pipeline.events.training_logger import TrainingLogger
from toto_pipeline.integrations.naming import as_json, of_epoch


class TrainingLoggerCallback(TrainerCallback):  # type: ignore[misc]  # transformers need not be installed
    """See the module.

    Args:
        run_folder: where the log is written.
        options: further arguments of `TrainingLogger`, such as `sinks`; `config` is added to the training arguments.

    Attributes:
        training_logger: while the training runs, for what is recorded beside: histograms, figures, texts.
    """

    def __init__(self, run_folder: Path | str, **options: Any) -> None:
        self.training_logger: TrainingLogger | None = None
        self._folder, self._options = run_folder, options
        self._evaluated: dict[str, Any] = {}
        self._epoch_has_ended = False
        self._logged = (0, 0.0)

    def __enter__(self) -> TrainingLoggerCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.training_logger is not None:
            self.training_logger.__exit__(kind, error, trace)
            self.training_logger = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        config = {**args.to_dict(), **self._options.get("config", {})}
        if hasattr(model, "config"):
            config["model"] = model.config.to_dict() if hasattr(model.config, "to_dict") else model.config
        options = {
            "epochs": state.num_train_epochs,
            "steps_per_epoch": -(-state.max_steps // state.num_train_epochs),
            "resumed_from": state.global_step or None,
            **self._options,
            "config": as_json(config),
        }
        self.training_logger = TrainingLogger(self._folder, **options).__enter__()
        self.training_logger.model(model)
        self._logged = (state.global_step, time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.training_logger is None or not logs or "loss" not in logs:
            return  # the scores of an evaluation come by on_evaluate, the summary at the end is of no step
        values = {name: value for name, value in logs.items() if name != "epoch"}
        if "grad_norm" in values:
            values["gradient_norm"] = values.pop("grad_norm")
        step, before = self._logged
        self._logged = (state.global_step, time.perf_counter())
        values["seconds"] = (self._logged[1] - before) / max(1, state.global_step - step)
        self.training_logger.step(step=state.global_step, **self._evaluated, **values)
        self._evaluated = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._epoch_has_ended = True  # an evaluation of it may follow

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        no_score = ("epoch", "_runtime", "_per_second", "_compilation_time")
        self._evaluated = {name: value for name, value in (metrics or {}).items() if not name.endswith(no_score)}
        self._record_epoch(state)
        self._logged = (self._logged[0], time.perf_counter())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._record_epoch(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._record_epoch(state)
        if self.training_logger is not None and state.global_step < state.max_steps:
            self.training_logger.stop("the trainer was told to stop")
        self.__exit__(None, None, None)

    def _record_epoch(self, state: Any) -> None:
        if self.training_logger is not None and self._epoch_has_ended:
            self.training_logger.steps = state.global_step
            self.training_logger.epoch(epoch=round(state.epoch), **of_epoch(self._evaluated))
            self._epoch_has_ended, self._evaluated = False, {}
