"""The progress of a training, as a projection of its event log.

`progress(events)` folds events into a `Progress`; `advance` takes one step of that fold, for who follows a log as it
grows. Neither reads a clock: rates and the time remaining come from the times that the events carry, so a recorded log
gives the same numbers whenever it is read. `live_view` and `epoch_line` show a `Progress` to a person.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from toto_pipeline.events.schema import Event, number

if TYPE_CHECKING:
    from rich.console import RenderableType

SMOOTHING = 0.9
"""Weight of the past in the smoothed loss and step time."""


@dataclass(frozen=True, kw_only=True)
class EpochProgress:
    """What an epoch ended with."""

    epoch: int
    step: int
    train_loss: float
    validation_loss: float
    seconds: float
    windows_per_second: float
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands. NaN stands for what has not been recorded yet."""

    started: bool = False
    attempt: int = 1
    resumed_from: int | None = None
    epochs: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    batch_size: int = 0
    step: int = 0
    loss: float = math.nan
    learning_rate: float = math.nan
    step_seconds: float = math.nan
    seconds_remaining: float = math.nan
    finished_epochs: tuple[EpochProgress, ...] = ()
    best_validation_loss: float = math.nan
    best_epoch: int | None = None
    warnings: tuple[str, ...] = ()
    outcome: str | None = None
    reason: str | None = None
    first_step: int | None = None
    """First step of this attempt, and its monotonic time: what the remaining time is extrapolated from."""
    first_step_seconds: float = math.nan

    @property
    def epoch(self) -> int:
        """The epoch being trained, from 1; the last one when the training is over."""
        if not self.steps_per_epoch:
            return 0
        running = self.step // self.steps_per_epoch + 1
        return max(1, min(running, self.epochs))

    @property
    def windows_per_second(self) -> float:
        return self.batch_size / self.step_seconds if self.step_seconds > 0 else math.nan

    @property
    def validation_loss(self) -> float:
        return self.finished_epochs[-1].validation_loss if self.finished_epochs else math.nan

    @property
    def share(self) -> float:
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


def progress(events: Iterable[Event]) -> Progress:
    return functools.reduce(advance, events, Progress())


def advance(state: Progress, event: Event) -> Progress:
    """`state` after `event`; types that say nothing about progress leave it as it is."""
    handler = _HANDLERS.get(event["type"])
    return state if handler is None else handler(state, event)


def _run_started(state: Progress, event: Event) -> Progress:
    config = event.get("config") or {}
    training = config.get("training") or config  # a trainer may know its own settings only
    resumed_from = event.get("resumed_from")
    return replace(
        state,
        started=True,
        attempt=int(event.get("attempt", 1)),
        resumed_from=resumed_from,
        epochs=int(event.get("epochs") or 0),
        steps_per_epoch=int(event.get("steps_per_epoch") or 0),
        total_steps=int(event.get("total_steps") or 0),
        batch_size=int(training.get("batch_size") or 0),
        step=int(resumed_from or 0),
        step_seconds=math.nan,
        seconds_remaining=math.nan,
        first_step=None,
        outcome=None,
        reason=None,
    )


def _step(state: Progress, event: Event) -> Progress:
    step, now = int(event["step"]), number(event.get("monotonic"))
    first_step, first_seconds = (
        (step, now) if state.first_step is None else (state.first_step, state.first_step_seconds)
    )
    return replace(
        state,
        step=step,
        loss=_smooth(state.loss, number(event.get("loss"))),
        learning_rate=number(event.get("learning_rate")),
        step_seconds=_smooth(state.step_seconds, number(event.get("seconds"))),
        first_step=first_step,
        first_step_seconds=first_seconds,
        seconds_remaining=_remaining(step - first_step, now - first_seconds, state.total_steps - step),
    )


