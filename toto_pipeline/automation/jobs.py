"""The job `retrain`, and how settings become its run config."""

from __future__ import annotations

from typing import Any

import dagster as dg

from toto_pipeline.config import RetrainSettings

RETRAIN = "retrain"
IN_PROCESS: dict[str, Any] = {"execution": {"config": {"in_process": {}}}}
"""Steps run one after the other in the run's own process, which saves seconds a step; the training itself is always in
processes of its own. Replace `in_process` with `multiprocess` in the launchpad to give every step its own."""


def retrain_job(settings: RetrainSettings) -> Any:
    return dg.define_asset_job(
        RETRAIN,
        selection=dg.AssetSelection.all(),
        description="Read the data, train, evaluate against the baseline and the champion, and promote what is proven.",
        config=run_config(settings),
        tags={"dagster/max_retries": "2"},
    )


def run_config(settings: RetrainSettings) -> dict[str, Any]:
    """The run config that means `settings`, with every value spelled out."""
    values = settings.model_dump(mode="json")
    sections = {
        "series_snapshot": values["data"],
        "training_data": values["preparation"],
        "trained_model": {"preset": values["preset"], **values["training"], "monitoring": values["monitoring"]},
        "evaluation_report": values["evaluation"] | {"policy": values["promotion"]},
        "promoted_checkpoint": {"model_name": values["promotion"]["model_name"]},
    }
    return {**IN_PROCESS, "ops": {name: {"config": config} for name, config in sections.items()}}
