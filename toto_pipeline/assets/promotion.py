"""promoted_checkpoint: the model in production."""

from typing import Any

import dagster as dg
import pydantic

from toto_pipeline.assets.common import OWNERS, run_id_of, upstream_fact, user_errors
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
            promotion = promote(
                opened, opened.run(model_run), config.model_name, tags={"dagster_run": run_id_of(context)}
            )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(promotion.model_sha256),
            metadata={
                "version": promotion.version,
                "replaced_version": promotion.replaced or "none: this is the first champion",
                "run": model_run,
                "model_sha256": promotion.model_sha256,
                "series_snapshot": promotion.snapshot,
                "training_data": promotion.training_data,
                "data": dg.MetadataValue.asset(dg.AssetKey("series_snapshot")),
                "trained_by": dg.MetadataValue.dagster_run(model_run),
                "code_version": promotion.code_version,
                "reasons": dg.MetadataValue.md("\n".join(f"- {text}" for text in promotion.reasons)),
                **promotion.metrics,
                "folder": dg.MetadataValue.path(str(promotion.path)),
            },
        )

    return [promoted_checkpoint]
