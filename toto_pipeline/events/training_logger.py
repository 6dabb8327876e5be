"""The event log for any training loop.

    with TrainingLogger("runs/mine", config={"lr": 0.1}, sinks=["tensorboard"]) as log:
        for batch in batches:
            ...
            log.step(loss=loss, lr=rate)
        log.epoch(validation_loss=...)

Every number becomes an event of the log, and from the log every tool is fed that is named in `sinks`, by a process of
its own. The loop pays for appending to a list; tensors are read from their device, counted into histograms and written
in a thread, once a second.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from toto_pipeline.errors import ConfigError
from toto_pipeline.events import figures
from toto_pipeline.events.histograms import Snapshot
from toto_pipeline.events.log import FLUSH_SECONDS, EventWriter, read_events
from toto_pipeline.events.model_structure import modules
from toto_pipeline.events.processes import process_name
from toto_pipeline.events.schema import Event, Outcome
from toto_pipeline.events.statistics import Statistics
from toto_pipeline.events.system_monitor import SystemMonitor
from toto_pipeline.settings.sinks import unknown_sinks

_PLAIN = frozenset({float, int, str, bool})


class TrainingLogger:
    """Records a training in a run folder; a context manager. Any thread may log.

    Args:
        run_folder: created where it is not there. A folder that holds a log is gone on with: the next attempt.
        config: the settings of the run, to be compared and shown; anything that JSON has.
        epochs: how many epochs there will be, where that is known; with `steps_per_epoch` it tells how far the run is.
        steps_per_epoch: how many steps an epoch has.
        resumed_from: the step that the loop goes on from; what an earlier attempt had behind it no longer counts.
        sinks: the tools to be fed, by name, or a mapping of names to their settings: "tensorboard", "mlflow",
            "prometheus", or one of your own.
        system_seconds: how often the machine is looked at; None for never.
        console: tell epochs, warnings and the end on stderr.

    Raises:
        ConfigError: a sink is not installed.
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        run_folder: Path | str,
        *,
        config: Mapping[str, Any] | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        resumed_from: int | None = None,
        sinks: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
        system_seconds: float | None = 10.0,
        flush_seconds: float = FLUSH_SECONDS,
        console: bool = True,
    ) -> None:
        self.run_folder = Path(run_folder)
        self.steps = resumed_from or 0
        self.epochs = 0
        self._config = dict(config or {})
        self._planned = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
        self._resumed_from = resumed_from
        self._sinks = dict(sinks) if isinstance(sinks, Mapping) else {name: {} for name in sinks}
        _refuse_unknown(self._sinks)
        self._statistics = Statistics()
        self._narrator = _narrator() if console else None
        self._ending: tuple[Outcome, str] | None = None
        if resumed_from and steps_per_epoch:
            self.epochs = resumed_from // steps_per_epoch
        attempt = 1 + sum(event["type"] == "run_started" for event in read_events(self.run_folder))
        self._log = EventWriter(self.run_folder, attempt=attempt, flush_seconds=flush_seconds, watch=self._watch)
        self._system = (
            None
            if system_seconds is None
            else SystemMonitor(self._report, interval_seconds=system_seconds, paths={"home": self.run_folder})
        )
        self._step_ended = time.perf_counter()

    def __enter__(self) -> TrainingLogger:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._ending = ("canceled", "interrupted")
        elif error is not None and not isinstance(error, SystemExit):
            self._ending = ("failed", f"{type(error).__name__}: {error}")
        self._close()

    def step(self, *, step: int | None = None, **values: Any) -> None:
        """Record a step: `loss`, `lr`, `gradient_norm`, and whatever else, as numbers or tensors of one number.

        Its number is one more than that of the step before, unless `step` says otherwise. `seconds` is the time since
        the step before, unless it is given.

        Raises:
            ValueError: a value is a tensor of more than one number.
        """
        now = time.perf_counter()
        self.steps = self.steps + 1 if step is None else step
        if "lr" in values:
            values["learning_rate"] = values.pop("lr")
        if "seconds" not in values:
            values["seconds"] = now - self._step_ended
        self._step_ended = now
        self._log.put("step", self.steps, self.epochs, _numbers(values))

    def epoch(self, *, epoch: int | None = None, metrics: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Record the end of an epoch: `train_loss`, `validation_loss`, `metrics` by name, and whatever else."""
        self.epochs = self.epochs + 1 if epoch is None else epoch
        if "lr" in values:
            values["learning_rate"] = values.pop("lr")
        self._log.append(
            "epoch", step=self.steps, epoch=self.epochs, metrics=_numbers(dict(metrics or {})), **_numbers(values)
        )
        self._log.flush_soon()
        self._step_ended = time.perf_counter()  # the validation before is no part of the next step

    def histogram(self, name: str, values: Any) -> None:
        """Record how the values of a tensor or array are spread. They are copied now and counted later.

        Of more than a million values every n-th is looked at.
        """
        self._log.append("histogram", step=self.steps, epoch=self.epochs, name=name, snapshot=Snapshot(values))

    def figure(self, name: str, figure: Any) -> None:
        """Record a figure: one of `toto_pipeline.events.figures`, drawn later, or a matplotlib figure, drawn now."""
        if not isinstance(figure, Mapping):
            figure = figures.image(name, figure)
        self._log.append("figure", step=self.steps, epoch=self.epochs, name=name, figure=figure)

    def model(self, module: Any) -> None:
        """Record what a PyTorch module is made of; its graph is drawn from that."""
        self._log.append("model", step=self.steps, epoch=self.epochs, modules=modules(module))

    def text(self, name: str, text: str) -> None:
        """Record a text, in Markdown."""
        self._log.append("text", step=self.steps, epoch=self.epochs, name=name, text=text)

    def warning(self, name: str, message: str) -> None:
        """Record that something is not as it should be."""
        self._log.append("warning", step=self.steps, epoch=self.epochs, name=name, message=message)

    def stop(self, reason: str) -> None:
        """Record, when the run ends in order, that it was ended early, and why."""
        self._ending = ("stopped", reason)

    def flush(self) -> None:
        """Wait until everything so far is on the disk."""
        self._log.flush(durable=True)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """The course of each metric so far, by the names that the tools show, such as `train/loss`.

        count, not_finite, last, mean, deviation, minimum and maximum of all values; of the last hundred `slope`, the
        change from one value to the next, and `trend`: rising, falling, flat, or unknown where there are too few.
        """
        self._log.flush()
        return self._statistics.describe()

    def state_dict(self) -> dict[str, Any]:
        """What to save with a checkpoint, so that statistics and counts go on after a restart; fit for JSON."""
        self._log.flush()
        return {"steps": self.steps, "epochs": self.epochs, "statistics": self._statistics.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.epochs = int(state["steps"]), int(state["epochs"])
        self._statistics.load_state_dict(state["statistics"])

    def _watch(self, events: Sequence[Event]) -> None:
        self._statistics.add(events)
        if self._narrator is not None:
            self._narrator(events)

    def _report(self, type: str, **fields: Any) -> None:
        self._log.append(type, step=self.steps, epoch=self.epochs, **fields)

    def _start(self) -> None:
        epochs, per_epoch = self._planned["epochs"], self._planned["steps_per_epoch"]
        self._log.append(
            "run_started",
            run=self.run_folder.name,
            config=self._config,
            host=platform.node(),
            pid=os.getpid(),
            process=process_name(),
            supervisor=None,
            epochs=epochs,
            steps_per_epoch=per_epoch,
            total_steps=epochs * per_epoch if epochs and per_epoch else None,
            resumed_from=self._resumed_from,
        )
        self._log.flush()
        if self._sinks:
            self._follow()
        if self._system is not None:
            self._system.__enter__()
        self._step_ended = time.perf_counter()

    def _follow(self) -> None:
        """Start the process that feeds the sinks; it ends by itself when the run has ended, or this process is gone."""
        folder = self.run_folder / "monitoring"
        folder.mkdir(exist_ok=True)
        with (folder / "follower.log").open("ab") as log:
            subprocess.Popen(
                [
                    sys.executable, "-m", "toto_pipeline.monitoring", str(self.run_folder),
                    "--for", process_name(), "--sinks", orjson.dumps(self._sinks).decode(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _close(self) -> None:
        if self._system is not None:
            self._system.__exit__(None, None, None)
        outcome, reason = self._ending or ("completed", "the loop has ended")
        self._log.append("run_ended", step=self.steps, epoch=self.epochs, outcome=outcome, reason=reason, best=None)
        self._log.close()


def _narrator() -> Callable[[Sequence[Event]], None]:
    from toto_pipeline.events.narrator import Narrator  # brings structlog and rich, which a quiet loop need not have

    return Narrator()


def _refuse_unknown(sinks: Mapping[str, Any]) -> None:
    if not sinks:
        return
    problem = unknown_sinks(sinks)
    if problem:
        raise ConfigError(f"sinks: {problem}.")


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """The values, of which none changes any more: a tensor on a CPU is read now, one on another device is copied."""
    for name, value in values.items():
        if type(value) not in _PLAIN and hasattr(value, "item"):
            values[name] = _number(name, value)
    return values


def _number(name: str, value: Any) -> Any:
    try:
        return value.item() if getattr(value, "is_cpu", True) else value.detach().reshape(()).clone()
    except (RuntimeError, ValueError):
        raise ValueError(
            f"{name} has the shape {tuple(value.shape)}; expected one number. Log a whole tensor with histogram()."
        ) from None
