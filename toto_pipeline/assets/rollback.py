"""The job `rollback`: an earlier champion takes the place of the present one."""

from typing import Any

import dagster as dg
import pydantic

from toto_pipeline.assets.common import user_errors
from toto_pipeline.assets.promoted import record_changes
from toto_pipeline.config import RetrainSettings
from toto_pipeline.resources import HomeResource

ROLLBACK = "rollback"


def rollback_job(settings: RetrainSettings) -> dg.JobDefinition:
    config_cls: Any = pydantic.create_model(
        "RollbackConfig",
        __base__=dg.Config,
        to=(
            str | None,
            pydantic.Field(
                default=None,
                description="Version to go back to. Unset: the newest champion before that was not rolled back.",
            ),
        ),
        reason=(str, pydantic.Field(default="", description="Why, in words that stay with the version.")),
        model_name=(
            str,
            pydantic.Field(
                default=settings.promotion.model_name, description="Name of the registered model in MLflow."
            ),
        ),
    )

    @dg.op(name="roll_back", description="Verify the version to go back to, make it the champion, and record it.")
    def roll_back_op(context: dg.OpExecutionContext, config: config_cls, home: HomeResource) -> None:
        from toto_pipeline.promotion import rollback

        run = context.run.root_run_id or context.run.run_id
        with user_errors():
            opened = home.open()
            done = rollback.done_by(opened, config.model_name, run)
            if done is None:
                planned = rollback.plan(opened, config.model_name, config.to)
                done = rollback.roll_back(opened, config.model_name, planned, reason=config.reason, run=run)
            record_changes(context.instance, opened, config.model_name, log=context.log_event)
        context.log.warning(
            f"Version {done.version.version} of {config.model_name} is the champion again, "
            f"in place of version {done.change.replaced}."
        )

    @dg.job(
        name=ROLLBACK,
        description="Go back to an earlier champion. Its files are verified before it takes the place of the present "
        "one, which is not promoted again by the nights that follow.",
        executor_def=dg.in_process_executor,
    )
    def rollback() -> None:
        roll_back_op()

    return rollback
