"""How what other frameworks call their numbers and settings becomes fields of events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

_PREFIXES = ("validation_", "validation/", "val_", "val/", "eval_", "eval/")


def of_epoch(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `TrainingLogger.epoch`: `val_loss` is the validation loss, `val_MASE` the score MASE."""
    values: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for name, value in metrics.items():
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            values[name] = value
        elif name == f"{prefix}loss":
            values["validation_loss"] = value
        else:
            scores[name.removeprefix(prefix)] = value
    return {**values, "metrics": scores}


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them; in place of what it has not, such as a function, stands its text."""
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    found: dict[str, Any] = orjson.loads(orjson.dumps(dict(settings), default=str, option=options))
    return found
