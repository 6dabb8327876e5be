"""The numbers of an event, under the names that every tool shows them by.

train/...        of a step: loss, learning_rate, gradient_norm, and what a loop adds
epoch/...        of an epoch: train_loss, skipped_steps, and what a loop adds
validation/...   of an epoch: loss, and each score of the validation forecasts
statistics/...   of an epoch: the course of each metric, such as statistics/validation_loss/slope
speed/...        step_seconds, data_seconds, epoch_seconds, windows_per_second
checkpoint/...   bytes, seconds, blocked_seconds
host/... process/... gpu/<index>/...   of the machine
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toto_pipeline.events.schema import ENVELOPE, Event, number

_NAMES = {
    "step": {"seconds": "speed/step_seconds", "data_seconds": "speed/data_seconds"},
    "epoch": {
        "validation_loss": "validation/loss",
        "seconds": "speed/epoch_seconds",
        "windows_per_second": "speed/windows_per_second",
        "metrics": "validation",
        "statistics": "statistics",
    },
    "checkpoint_saved": {},
    "system": {"host": "host", "process": "process", "gpus": "gpu"},
}
"""Types of events that measure something, and the fields that do not simply go into the type's own group."""

_GROUPS = {"step": "train", "epoch": "epoch", "checkpoint_saved": "checkpoint"}


def measurements(event: Event) -> Iterator[tuple[str, float]]:
    """Pairs of a name and a value, which may be NaN or infinite; nothing for events that hold no numbers.

    Texts, truth values, nulls and lists of texts are no measurements. Lists get their index as part of the name.
    """
    kind = event["type"]
    names = _NAMES.get(kind)
    if names is None:
        return
    for field, value in event.items():
        if field not in ENVELOPE:
            yield from _numbers(names.get(field, f"{_GROUPS.get(kind, kind)}/{field}"), value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, str):
        if value in ("nan", "inf", "-inf"):
            yield name, number(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{name}/{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(f"{name}/{index}", item)
