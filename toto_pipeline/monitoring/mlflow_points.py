"""What of an event log MLflow is given as metrics: pure functions of events.

MLflow draws a metric from at most some thousand points and keeps every one for ever, so of the steps of a long run only
some are taken: every n-th, the last of each epoch and of the run, and every one with a number that is not finite. A run
of no more than `limit` steps is taken whole. Nothing else is thinned but the readings of the machine.

Readings of the machine carry the names that MLflow's own system metrics have, where it has one, and megabytes instead
of bytes there; with any other name they follow after `system/`. MLflow shows all of these on a page of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event

LIMIT = 20_000
"""Most points of a metric, by default; the last steps of epochs come on top."""
NAME_CHARACTERS = 250

_MEGABYTE = 1e6
_SYSTEM = {
    "host/cpu_percent": ("cpu_utilization_percentage", 1.0),
    "host/memory_used_bytes": ("system_memory_usage_megabytes", _MEGABYTE),
    "host/memory_percent": ("system_memory_usage_percentage", 1.0),
    "host/disk_percent": ("disk_usage_percentage", 1.0),
    "host/disk_used_bytes": ("disk_usage_megabytes", _MEGABYTE),
    "host/disk_free_bytes": ("disk_available_megabytes", _MEGABYTE),
    # MLflow's own network metrics are megabytes since the start of the run; ours are rates, and say so.
    "host/network_received_bytes_per_second": ("network_receive_megabytes_per_second", _MEGABYTE),
    "host/network_sent_bytes_per_second": ("network_transmit_megabytes_per_second", _MEGABYTE),
}
_GPU = {
    "utilization_percent": ("utilization_percentage", 1.0),
    "memory_used_bytes": ("memory_usage_megabytes", _MEGABYTE),
    "power_watts": ("power_usage_watts", 1.0),
}
_GPU_NAME = re.compile(r"gpu/(\d+)/(\w+)")
_NOT_FINITE = frozenset({"nan", "inf", "-inf"})
_UNFIT = re.compile(r"[^\w\-. :/]", re.ASCII)


class Point(NamedTuple):
    name: str
    value: float
    milliseconds: int
    step: int


@dataclass(frozen=True)
class Place:
    """What was seen of a log so far: everything that the next events are looked at with.

    step: the newest; total_steps: as the run set out, None where it did not say; readings: of the machine, so far;
    held: the newest step if it was left out; time: of the newest event, Unix seconds.
    """

    step: int = 0
    total_steps: int | None = None
    readings: int = 0
    held: Event | None = None
    time: float = 0.0

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Place:
        return cls(**state)

    def to_state(self) -> dict[str, Any]:
        return asdict(self)


def points(events: Sequence[Event], place: Place, limit: int = LIMIT) -> tuple[list[Point], Place]:
    """The points of the next events of a log, and the place behind them. Has neither state nor clock."""
    found: list[Point] = []
    for event in events:
        place, taken = _take(event, place, limit)
        for each in taken:
            found.extend(_of_event(each, place.step))
    return found, place


def held_points(place: Place) -> list[Point]:
    """The points of the newest step, if it was left out: the last of a run that ended without a word."""
    return [] if place.held is None else list(_of_event(place.held, place.step))


def _take(event: Event, place: Place, limit: int) -> tuple[Place, tuple[Event, ...]]:
    """The place behind an event, and the events whose numbers are to be taken by now."""
    kind = event["type"]
    held = place.held
    place = replace(place, step=int(event.get("step", place.step)), time=float(event.get("time", place.time)))
    if kind == "step":
        if is_taken(place.step, place.total_steps, limit) or not _is_finite(event):
            return replace(place, held=None), (event,)
        return replace(place, held=event), ()
    if kind in ("epoch", "run_ended"):
        return replace(place, held=None), (event,) if held is None else (held, event)
    if kind == "run_started":
        return replace(
            place, held=None, step=int(event.get("resumed_from") or 0), total_steps=event.get("total_steps")
        ), ()
    if kind == "system":
        taken = is_taken(place.readings, None, limit)
        return replace(place, readings=place.readings + 1), (event,) if taken else ()
    return place, (event,)


def is_taken(number: int, total: int | None, limit: int) -> bool:
    """Whether the step or reading of a number is among those taken.

    Of a known total every n-th is taken, so that `limit` is kept. Of an unknown one the first fifth of `limit` is taken
    whole, and a tenth of `limit` more each time the number doubles: with 20 000, a million comes to 19 906.
    """
    if total:
        return number % max(1, math.ceil(total / limit)) == 0
    whole = max(1, limit // 5)
    stride = 1 if number <= whole else 1 << (math.ceil(number / whole) - 1).bit_length()
    return number % stride == 0


def _is_finite(event: Event) -> bool:
    return not any(value in _NOT_FINITE for value in event.values() if isinstance(value, str))


def _of_event(event: Event, newest_step: int) -> Iterator[Point]:
    milliseconds = round(float(event.get("time", 0.0)) * 1000)
    step = int(event.get("step", newest_step))
    for name, value in measurements(event):
        yield Point(*mlflow_metric(name, value), milliseconds, step)


def mlflow_metric(name: str, value: float) -> tuple[str, float]:
    """The name and value under which MLflow keeps a measurement."""
    if name in _SYSTEM:
        own, unit = _SYSTEM[name]
        return f"system/{own}", value / unit
    if name.startswith("gpu/") and (found := _GPU_NAME.fullmatch(name)) and found[2] in _GPU:
        own, unit = _GPU[found[2]]
        return f"system/gpu_{found[1]}_{own}", value / unit
    if name.startswith(("host/", "process/", "gpu/")):
        return fit_name(f"system/{name}"), value
    return fit_name(name), value


def fit_name(name: str) -> str:
    """A name as MLflow allows it: letters, digits, `_-. :/`, no empty or dotted parts, at most 250 characters."""
    parts = [part for part in _UNFIT.sub("_", name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:NAME_CHARACTERS].strip("/") or "_"
