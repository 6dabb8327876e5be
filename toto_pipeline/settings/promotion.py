"""How models are compared, when one replaces the champion, and when the nightly retraining starts."""

from __future__ import annotations

import zoneinfo
from typing import Literal

from pydantic import Field, field_validator, model_validator

from toto_pipeline.settings.base import Settings
from toto_pipeline.settings.spelling import suggestion


class EvaluationSettings(Settings):
    """How models are compared on the test span."""

    batch_size: int = Field(64, ge=1, description="Windows forecast at once.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(1, ge=1, description="CPU threads used for forecasting.")
    pictures: int = Field(6, ge=0, le=50, description="Series to draw: the best, the middle and the worst by MASE.")
    worst_pictures: int = Field(
        3,
        ge=0,
        le=50,
        description="Series with the highest MASE to draw besides, each in the window where it was worst.",
    )
    statistical_baselines: list[Literal["AutoETS", "AutoTheta"]] = Field(
        default_factory=list,
        description="Models of statsforecast to compare with besides; needs the extra `statistics`.",
    )
    baseline_seconds: float = Field(
        300.0,
        gt=0,
        description="Time that each of the statistical baselines may take; one that needs more is left out.",
    )


class PromotionSettings(Settings):
    """When a new model replaces the champion."""

    model_name: str = Field("toto", min_length=1, description="Name of the registered model in MLflow.")
    metric: Literal["MASE", "SQL", "WQL", "WAPE"] = Field(
        "SQL", description="The metric that decides; lower is better."
    )
    require: Literal["not_worse", "better"] = Field(
        "not_worse",
        description="What the champion is replaced by: a model that is not worse than it (of two equals the newer), or "
        "only one that is proven better.",
    )
    tolerated_loss: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="How much worse than the champion is still accepted, as a share of the champion's score, where "
        "require is not_worse.",
    )
    minimal_gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="How much better than the champion a model must be, as a share of the champion's score, where "
        "require is better.",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence with which the new model must beat the baseline, and be better than the champion or "
        "not fall behind it.",
    )
    resample: Literal["auto", "series", "windows"] = Field(
        "auto",
        description="What the bootstrap draws: series with all their windows, or windows in time with all their "
        "series. auto takes whichever there are more of.",
    )
    block_windows: int | None = Field(
        None,
        ge=1,
        description="Neighbouring windows that are drawn together where windows are drawn; n^(1/3) of n windows if "
        "not set.",
    )
    resamples: int = Field(2000, ge=100, description="Bootstrap resamples of the paired windows.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    min_coverage: float = Field(
        0.5, ge=0, le=1, description="Least share of actual values inside the 80 % interval. 0 allows any."
    )
    max_coverage: float = Field(
        1.0, ge=0, le=1, description="Greatest share of actual values inside the 80 % interval. 1 allows any."
    )
    max_series_loss: float | None = Field(
        None,
        ge=0,
        description="How much worse than the champion the new model may be on any one series (or group of series), as a "
        "share of the champion's score there.",
    )
    min_series_windows: int = Field(
        3, ge=1, description="Series (or groups) with fewer windows than this are left out of max_series_loss."
    )
    series_group_separator: str = Field(
        "",
        description="Series whose names agree up to the first of these characters form a group for max_series_loss; "
        "with none, each series is its own.",
    )
    max_forecast_seconds: float | None = Field(
        None, gt=0, description="Longest time that the forecast of one window of one series may take, on average."
    )
    max_latency_ratio: float | None = Field(
        None, gt=0, description="Longest time that a forecast may take, as a multiple of the champion's."
    )
    max_model_bytes: int | None = Field(None, ge=1, description="Largest size of the model's files.")
    max_skipped_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Greatest share of training steps that may have been skipped because loss or gradient was not "
        "finite. 1 allows any.",
    )
    require_clean_data: bool = Field(
        False, description="Refuse models that were trained on data in which anything had to be mended or left out."
    )
    allow_rolled_back: bool = Field(
        False, description="Promote a model again whose very weights a rollback took out of production."
    )
    require_fine_tuning_gain: bool = Field(
        False,
        description="Refuse a fine-tuned model that is not better, with the confidence above, than its starting weights.",
    )

    @model_validator(mode="after")
    def _one_demand(self) -> PromotionSettings:
        if self.minimal_gain > 0 and self.require != "better":
            raise ValueError(
                f"minimal_gain is {self.minimal_gain:g}, which needs require=better (tolerated_loss is for not_worse)"
            )
        if self.tolerated_loss > 0 and self.require != "not_worse":
            raise ValueError(
                f"tolerated_loss is {self.tolerated_loss:g}, which needs require=not_worse (minimal_gain is for better)"
            )
        if self.min_coverage > self.max_coverage:
            raise ValueError(
                f"min_coverage ({self.min_coverage:g}) must not be above max_coverage ({self.max_coverage:g})"
            )
        return self


class ScheduleSettings(Settings):
    """When retrainings and forecasts start by themselves. Schedules and sensors are off until switched on in the UI."""

    cron: str = Field("0 2 * * *", description="Cron expression: minute, hour, day of month, month, day of week.")
    time_zone: str = Field("UTC", description="IANA time zone of the cron expression, such as Europe/Paris.")

    forecast_cron: str = Field("0 6 * * *", description="Cron expression of the nightly forecast with the champion.")
    drift: float = Field(
        1.5,
        gt=1,
        description="How many times as bad as its evaluation promised the champion's forecasts must come out before the "
        "sensor retrain_on_drift retrains.",
    )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError(f"there is no time zone {value!r}{suggestion(value, zoneinfo.available_timezones())}")
        return value
