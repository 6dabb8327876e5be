"""How models are compared, when one replaces the champion, and when the nightly retraining starts."""

from __future__ import annotations

import zoneinfo
from typing import Literal

from pydantic import Field, field_validator

from toto_pipeline.settings.base import Settings, suggestion


class EvaluationSettings(Settings):
    """How models are compared on the test span."""

    batch_size: int = Field(64, ge=1, description="Windows forecast at once.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(1, ge=1, description="CPU threads used for forecasting.")
    pictures: int = Field(6, ge=0, le=50, description="Series to draw: the best, the middle and the worst by MASE.")


class PromotionSettings(Settings):
    """When a new model replaces the champion."""

    model_name: str = Field("toto", min_length=1, description="Name of the registered model in MLflow.")
    metric: Literal["MASE", "SQL", "WQL", "WAPE"] = Field(
        "SQL", description="The metric that decides; lower is better."
    )
    tolerated_loss: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="How much worse than the champion is still accepted, as a share of the champion's score.",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence with which the new model must beat the baseline and not fall behind the champion.",
    )
    resamples: int = Field(2000, ge=100, description="Bootstrap resamples of the paired windows.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class ScheduleSettings(Settings):
    """When the nightly retraining starts. The schedule is off until it is switched on in the UI."""

    cron: str = Field("0 2 * * *", description="Cron expression: minute, hour, day of month, month, day of week.")
    time_zone: str = Field("UTC", description="IANA time zone of the cron expression, such as Europe/Paris.")

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError(f"there is no time zone {value!r}{suggestion(value, zoneinfo.available_timezones())}")
        return value
