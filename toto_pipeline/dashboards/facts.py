"""One thing that was asked of several runs: what each answered, how they differ, and how a person reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from toto_pipeline.dashboards.html.markup import duration, significant

Kind = Literal["text", "count", "score", "significant", "seconds"]
Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing that was asked of every run.

    Attributes:
        name: what programs call it; title: what a person calls it.
        values: one a run, None where it is unknown; a number that is not finite is spelled "nan", "inf" or "-inf".
    """

    name: str
    title: str
    values: tuple[Any, ...]
    kind: Kind = "text"
    better: Better | None = None

    @property
    def differs(self) -> bool:
        """Whether two runs are known to differ."""
        known = [value for value in self.values if value is not None]
        return any(value != known[0] for value in known[1:])

    @property
    def changes(self) -> tuple[float | None, ...]:
        """(value - first) / |first| of each run; None where one of the two is no measurement, or the first is zero."""
        first = None if self.kind == "text" else self.values[0]
        return tuple(_change(first, value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Facts of one matter. equal_matter: what is equal in all runs is worth showing."""

    name: str
    title: str
    facts: tuple[Fact, ...]
    equal_matter: bool = False

    @property
    def differences(self) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.facts if fact.differs)

    def shown(self, *, everything: bool = False) -> tuple[Fact, ...]:
        return self.facts if everything or self.equal_matter else self.differences


def written(fact: Fact, value: Any) -> str:
    """A value of a fact for a person; a dash where it is unknown."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
    if fact.kind == "score":
        return f"{value:.4f}"
    if fact.kind == "significant":
        return significant(value)
    if fact.kind == "seconds":
        return duration(value)
    return f"{value:,}".replace(",", " ") if fact.kind == "count" else str(value)


def change_written(fact: Fact, index: int) -> str:
    """How a run's value differs from the first run's: `+120` of a count, `-2.1 %` of a measurement, else nothing."""
    change = fact.changes[index]
    if index == 0:
        return ""
    if fact.kind == "count":
        first, value = fact.values[0], fact.values[index]
        return f"{value - first:+,}".replace(",", " ") if _numbers(first, value) and value != first else ""
    return "" if not change else f"{100 * change:+.1f} %"


def verdict(fact: Fact, index: int) -> Literal["better", "worse"] | None:
    """Whether a run's value is better or worse than the first run's, where that can be said."""
    change = fact.changes[index]
    if fact.better is None or not change or index == 0:
        return None
    return "better" if (change < 0) == (fact.better == "lower") else "worse"


def _change(first: Any, value: Any) -> float | None:
    if not _numbers(first, value) or first == 0:
        return None
    change = (value - first) / abs(first)
    return change if math.isfinite(change) else None


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
