"""What is decided after an epoch. Small policies with state that is saved with the checkpoint.

A policy sees the epoch's numbers and answers with an action or None. It sees the same numbers on every process, so all
decide alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class EpochResult:
    epoch: int
    step: int
    train_loss: float
    validation_loss: float


@dataclass(frozen=True)
class Stop:
    """Training ends after this epoch."""

    reason: str


class Callback(Protocol):
    def after_epoch(self, result: EpochResult) -> Stop | None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BestTracker:
    """The epoch with the lowest validation loss so far; a loss that is not finite is never the best."""

    def __init__(self) -> None:
        self.best: EpochResult | None = None

    def after_epoch(self, result: EpochResult) -> None:
        lowest = math.inf if self.best is None else self.best.validation_loss
        if result.validation_loss < lowest:
            self.best = result

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else vars(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else EpochResult(**state["best"])


class EarlyStopping:
    """Stops after `patience` epochs in a row without a lower validation loss."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._lowest = math.inf
        self._waited = 0

    def after_epoch(self, result: EpochResult) -> Stop | None:
        if result.validation_loss < self._lowest:
            self._lowest = result.validation_loss
            self._waited = 0
            return None
        self._waited += 1
        if self._waited < self.patience:
            return None
        return Stop(f"the validation loss has not fallen below {self._lowest:.6g} for {self._waited} epochs")

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": None if math.isinf(self._lowest) else self._lowest, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        self._waited = state["waited"]


class StopOnDivergence:
    """Stops where the training or the validation loss of an epoch is not a finite number."""

    def after_epoch(self, result: EpochResult) -> Stop | None:
        if math.isfinite(result.train_loss) and math.isfinite(result.validation_loss):
            return None
        return Stop(
            f"the loss of epoch {result.epoch} is not finite (train {result.train_loss}, "
            f"validation {result.validation_loss}); a lower training.learning_rate usually helps"
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
