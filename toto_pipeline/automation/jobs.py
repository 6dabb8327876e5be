"""The jobs `retrain` and `forecast`, and how settings become the run config of the first."""

from __future__ import annotations

from typing import Any

import dagster as dg

from toto_pipeline.config import RetrainSettings

RETRAIN, FORECAST = "retrain", "forecast"
FORECAST_GROUP = "forecasts"
"""The group of the assets that use the champion, which a retraining does not."""
IN_PROCESS: dict[str, Any] = {"execution": {"config": {"in_process": {}}}}
"""Steps run one after the other in the run's own process, which saves seconds a step; the training itself is always in
processes of its own. Replace `in_process` with `multiprocess` in the launchpad to give every step its own."""


def retrain_job(settings: RetrainSettings) -> Any:
    return dg.define_asset_job(
        RETRAIN,
        selection=dg.AssetSelection.all() - dg.AssetSelection.groups(FORECAST_GROUP),
        description="Read the data, train, evaluate against the baseline and the champion, and promote what is proven.",
        config=run_config(settings),
        tags={"dagster/max_retries": "2"},
    )


def forecast_job(settings: RetrainSettings) -> Any:
    """Reads the data anew, so that the forecast follows on what is newest and earlier ones can be scored."""
    return dg.define_asset_job(
        FORECAST,
        selection=dg.AssetSelection.groups(FORECAST_GROUP) | dg.AssetSelection.assets("series_snapshot"),
        description="Read the data, forecast every series with the champion, and score earlier forecasts.",
        config=forecast_config(settings),
        tags={"dagster/max_retries": "2"},
    )


def forecast_config(settings: RetrainSettings) -> dict[str, Any]:
    """The run config of the job `forecast` that means `settings`."""
    return {**IN_PROCESS, "ops": {"series_snapshot": {"config": settings.data.model_dump(mode="json")}}}


def run_config(settings: RetrainSettings) -> dict[str, Any]:
    """The run config that means `settings`, with every value spelled out."""
    values = settings.model_dump(mode="json")
    sections = {
        "series_snapshot": values["data"],
        "training_data": values["preparation"],
        "trained_model": {"preset": values["preset"], **values["training"], "monitoring": values["monitoring"]},
        "evaluation_report": values["evaluation"] | {"policy": values["promotion"]},
        "promoted_checkpoint": {name: values["promotion"][name] for name in ("model_name", "allow_rolled_back")},
    }
    return {**IN_PROCESS, "ops": {name: {"config": config} for name, config in sections.items()}}
