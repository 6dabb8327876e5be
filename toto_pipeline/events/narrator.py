"""What a person, or a machine that collects logs, reads of a training while it runs: structured lines on stderr.

The lines follow from the events, so nothing is said twice in the code. `$TOTO_LOG_FORMAT` chooses `console`, for
people (the default), or `json`, one object a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import structlog

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.schema import Event

FORMAT_VARIABLE = "TOTO_LOG_FORMAT"
FORMATS = ("console", "json")

_FIELDS = {
    "run_started": ("run", "device", "processes", "parameters", "total_steps", "resumed_from"),
    "epoch": (
        "epoch", "step", "train_loss", "validation_loss", "metrics", "windows_per_second", "seconds", "is_best",
    ),
    "checkpoint_saved": ("checkpoint", "bytes", "seconds"),
    "checkpoint_failed": ("checkpoint", "reason"),
    "checkpoint_quarantined": ("checkpoint", "moved_to", "reason"),
    "checkpoint_backed_up": ("checkpoint", "folder"),
    "warning": ("name", "message"),
    "text": ("name", "text"),
    "run_ended": ("outcome", "reason", "best"),
}  # fmt: skip
"""The types of events that are told, and which of their fields."""

_LEVELS = {"warning": "warning", "checkpoint_failed": "error", "checkpoint_quarantined": "error"}


class Narrator:
    """Tells the events that a person wants to read; steps, system readings and histograms are not among them."""

    def __init__(self, format: str | None = None, stream: TextIO | None = None) -> None:
        """
        Raises:
            ConfigError: there is no such format.
        """
        chosen = format or os.environ.get(FORMAT_VARIABLE) or "console"
        if chosen not in FORMATS:
            raise ConfigError(f"${FORMAT_VARIABLE}: {chosen!r} is no format. Expected: {' or '.join(FORMATS)}.")
        target = stream or sys.stderr
        renderer: Any = structlog.processors.JSONRenderer()
        if chosen == "console":
            renderer = structlog.dev.ConsoleRenderer(colors=target.isatty(), sort_keys=False, pad_event_to=0)
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(target),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                renderer,
            ],
        )

    def __call__(self, events: Sequence[Event]) -> None:
        for event in events:
            fields = _FIELDS.get(event["type"])
            if fields is not None:
                self._tell(event, {name: event[name] for name in fields if event.get(name) is not None})

    def _tell(self, event: Event, values: dict[str, Any]) -> None:
        level = _LEVELS.get(event["type"], "error" if event.get("outcome") == "failed" else "info")
        getattr(self._log, level)(event["type"], **{_free(name): _short(value) for name, value in values.items()})


def _free(name: str) -> str:
    return "type_" if name == "event" else name


def _short(value: Any) -> Any:
    """Numbers as people read them."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return value
