"""What a callback sees, and what it may ask for.

    steps done   -> after_steps(steps)    -> actions
    epoch done   -> after_epoch(result)   -> actions
    checkpoint   -> state_dict()             resume -> load_state_dict(state)

Every number is reduced over all processes before a callback sees it. A callback decides by these numbers alone, never
by a clock, a random number or its process, so all processes decide alike and a resumed run decides as one that was
never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.schema import number, spell_out
from toto_pipeline.settings.training import Mode


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """An optimizer step. `step` counts from 1, `epoch` is the number of epochs done before it.

    A skipped step is one whose loss or gradient was not finite; it changed no weight.
    """

    step: int
    epoch: int
    loss: float
    gradient_norm: float
    skipped: bool


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """An epoch with its validation. `epoch` counts from 1, `step` is the number of steps done so far.

    Attributes:
        train_loss: mean over the epoch's steps that were not skipped; NaN where all were.
        metrics: scores of the validation forecasts by name; NaN where one cannot be computed.
        learning_rate: base rate of the epoch's last step.
        gradient_norm: norm of the epoch's last step, before clipping.
    """

    epoch: int
    step: int
    train_loss: float
    validation_loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = float("nan")
    gradient_norm: float = float("nan")

    @property
    def values(self) -> dict[str, float]:
        """Both losses and every metric, by name."""
        return {"train_loss": self.train_loss, "validation_loss": self.validation_loss, **self.metrics}

    def value(self, metric: str) -> float:
        """One of `values`.

        Raises:
            ConfigError: there is none of this name.
        """
        values = self.values
        if metric not in values:
            raise ConfigError(
                f"epoch {self.epoch} has no metric {metric!r}. Expected one of: {', '.join(values)}. What to do: "
                "correct `metric` in training.early_stopping, training.plateau or training.checkpoints."
            )
        return values[metric]

    def to_json(self) -> dict[str, Any]:
        """All fields, with numbers that are not finite spelled out."""
        fields: dict[str, Any] = spell_out({**vars(self), "metrics": dict(self.metrics)})
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> EpochResult:
        """The result that `to_json` wrote; fields with a default may be missing."""
        return cls(
            epoch=fields["epoch"],
            step=fields["step"],
            train_loss=number(fields["train_loss"]),
            validation_loss=number(fields["validation_loss"]),
            metrics={name: number(value) for name, value in fields.get("metrics", {}).items()},
            learning_rate=number(fields.get("learning_rate")),
            gradient_norm=number(fields.get("gradient_norm")),
        )


@dataclass(frozen=True)
class Stop:
    """Training ends after this epoch; where it has `failed`, it ends at once and the run counts as failed."""

    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Warn:
    """A `warning` event is written."""

    name: str
    message: str


@dataclass(frozen=True)
class ReduceLearningRate:
    """The rate of every parameter group is multiplied by `factor` from the next step on."""

    factor: float
    reason: str


@dataclass(frozen=True)
class Record:
    """`values` become part of `statistics` in the `epoch` event."""

    values: Mapping[str, Any]


Action = Stop | Warn | ReduceLearningRate | Record


class Callback:
    """Watches the training and asks for actions. Each method does nothing until it is overridden.

    `after_steps` and `after_epoch` return the actions they ask for: a list, an empty one where there is nothing to do,
    or they yield them.
    """

    def after_steps(self, steps: Sequence[StepResult]) -> Iterable[Action]:  # noqa: ARG002
        """Called with every step once, in order; steps not seen yet are shown before their epoch.

        How many come at once means nothing: answer by the steps, not by the calls.
        """
        return ()

    def after_epoch(self, result: EpochResult) -> Iterable[Action]:  # noqa: ARG002
        """Called after each epoch's validation, before its checkpoint."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """All that later answers depend on, as JSON without NaN or infinities; a copy, saved with each checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what the callback was that wrote `state`."""


class Episode:
    """Tells the beginning of something from its going on, so that one warning is written for all of it.

    It has ended after `quiet` observations in a row without it. `left` is its whole state: how many of these are
    still missing, 0 where nothing goes on.
    """

    def __init__(self, quiet: int = 1) -> None:
        self.quiet = quiet
        self.left = 0

    def begins(self, present: bool) -> bool:
        """Count one observation; True where the episode begins with it."""
        begins = present and self.left == 0
        self.left = self.quiet if present else max(0, self.left - 1)
        return begins


def epochs_in_words(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def cost(value: float, mode: Mode) -> float:
    """`value` turned so that lower is better."""
    return value if mode == "min" else -value
