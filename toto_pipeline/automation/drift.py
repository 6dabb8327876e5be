"""Retraining when the champion no longer forecasts as well as its evaluation promised. Off until it is switched on."""

from __future__ import annotations

from typing import Any

import dagster as dg

from toto_pipeline.automation.jobs import run_config
from toto_pipeline.config import RetrainSettings

ACCURACY_ASSET, DRIFT, VERSION = "forecast_accuracy", "drift", "champion_version"
"""The asset that tells the drift, and the names of the drift and of the champion's version in its metadata."""


def retrain_on_drift(job: Any, settings: RetrainSettings) -> dg.SensorDefinition:
    """Requests `job` once for each materialization of the accuracy whose drift is above `schedule.drift`."""
    limit = settings.schedule.drift

    @dg.sensor(
        name="retrain_on_drift",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"Retrains when the champion's forecasts came out more than {limit:g} times as bad as its "
        "evaluation promised. The limit: schedule.drift.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        records = context.instance.fetch_materializations(dg.AssetKey(ACCURACY_ASSET), limit=1).records
        newest = records[0] if records else None
        if newest is None or newest.asset_materialization is None:
            return dg.SkipReason(f"{ACCURACY_ASSET} has not been materialized yet: run the job `forecast`.")
        key = str(newest.storage_id)
        if key == context.cursor:
            return dg.SkipReason(f"{ACCURACY_ASSET} has not been materialized since the last look.")
        context.update_cursor(key)
        metadata = newest.asset_materialization.metadata
        if DRIFT not in metadata:
            return dg.SkipReason(f"{ACCURACY_ASSET} tells no drift yet.")
        drift, version = float(str(metadata[DRIFT].value)), str(metadata[VERSION].value)
        if drift <= limit:
            return dg.SkipReason(f"The drift is {drift:.2f}, which is not above {limit:g}.")
        return dg.RunRequest(
            run_key=f"drift-{key}",
            run_config=run_config(settings),
            tags={"toto/reason": f"drift {drift:.2f} of version {version}"},
        )

    return sensor
