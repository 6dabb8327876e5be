"""promoted_checkpoint: the model in production."""

from typing import Any

import dagster as dg
import pydantic

from toto_pipeline.assets.common import OWNERS, upstream_fact, user_errors
from toto_pipeline.config import RetrainSettings
from toto_pipeline.resources import HomeResource


def promotion_assets(settings: RetrainSettings) -> list[dg.AssetsDefinition]:
    config_cls: Any = pydantic.create_model(
        "PromotedCheckpointConfig",
        __base__=dg.Config,
        model_name=(
            str,
            pydantic.Field(
                default=settings.promotion.model_name, description="Name of the registered model in MLflow."
            ),
        ),
    )

    @dg.asset(
        group_name="promotion",
        kinds={"mlflow"},
        owners=OWNERS,
        deps=["evaluation_report"],
        description="The champion: registered in MLflow with its scores and where it came from, and named by the alias "
        "`champion`. Only a model that passed every check of the evaluation gets here.",
    )
    def promoted_checkpoint(
        context: dg.AssetExecutionContext, config: config_cls, home: HomeResource
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.promotion.release import promote

        model_run = upstream_fact(context, "evaluation_report", "run")
        with user_errors():
            opened = home.open()
            release = promote(opened, opened.run(model_run), config.model_name, {"dagster_run": context.run.run_id})
        version = release.version
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version.tags["model_sha256"]),
            metadata={
                "version": version.version,
                "replaced_version": release.replaced or "none: this is the first champion",
                "run": model_run,
                "trained_by": dg.MetadataValue.dagster_run(model_run),
                "data": dg.MetadataValue.asset(dg.AssetKey("series_snapshot")),
                "series_snapshot": release.snapshot,
                "training_data": release.training_data,
                "model_sha256": version.tags["model_sha256"],
                "code_version": release.code_version,
                "reasons": dg.MetadataValue.md("\n".join(f"- {text}" for text in release.reasons)),
                **version.metrics,
                "folder": dg.MetadataValue.path(str(version.path)),
            },
        )

    return [promoted_checkpoint]
