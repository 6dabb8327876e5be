"""The course of each metric in numbers, kept as its values come in constant memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event

Trend = Literal["rising", "falling", "flat", "unknown"]

RECENT = 100
"""Values that slope and trend look at."""
_SURE = 3.0
"""Standard errors that a slope must differ from zero by to be called one."""


class Course:
    """One metric: mean and deviation of all values (Welford, 1962), their range, and where the recent ones go."""

    def __init__(self) -> None:
        self.count = 0
        self.not_finite = 0
        self.last = math.nan
        self.minimum = math.inf
        self.maximum = -math.inf
        self._mean = 0.0
        self._squares = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def add(self, value: float) -> None:
        self.last = value
        if not math.isfinite(value):
            self.not_finite += 1
            return
        self.count += 1
        self.minimum, self.maximum = min(self.minimum, value), max(self.maximum, value)
        difference = value - self._mean
        self._mean += difference / self.count
        self._squares += difference * (value - self._mean)
        self._recent.append(value)

    def describe(self) -> dict[str, Any]:
        """count, not_finite, last, mean, deviation, minimum, maximum, slope (per value) and trend; NaN for unknown."""
        recent = list(enumerate(self._recent))
        return {
            "count": self.count,
            "not_finite": self.not_finite,
            "last": self.last,
            "mean": self._mean if self.count else math.nan,
            "deviation": math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else math.nan,
            "minimum": self.minimum if self.count else math.nan,
            "maximum": self.maximum if self.count else math.nan,
            "slope": math.nan if (found := slope(recent)) is None else found,
            "trend": trend(recent),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "_recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update({**state, "_recent": deque(state["_recent"], maxlen=RECENT)})


class Statistics:
    """The courses of all metrics of a run, by the names of `measurements`."""

    def __init__(self) -> None:
        self._courses: dict[str, Course] = {}

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            for name, value in measurements(event):
                course = self._courses.get(name)
                if course is None:
                    course = self._courses[name] = Course()
                course.add(value)

    def describe(self) -> dict[str, dict[str, Any]]:
        return {name: course.describe() for name, course in self._courses.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: course.state_dict() for name, course in self._courses.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._courses = {name: Course() for name in state}
        for name, course in self._courses.items():
            course.load_state_dict(state[name])


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """Change per unit of x of the straight line through (x, y) by least squares; None for fewer than two x."""
    if not points:
        return None
    middle = sum(x for x, _ in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * y for x, y in points) / spread if spread else None


def trend(points: Sequence[tuple[int, float]]) -> Trend:
    """Whether the line through the points surely rises or falls, by the standard error of its slope."""
    found = slope(points)
    if found is None or len(points) < 8:
        return "unknown"
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    residue = sum((y - middle_y - found * (x - middle_x)) ** 2 for x, y in points)
    error = math.sqrt(residue / (len(points) - 2) / spread)
    if abs(found) <= _SURE * error or found == 0:
        return "flat"
    return "rising" if found > 0 else "falling"
