"""The nightly retraining and the nightly forecast. Off until somebody switches them on."""

from __future__ import annotations

from typing import Any

import dagster as dg

from toto_pipeline.automation.jobs import forecast_config, run_config
from toto_pipeline.config import RetrainSettings


def nightly_retrain(job: Any, settings: RetrainSettings) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name="nightly_retrain",
        job=job,
        cron_schedule=settings.schedule.cron,
        execution_timezone=settings.schedule.time_zone,
        run_config=run_config(settings),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Retrain every night as toto.yaml says. When: schedule.cron and schedule.time_zone.",
    )


def nightly_forecast(job: Any, settings: RetrainSettings) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name="nightly_forecast",
        job=job,
        cron_schedule=settings.schedule.forecast_cron,
        execution_timezone=settings.schedule.time_zone,
        run_config=forecast_config(settings),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Forecast with the champion every night. When: schedule.forecast_cron and schedule.time_zone.",
    )
