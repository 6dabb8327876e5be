"""Numbers for the log that tell the course of each metric."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from toto_pipeline.events.statistics import slope
from toto_pipeline.settings.training import Mode
from toto_pipeline.training.actions import Action, Callback, EpochResult, Record, cost


class MetricStatistics(Callback):
    """Records for both losses and each metric what its course is.

        mean               of the last `window` epochs
        slope              change per epoch over these, by least squares; null for a single value
        best               best value so far, and epochs_since_best

    Values that are not finite are left out; a number that none is left for is null. `modes` says for which metrics
    higher is better; of a coverage_<p>, the value nearest to p % is the best.
    """

    def __init__(self, window: int, modes: Mapping[str, Mode] | None = None) -> None:
        self.window = window
        self.modes = modes or {}
        self._recent: dict[str, list[tuple[int, float]]] = {}
        self._best: dict[str, tuple[int, float]] = {}

    def after_epoch(self, result: EpochResult) -> list[Action]:
        for name, value in result.values.items():
            self._add(name, result.epoch, value)
        return [Record({name: self._describe(name, result.epoch) for name in result.values})]

    def state_dict(self) -> dict[str, Any]:
        return {"recent": dict(self._recent), "best": dict(self._best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = {name: [(epoch, value) for epoch, value in points] for name, points in state["recent"].items()}
        self._best = {name: (epoch, value) for name, (epoch, value) in state["best"].items()}

    def _add(self, name: str, epoch: int, value: float) -> None:
        points = [*self._recent.get(name, []), *([(epoch, value)] if math.isfinite(value) else [])]
        self._recent[name] = [point for point in points if point[0] > epoch - self.window]
        best = self._best.get(name)
        if math.isfinite(value) and (best is None or self._cost(name, value) < self._cost(name, best[1])):
            self._best[name] = (epoch, value)

    def _describe(self, name: str, epoch: int) -> dict[str, float | None]:
        points, best = self._recent[name], self._best.get(name)
        return {
            "mean": _finite(_mean([value for _, value in points])),
            "slope": _finite(slope(points)),
            "best": None if best is None else best[1],
            "epochs_since_best": None if best is None else epoch - best[0],
        }

    def _cost(self, name: str, value: float) -> float:
        coverage = re.fullmatch(r"coverage_(\d+)", name)
        if coverage and name not in self.modes:
            return abs(value - int(coverage[1]) / 100)
        return cost(value, self.modes.get(name, "min"))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
