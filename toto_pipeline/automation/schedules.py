"""The nightly retraining. Off until somebody switches it on."""

from __future__ import annotations

from typing import Any

import dagster as dg

from toto_pipeline.automation.jobs import run_config
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
