"""Which tools show the training while it runs, and how long the end of a run waits for them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from toto_pipeline.settings.base import Settings
from toto_pipeline.settings.sinks import unknown_sinks

OBSERVATIONS = 60
"""Epochs of a run after which its weights, gradients and forecasts are looked at, at most."""


class MonitoringSettings(Settings):
    """Which tools are fed from the event log of a training, while it runs."""

    sinks: dict[str, dict[str, Any]] = Field(
        {"tensorboard": {}, "mlflow": {}, "prometheus": {}},
        description="Tools by name, and the settings of each. Naming any replaces the default; {} for none.",
    )
    drain_seconds: float = Field(
        30.0, gt=0, description="How long the tools may take to catch up when the training has ended."
    )
    system_seconds: float = Field(10.0, gt=0, description="How often the machine is looked at: CPU, memory, GPUs.")
    observations: int = Field(
        OBSERVATIONS,
        ge=0,
        description="After at most so many epochs, spread over the run, histograms of weights and gradients and figures of the "
        "validation forecasts are recorded. 0: none.",
    )

    @field_validator("sinks")
    @classmethod
    def _installed(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        problem = unknown_sinks(value)
        if problem:
            raise ValueError(problem)
        return value
