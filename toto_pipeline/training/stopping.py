"""When a training run ends before its last epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from toto_pipeline.settings.training import EarlyStoppingSettings
from toto_pipeline.training.actions import (
    Action,
    Callback,
    Episode,
    EpochResult,
    StepResult,
    Stop,
    Warn,
    cost,
    epochs_in_words,
)

_WAY_OUT = "a lower training.learning_rate usually helps"


class EarlyStopping(Callback):
    """Stops after `patience` epochs in a row without an improvement by more than `min_delta`.

    Decides as Lightning's EarlyStopping does, and with a baseline as that of Keras: a value better than the best so far
    is the new best, but starts the patience anew only if it is better than the baseline too; an epoch with a new best
    never ends the run. Epochs of the warm-up are not looked at. A value that is not finite is no improvement.
    """

    def __init__(self, settings: EarlyStoppingSettings) -> None:
        self.settings = settings
        self._best: float | None = None
        self._best_epoch = 0
        self._waited = 0

    def after_epoch(self, result: EpochResult) -> list[Action]:
        value, patience = result.value(self.settings.metric), self.settings.patience
        if result.epoch <= self.settings.warmup_epochs:
            return []
        self._waited += 1
        if self._better(value, self._best):
            self._best, self._best_epoch = value, result.epoch
            if self._better(value, self.settings.baseline):
                self._waited = 0
            return []
        return [] if patience is None or self._waited < patience else [Stop(self._reason())]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "best_epoch": self._best_epoch, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._best_epoch, self._waited = state["best"], state["best_epoch"], state["waited"]

    def _better(self, value: float, than: float | None) -> bool:
        """Every finite number is better than None."""
        if than is None or not math.isfinite(value):
            return math.isfinite(value)
        mode = self.settings.mode
        return cost(value, mode) + self.settings.min_delta < cost(than, mode)

    def _reason(self) -> str:
        settings, best = self.settings, self._best
        if best is None:
            return f"{settings.metric} was not a finite number for {epochs_in_words(self._waited)}"
        goal, note = f"{best:.6g} (epoch {self._best_epoch})", ""
        if settings.baseline is not None and not self._better(best, settings.baseline):
            goal, note = f"the baseline {settings.baseline:.6g}", f"; the best was {goal}"
        direction = "lower" if settings.mode == "min" else "higher"
        margin = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
        return (
            f"{settings.metric} has not been {direction} than {goal}{margin} for {epochs_in_words(self._waited)}{note}"
        )


class NonFiniteGuard(Callback):
    """Ends the run, as failed, on `max_skipped` skipped steps in a row or an epoch whose loss is not finite.

    Each group of steps with a skipped one is worth a warning; a step is skipped where its loss or gradient is not
    finite.
    """

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self._in_a_row = 0
        self._in_all = 0
        self._too_many = Episode()

    def after_steps(self, steps: Sequence[StepResult]) -> list[Action]:
        stops = [stop for step in steps for stop in self._count(step)]
        skipped = [step for step in steps if step.skipped]
        return [self._warning(skipped), *stops] if skipped else []

    def after_epoch(self, result: EpochResult) -> list[Action]:
        if math.isfinite(result.train_loss) and math.isfinite(result.validation_loss):
            return []
        reason = (
            f"the loss of epoch {result.epoch} is not finite (train {result.train_loss}, "
            f"validation {result.validation_loss}); {_WAY_OUT}"
        )
        return [Stop(reason, failed=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._in_a_row, "in_all": self._in_all, "too_many": self._too_many.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row, self._in_all = state["in_a_row"], state["in_all"]
        self._too_many.left = state["too_many"]

    def _count(self, step: StepResult) -> Iterable[Stop]:
        self._in_all += step.skipped
        self._in_a_row = self._in_a_row + 1 if step.skipped else 0
        if self._too_many.begins(self._in_a_row >= self.max_skipped):
            yield Stop(
                f"{self._in_a_row} steps in a row were skipped, at last step {step.step} with {_not_finite(step)}; "
                f"{_WAY_OUT}",
                failed=True,
            )

    def _warning(self, skipped: Sequence[StepResult]) -> Warn:
        first, last = skipped[0], skipped[-1]
        which = (
            f"step {last.step} was"
            if first is last
            else f"{len(skipped)} of the steps {first.step} to {last.step} were"
        )
        return Warn(
            "steps_skipped",
            f"{which} skipped, at last with {_not_finite(last)}; skipped so far: {self._in_all}. "
            f"After {self.max_skipped} in a row the run ends.",
        )


def _not_finite(step: StepResult) -> str:
    """What of a skipped step was not finite, with its value."""
    values = {"loss": step.loss, "gradient norm": step.gradient_norm}
    return " and ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
