"""What `dagster dev` loads: assets, job, schedule, sensors. Settings come from $TOTO_CONFIG or ./toto.yaml."""

from __future__ import annotations

import dagster as dg

from toto_pipeline.assets.dashboards import dashboard_assets
from toto_pipeline.assets.data import data_assets
from toto_pipeline.assets.evaluation import evaluation_assets
from toto_pipeline.assets.forecasts import forecast_assets
from toto_pipeline.assets.promotion import promotion_assets
from toto_pipeline.assets.rollback import rollback_job
from toto_pipeline.assets.training import training_assets
from toto_pipeline.automation.drift import retrain_on_drift
from toto_pipeline.automation.jobs import forecast_job, retrain_job
from toto_pipeline.automation.schedules import nightly_forecast, nightly_retrain
from toto_pipeline.automation.sensors import run_end_sensors
from toto_pipeline.config import RetrainSettings, default_settings_file, load_settings
from toto_pipeline.resources import HomeResource, MlflowResource


def build_definitions(settings: RetrainSettings) -> dg.Definitions:
    """The code location with `settings` as the defaults of the launchpad, the job and the schedule."""
    home = HomeResource()
    evaluation, checks = evaluation_assets(settings)
    job, forecast = retrain_job(settings), forecast_job(settings)
    return dg.Definitions(
        assets=[
            *data_assets(settings),
            *training_assets(settings),
            *evaluation,
            *promotion_assets(settings),
            *dashboard_assets(),
            *forecast_assets(settings),
        ],
        asset_checks=checks,
        jobs=[job, forecast, rollback_job(settings)],
        schedules=[nightly_retrain(job, settings), nightly_forecast(forecast, settings)],
        sensors=[*run_end_sensors(), retrain_on_drift(job, settings)],
        resources={"home": home, "mlflow": MlflowResource(home=home)},
    )


defs = build_definitions(load_settings(file=default_settings_file()))
