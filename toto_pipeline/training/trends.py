"""Warnings about the course of the training. They change nothing.

Each comes once when its trouble begins, and again only after it has ended. A curve that falls faster than its
noise, over the epochs in question, causes none.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from toto_pipeline.settings.training import TrendSettings
from toto_pipeline.training.actions import Action, Callback, Episode, EpochResult, StepResult, Warn

_MEDIAN_STEPS, _FEWEST_STEPS = 100, 20


class Overfitting(Callback):
    """Warns when the validation loss rises while the training loss falls, `overfitting_epochs` epochs in a row.

    The moving means over `window` epochs must move so too, which noise on curves that both fall does not bring about.
    """

    def __init__(self, settings: TrendSettings) -> None:
        self.settings = settings
        self._recent: list[tuple[float, float]] = []  # training and validation loss, window + 1 epochs
        self._in_a_row = 0
        self._episode = Episode()

    def after_epoch(self, result: EpochResult) -> list[Action]:
        losses = (result.train_loss, result.validation_loss)
        if not all(map(math.isfinite, losses)):
            self._recent, self._in_a_row = [], 0
            self._episode.begins(False)
            return []
        self._recent = [*self._recent, losses][-self.settings.window - 1 :]
        self._in_a_row = self._in_a_row + 1 if _diverge(self._recent, 1) else 0
        long_enough = self._in_a_row >= self.settings.overfitting_epochs
        if not self._episode.begins(long_enough and _diverge(self._recent, self.settings.window)):
            return []
        message = (
            f"the validation loss has risen to {losses[1]:.6g} while the training loss fell to {losses[0]:.6g}, "
            f"{self._in_a_row} epochs in a row until epoch {result.epoch}; more data, or training.early_stopping, helps"
        )
        return [Warn("overfitting", message)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "recent": [list(losses) for losses in self._recent],
            "in_a_row": self._in_a_row,
            "episode": self._episode.left,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = [(train, validation) for train, validation in state["recent"]]
        self._in_a_row, self._episode.left = state["in_a_row"], state["episode"]


class LossPlateau(Callback):
    """Warns after `plateau_epochs` epochs in a row without a validation loss better by `plateau_threshold` of it."""

    def __init__(self, settings: TrendSettings) -> None:
        self.settings = settings
        self._best: float | None = None
        self._waited = 0
        self._episode = Episode()

    def after_epoch(self, result: EpochResult) -> list[Action]:
        loss = result.validation_loss
        self._waited += 1
        if math.isfinite(loss) and (self._best is None or loss < self._limit(self._best)):
            self._best, self._waited = loss, 0
        if not self._episode.begins(self._waited >= self.settings.plateau_epochs) or self._best is None:
            return []
        message = (
            f"the validation loss has not fallen below {self._best:.6g} by more than "
            f"{self.settings.plateau_threshold:.3g} of it for {self._waited} epochs, until epoch {result.epoch}"
        )
        return [Warn("loss_plateau", message)]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited, "episode": self._episode.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited, self._episode.left = state["best"], state["waited"], state["episode"]

    def _limit(self, best: float) -> float:
        return best - self.settings.plateau_threshold * abs(best)


class Divergence(Callback):
    """Warns when the training loss of an epoch is above `divergence_factor` times the lowest so far."""

    def __init__(self, settings: TrendSettings) -> None:
        self.settings = settings
        self._lowest: float | None = None
        self._episode = Episode()

    def after_epoch(self, result: EpochResult) -> list[Action]:
        loss, lowest = result.train_loss, self._lowest
        if not math.isfinite(loss):  # the guard ends the run
            return []
        self._lowest = loss if lowest is None else min(loss, lowest)
        if not self._episode.begins(lowest is not None and loss > self._limit(lowest)):
            return []
        message = (
            f"the training loss of epoch {result.epoch} is {loss:.6g}, and was {lowest:.6g} at its lowest; "
            "a lower training.learning_rate usually helps"
        )
        return [Warn("divergence", message)]

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self._lowest, "episode": self._episode.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lowest, self._episode.left = state["lowest"], state["episode"]

    def _limit(self, lowest: float) -> float:
        return lowest + (self.settings.divergence_factor - 1) * abs(lowest)


class Oscillation(Callback):
    """Warns when the training loss rises and falls in turn, `oscillation_epochs` epochs in a row.

    A change counts from `oscillation_amplitude` on, as a share of the smaller of the two losses.
    """

    def __init__(self, settings: TrendSettings) -> None:
        self.settings = settings
        self._previous: float | None = None
        self._direction = 0
        self._in_a_row = 0
        self._episode = Episode()

    def after_epoch(self, result: EpochResult) -> list[Action]:
        loss = result.train_loss
        direction = self._direction_to(loss)
        if direction == 0:
            self._in_a_row = 0
        else:
            self._in_a_row = self._in_a_row + 1 if direction == -self._direction else 1
        self._previous, self._direction = (loss if math.isfinite(loss) else None), direction
        if not self._episode.begins(self._in_a_row >= self.settings.oscillation_epochs):
            return []
        message = (
            f"the training loss has risen and fallen in turn by at least {self.settings.oscillation_amplitude:.3g} of "
            f"it, {self._in_a_row} epochs in a row until epoch {result.epoch}; "
            "a lower training.learning_rate or a larger training.batch_size usually helps"
        )
        return [Warn("oscillation", message)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "previous": self._previous,
            "direction": self._direction,
            "in_a_row": self._in_a_row,
            "episode": self._episode.left,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._previous, self._direction = state["previous"], state["direction"]
        self._in_a_row, self._episode.left = state["in_a_row"], state["episode"]

    def _direction_to(self, loss: float) -> int:
        """1 for a rise that counts, -1 for such a fall, else 0."""
        previous = self._previous
        if previous is None or not math.isfinite(loss):
            return 0
        if abs(loss - previous) < self.settings.oscillation_amplitude * min(abs(loss), abs(previous)):
            return 0
        return (loss > previous) - (loss < previous)


class GradientExplosion(Callback):
    """Warns when a step's gradient norm is above `explosion_factor` times the median of the 100 finite ones before it.

    At least 20 are needed. It has ended after 20 steps in a row without such a norm. A norm that is not finite is left
    out: its step is skipped, and that has a warning of its own.
    """

    def __init__(self, settings: TrendSettings) -> None:
        self.settings = settings
        self._norms: deque[float] = deque(maxlen=_MEDIAN_STEPS)
        self._episode = Episode(quiet=_FEWEST_STEPS)

    def after_steps(self, steps: Sequence[StepResult]) -> list[Action]:
        return [warning for step in steps for warning in self._count(step)]

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self._norms), "episode": self._episode.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._norms = deque(state["norms"], maxlen=_MEDIAN_STEPS)
        self._episode.left = state["episode"]

    def _count(self, step: StepResult) -> list[Action]:
        norm = step.gradient_norm
        if not math.isfinite(norm):
            return []
        enough = len(self._norms) >= _FEWEST_STEPS
        usual = statistics.median(self._norms) if enough else math.inf
        self._norms.append(norm)
        if not self._episode.begins(norm > self.settings.explosion_factor * usual):
            return []
        message = (
            f"the gradient norm of step {step.step} is {norm:.4g}; the median of the steps before it is {usual:.4g}"
        )
        return [Warn("gradient_explosion", message)]


def _diverge(losses: Sequence[tuple[float, float]], window: int) -> bool:
    """Whether the moving mean of the validation loss has risen in the last epoch while that of the training loss fell.

    `losses` is (training, validation) of the epochs, the last `window + 1` of which count.
    """
    if len(losses) < 2:
        return False
    before, after = losses[:-1][-window:], losses[-window:]
    (train_before, before_validation), (train_after, after_validation) = map(_means, (before, after))
    return after_validation > before_validation and train_after < train_before


def _means(losses: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(train for train, _ in losses) / len(losses), sum(loss for _, loss in losses) / len(losses)
