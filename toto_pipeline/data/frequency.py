"""Frequencies: which one a data set has, the grid it stands for, and the season that goes with it.

A `Grid` counts steps: `ordinal` numbers the step a timestamp falls in, `time` is where that step begins. Steps of fixed
length (seconds to weeks) may begin at any moment; months, quarters, years and business days are steps of the calendar.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from toto_pipeline.data.series import Int64Array
from toto_pipeline.errors import ConfigError

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
_UNITS = ((DAY, "D"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s"), (1000, "ms"), (1, "us"))
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MOSTLY = 0.8
_ONE_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Grid:
    """The steps of a frequency.

    Attributes:
        alias: the frequency as pandas writes it.
        kind: steps of `step` microseconds, of `step` months, or business days.
        phase: microseconds (fixed) or months by which the steps are shifted.
        at_end: calendar steps are stamped with their last day.
    """

    alias: str
    kind: Literal["fixed", "months", "business"]
    step: int
    phase: int = 0
    at_end: bool = False

    def shifted(self, phase: int) -> Grid:
        """The same steps beginning at another moment; calendar steps stay where the calendar has them."""
        return self if self.kind != "fixed" else Grid(self.alias, self.kind, self.step, phase % self.step)

    def ordinal(self, timestamps: Int64Array) -> Int64Array:
        """Number of the step that each timestamp (microseconds) falls in."""
        timestamps = np.asarray(timestamps, dtype=np.int64)
        if self.kind == "fixed":
            return (timestamps - self.phase) // self.step
        days = timestamps.view("datetime64[us]").astype("datetime64[D]")
        if self.kind == "business":
            return np.busday_count(np.datetime64("1970-01-01"), days + _ONE_DAY).astype(np.int64) - 1
        months = days.astype("datetime64[M]").astype(np.int64)
        return (months - self.phase) // self.step

    def time(self, ordinals: Int64Array) -> Int64Array:
        """The timestamp (microseconds) of each step."""
        ordinals = np.asarray(ordinals, dtype=np.int64)
        if self.kind == "fixed":
            return ordinals * self.step + self.phase
        if self.kind == "business":
            days = np.busday_offset(np.datetime64("1970-01-01"), ordinals)
        else:
            months = ordinals * self.step + self.phase + (self.step if self.at_end else 0)
            first_days: Any = months.view("datetime64[M]").astype("datetime64[D]")
            days = first_days - _ONE_DAY if self.at_end else first_days
        return days.astype("datetime64[us]").view(np.int64)

    def times_from(self, start: int, length: int) -> Int64Array:
        """(length,) timestamps of the steps from `start` on; fixed steps begin where `start` does."""
        grid = self.shifted(start)
        first = int(grid.ordinal(np.array([start]))[0])
        return grid.time(np.arange(first, first + length))

    def fits(self, timestamps: Int64Array) -> np.ndarray:
        """(n,) bool: which timestamps lie on the grid."""
        on: np.ndarray = self.time(self.ordinal(timestamps)) == timestamps
        return on


def parse_frequency(alias: str) -> Grid:
    """The grid of a pandas frequency alias.

    Raises:
        ConfigError: pandas does not know it, or it is none of the supported kinds.
    """
    from pandas.tseries.frequencies import to_offset
    from pandas.tseries.offsets import Tick

    remedy = (
        "Expected: a pandas frequency such as 10min, h, D, B, W, MS, ME, QS or YS. "
        "What to do: set preparation.frequency to one."
    )
    try:
        offset = to_offset(alias)
    except ValueError:
        offset = None
    if offset is None or offset.n < 1:
        raise ConfigError(f"preparation.frequency: {alias!r} is not a frequency. {remedy}")
    name, _, anchor = offset.name.partition("-")
    if isinstance(offset, Tick):
        if offset.nanos % 1000:
            raise ConfigError(f"preparation.frequency: {alias!r} is finer than a microsecond. {remedy}")
        return Grid(alias, "fixed", offset.nanos // 1000)
    if name == "W":
        return Grid(alias, "fixed", WEEK * offset.n, (_WEEKDAYS.index(anchor) - 3) % 7 * DAY)
    if name == "B" and offset.n == 1:
        return Grid(alias, "business", 1)
    length = {"M": 1, "Q": 3, "Y": 12}.get(name[:1])
    if length is None or name[1:] not in ("S", "E"):
        raise ConfigError(f"preparation.frequency: {alias!r} is not supported. {remedy}")
    month = _MONTHS.index(anchor) if anchor else 0
    phase = (month + 1) % length if name[1:] == "E" else month % length
    return Grid(alias, "months", length * offset.n, phase, at_end=name[1:] == "E")


def default_season(grid: Grid) -> int:
    """Steps in a season: a day for steps of a minute to an hour, a week for days, a year for weeks and longer steps."""
    if grid.kind == "business":
        return 5
    if grid.kind == "months":
        return max(1, 12 // grid.step)
    for limit, season in ((MINUTE, HOUR), (DAY, DAY), (WEEK, WEEK)):
        if grid.step < limit:
            return max(1, round(season / grid.step))
    return 52 if grid.step == WEEK else 1


def fixed_alias(step: int) -> str:
    """The pandas alias of a step of so many microseconds."""
    unit, name = next((unit, name) for unit, name in _UNITS if step % unit == 0)
    return name if step == unit else f"{step // unit}{name}"


def infer_frequency(steps: Counter[int], examples: Sequence[Int64Array]) -> str | None:
    """The frequency with these steps (microseconds: how often) between rows; None where there are none.

    Args:
        examples: timestamps of some of the series, which tell the first of a month from the 30th day.
    """
    if not steps:
        return None
    top = max(steps, key=lambda step: (steps[step], -step))
    return _calendar_alias(steps, examples) or _weekly_alias(top, examples) or fixed_alias(top)


def count_steps(timestamps: Int64Array) -> Counter[int]:
    """How often each step (microseconds) occurs between neighbours."""
    steps = np.diff(timestamps)
    if len(steps) == 0:
        return Counter()
    if (steps == steps[0]).all():
        return Counter({int(steps[0]): len(steps)})
    lengths, counts = np.unique(steps, return_counts=True)
    return Counter(dict(zip(lengths.tolist(), counts.tolist(), strict=True)))


def largest_regular_step(alias: str) -> int:
    """The longest step (microseconds) between neighbours that are not separated by a gap."""
    grid = parse_frequency(alias)
    if grid.kind == "fixed":
        return grid.step
    if grid.kind == "business":
        return 3 * DAY
    return math.ceil(grid.step * 30.6) * DAY


def _calendar_alias(steps: Counter[int], examples: Sequence[Int64Array]) -> str | None:
    total = steps.total()
    days = {length // DAY: count for length, count in steps.items() if length % DAY == 0}
    dates = np.concatenate(examples).view("datetime64[us]") if examples else np.empty(0, dtype="datetime64[us]")
    whole_days = dates.astype("datetime64[D]")
    if len(dates) == 0 or (whole_days != dates).any():
        return None
    if days.get(1, 0) and days.get(3, 0) and days.get(2, 0) <= days[3] and np.is_busday(whole_days).all():
        return "B"
    for lengths, code, months in (((28, 31), "M", 1), ((89, 92), "Q", 3), ((365, 366), "Y", 12)):
        if sum(days.get(length, 0) for length in range(lengths[0], lengths[1] + 1)) >= _MOSTLY * total:
            return _month_alias(whole_days, code, months)
    return None


def _month_alias(days: np.ndarray, code: str, months: int) -> str | None:
    month = days.astype("datetime64[M]")
    if (month.astype("datetime64[D]") == days).all():
        kind = "S"
    elif ((month + np.timedelta64(1, "M")).astype("datetime64[D]") - _ONE_DAY == days).all():
        kind = "E"
    else:
        return None
    places = np.unique(month.astype(np.int64) % months)
    if len(places) > 1:
        return None
    if months == 1:
        return f"{code}{kind}"
    anchor = int(places[0])
    if code == "Q" and kind == "E":
        anchor += 9 if anchor == 2 else 0  # Q..DEC is how pandas calls quarters that end in March, June, ...
    return f"{code}{kind}-{_MONTHS[anchor]}"


def _weekly_alias(top: int, examples: Sequence[Int64Array]) -> str | None:
    if top != WEEK or not examples:
        return None
    first = np.array([timestamps[0] for timestamps in examples if len(timestamps)], dtype=np.int64)
    days = np.unique(first % WEEK)
    if len(days) != 1 or days[0] % DAY:
        return None
    return f"W-{_WEEKDAYS[(int(days[0]) // DAY + 3) % 7]}"
