"""When the learning rate is lowered."""

from __future__ import annotations

import math
from typing import Any

from toto_pipeline.settings.training import PlateauSettings
from toto_pipeline.training.actions import Action, Callback, EpochResult, ReduceLearningRate, cost, epochs_in_words


class ReduceOnPlateau(Callback):
    """Lowers the learning rate after more than `patience` epochs in a row without an improvement.

    Decides as torch.optim.lr_scheduler.ReduceLROnPlateau does. It multiplies, because unit scaling gives each parameter
    group a rate of its own, and all reductions together never fall below `floor`. A value that is not finite is no
    improvement.
    """

    def __init__(self, settings: PlateauSettings) -> None:
        self.settings = settings
        self._best: float | None = None
        self._waited = 0
        self._cooldown = 0
        self._reduction = 1.0

    def after_epoch(self, result: EpochResult) -> list[Action]:
        value = result.value(self.settings.metric)
        if self._better(value):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        if self._cooldown:
            self._cooldown -= 1
            self._waited = 0
        if self.settings.patience is None or self._waited <= self.settings.patience:
            return []
        waited, self._waited, self._cooldown = self._waited, 0, self.settings.cooldown
        return self._reduce(waited)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self._best,
            "waited": self._waited,
            "cooldown": self._cooldown,
            "reduction": self._reduction,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]
        self._cooldown, self._reduction = state["cooldown"], state["reduction"]

    def _better(self, value: float) -> bool:
        if self._best is None or not math.isfinite(value):
            return math.isfinite(value)
        settings = self.settings
        best = cost(self._best, settings.mode)
        if settings.threshold_mode == "abs":
            limit = best - settings.threshold
        else:  # a share of the value itself, whose sign tells up from down, as in PyTorch
            limit = best * (1.0 - cost(settings.threshold, settings.mode))
        return cost(value, settings.mode) < limit

    def _reduce(self, waited: int) -> list[Action]:
        before, after = self._reduction, max(self._reduction * self.settings.factor, self.settings.floor)
        if after >= before:
            return []
        self._reduction = after
        best = "finite" if self._best is None else f"better than {self._best:.6g}"
        reason = (
            f"{self.settings.metric} has not been {best} for {epochs_in_words(waited)}; "
            f"the learning rate falls from {before:.4g} to {after:.4g} of its schedule"
        )
        return [ReduceLearningRate(after / before, reason)]
