"""promoted_checkpoint: the model in production."""

from typing import Any

import dagster as dg
import pydantic

from toto_pipeline.assets.common import OWNERS, upstream_fact, user_errors
from toto_pipeline.assets.promoted import change_metadata, record_changes
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
        allow_rolled_back=(
            bool,
            pydantic.Field(
                default=settings.promotion.allow_rolled_back,
                description="Promote a model again whose very weights a rollback took out of production.",
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
        from toto_pipeline.promotion.release import dagster_tags, promote

        model_run = upstream_fact(context, "evaluation_report", "run")
        with user_errors():
            opened = home.open()
            release = promote(
                opened,
                opened.run(model_run),
                config.model_name,
                dagster_tags(context.run.run_id),
                allow_rolled_back=config.allow_rolled_back,
            )
            record_changes(context.instance, opened, config.model_name, before=release.change.number)
            metadata = change_metadata(opened, config.model_name, release.change, release.version)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(release.version.tags["model_sha256"]), metadata=metadata
        )

    return [promoted_checkpoint]