def _epoch(state: Progress, event: Event) -> Progress:
    finished = EpochProgress(
        epoch=int(event["epoch"]),
        step=int(event["step"]),
        train_loss=number(event.get("train_loss")),
        validation_loss=number(event.get("validation_loss")),
        seconds=number(event.get("seconds")),
        windows_per_second=number(event.get("windows_per_second")),
        is_best=bool(event.get("is_best")),
    )
    earlier = tuple(epoch for epoch in state.finished_epochs if epoch.epoch < finished.epoch)
    best = min(
        (epoch for epoch in (*earlier, finished) if math.isfinite(epoch.validation_loss)),
        key=lambda epoch: epoch.validation_loss,
        default=None,
    )
    return replace(
        state,
        finished_epochs=(*earlier, finished),
        best_epoch=None if best is None else best.epoch,
        best_validation_loss=math.nan if best is None else best.validation_loss,
    )


def _warning(state: Progress, event: Event) -> Progress:
    return replace(state, warnings=(*state.warnings, str(event.get("message") or event.get("name"))))


def _quarantined(state: Progress, event: Event) -> Progress:
    message = f"checkpoint {event.get('checkpoint')} was set aside: {event.get('reason')}"
    return replace(state, warnings=(*state.warnings, message))


def _checkpoint_failed(state: Progress, event: Event) -> Progress:
    message = f"checkpoint {event.get('checkpoint')} could not be saved: {event.get('reason')}"
    return replace(state, warnings=(*state.warnings, message))


def _run_ended(state: Progress, event: Event) -> Progress:
    return replace(state, outcome=event.get("outcome"), reason=event.get("reason"), seconds_remaining=0.0)


_HANDLERS = {
    "run_started": _run_started,
    "step": _step,
    "epoch": _epoch,
    "warning": _warning,
    "checkpoint_quarantined": _quarantined,
    "checkpoint_failed": _checkpoint_failed,
    "run_ended": _run_ended,
}


def _smooth(past: float, value: float) -> float:
    return value if math.isnan(past) or math.isinf(past) else SMOOTHING * past + (1 - SMOOTHING) * value


def _remaining(steps_done: int, seconds: float, steps_left: int) -> float:
    """At the pace of this attempt, validation and checkpoints included; NaN before a second step."""
    return seconds / steps_done * max(steps_left, 0) if steps_done > 0 else math.nan


def live_view(state: Progress) -> RenderableType:
    """A bar and its numbers for a rich live display, two lines that fit 80 columns."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if not state.started:
        return Text("  waiting for the training process", style="dim")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        Text(f"  epoch {state.epoch}/{state.epochs}"),
        ProgressBar(total=max(state.total_steps, 1), completed=state.step, width=28),
        Text(f"step {state.step}/{state.total_steps}"),
        Text(f"{clock(state.seconds_remaining)} left", style="cyan"),
    )
    return Group(bar, Text("  " + ", ".join(_figures(state)), style="dim"))


def _figures(state: Progress) -> list[str]:
    figures = [f"loss {state.loss:.4f}"]
    if state.finished_epochs:
        figures.append(f"validation {state.validation_loss:.4f}")
    if state.best_epoch is not None:
        figures.append(f"best {state.best_validation_loss:.4f} (epoch {state.best_epoch})")
    if math.isfinite(state.windows_per_second):
        figures.append(f"{state.windows_per_second:.0f} windows/s")
    if state.attempt > 1:
        figures.append(f"attempt {state.attempt}")
    return figures


def epoch_line(epoch: EpochProgress, state: Progress) -> str:
    """An epoch's end in one plain line."""
    best = ", best so far" if epoch.is_best else ""
    left = f", {clock(state.seconds_remaining)} left" if math.isfinite(state.seconds_remaining) else ""
    return (
        f"epoch {epoch.epoch}/{state.epochs}: train loss {epoch.train_loss:.4f}, "
        f"validation loss {epoch.validation_loss:.4f}, {epoch.windows_per_second:.0f} windows/s, "
        f"{epoch.seconds:.1f} s{best}{left}"
    )


def clock(seconds: Any) -> str:
    """Seconds as 0:42, 12:05 or 3:07:09; `-:--` where they are not known."""
    value = number(seconds)
    if not math.isfinite(value):
        return "-:--"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
