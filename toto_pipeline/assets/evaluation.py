"""evaluation_report: the new model, the baseline and the champion on the same windows; and the checks that gate."""

from typing import Any

import dagster as dg
import pydantic

from toto_pipeline.assets.common import OWNERS, picture, table, upstream_fact, user_errors
from toto_pipeline.assets.launchpad import config_class
from toto_pipeline.config import RetrainSettings, build
from toto_pipeline.resources import HomeResource, MlflowResource
from toto_pipeline.settings.promotion import EvaluationSettings, PromotionSettings
from toto_pipeline.training.run_files import record_settings

CHECKS = {
    "beats_baseline": "The new model is better than the seasonal naive, with the confidence that the policy asks for.",
    "not_worse_than_champion": "The new model is not worse than the model in production, on the very same windows; or "
    "proven better, where the policy asks for that.",
    "guards_hold": "Everything else that the policy demands: same windows, finite scores and weights, coverage, a "
    "finished training, and the limits that are set on single series, data, time and size.",
}
RULES = {
    "beats_baseline": {"beats_baseline"},
    "not_worse_than_champion": {"not_worse_than_champion", "better_than_champion"},
}
"""Rules of the gate that a check reads; `guards_hold` reads those that no other does, so that none is left out."""


def evaluation_assets(
    settings: RetrainSettings,
) -> tuple[list[dg.AssetsDefinition], list[dg.AssetChecksDefinition]]:
    policy_cls = config_class(PromotionSettings, settings.promotion)
    config_cls: Any = pydantic.create_model(
        "EvaluationReportConfig",
        __base__=config_class(EvaluationSettings, settings.evaluation),
        policy=(policy_cls, pydantic.Field(default_factory=policy_cls, description=PromotionSettings.__doc__)),
    )

    @dg.asset(
        group_name="evaluation",
        kinds={"python"},
        owners=OWNERS,
        deps=["training_data", "trained_model"],
        description="Forecasts of the held-out test span by the new model, the seasonal naive and the champion, "
        "on the very same windows: MASE, SQL, WQL, WAPE, 80 % coverage, pictures, and the decision with reasons.",
    )
    def evaluation_report(
        context: dg.AssetExecutionContext, config: config_cls, home: HomeResource, mlflow: MlflowResource
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.dashboards.html.report import write_report as write_page
        from toto_pipeline.promotion.release import dagster_tags, keep_refused
        from toto_pipeline.promotion.tracking import track
        from toto_pipeline.promotion.verdict import evaluate
        from toto_pipeline.promotion.why import as_markdown, explain, gather

        data = upstream_fact(context, "training_data", "fingerprint")
        model_run = upstream_fact(context, "trained_model", "run")
        values = config.model_dump()
        with user_errors():
            opened = home.open()
            policy = build(PromotionSettings, values.pop("policy"), section="promotion")
            evaluation = build(EvaluationSettings, values, section="evaluation")
            run_folder = opened.run(model_run)
            record_settings(
                run_folder, evaluation=evaluation.model_dump(mode="json"), promotion=policy.model_dump(mode="json")
            )
            verdict = evaluate(opened, run_folder, data, evaluation, policy)
            if not verdict.decision.promote:
                keep_refused(opened, run_folder, policy.model_name, dagster_tags(context.run.run_id))
            write_page(run_folder)
            if not verdict.decision.promote:
                track(opened, run_folder)  # nothing follows that would
            why = as_markdown(explain(gather(opened, policy.model_name, model_run)))
        scores = [{"model": name, **numbers} for name, numbers in verdict.models.items()]
        headline = {
            f"{name}_{metric}": float(numbers[metric])
            for name, numbers in verdict.models.items()
            for metric in ("MASE", "SQL", "WQL", "WAPE", "coverage_80")
        }
        return dg.MaterializeResult(
            data_version=dg.DataVersion(verdict.fingerprint),
            metadata={
                "run": model_run,
                "decision": "promote" if verdict.decision.promote else "refuse",
                "why": dg.MetadataValue.md(why),
                "trained_by": dg.MetadataValue.dagster_run(model_run),
                "data": dg.MetadataValue.asset(dg.AssetKey("series_snapshot")),
                "training": dg.MetadataValue.asset(dg.AssetKey("trained_model")),
                "epochs": dg.MetadataValue.asset(dg.AssetKey("training_epoch")),
                "champion": dg.MetadataValue.asset(dg.AssetKey("promoted_checkpoint")),
                "reasons": dg.MetadataValue.md("\n".join(f"- {rule.text}" for rule in verdict.decision.rules)),
                "scores": table(scores),
                "champion_version": verdict.champion.version if verdict.champion else "none",
                **headline,
                **{f"forecast_{n}": picture(path) for n, path in enumerate(verdict.pictures, start=1)},
                "folder": dg.MetadataValue.path(str(run_folder / "evaluation")),
                "report": dg.MetadataValue.path(str(run_folder / "report.html")),
                **mlflow.metadata(context, model_run),
            },
        )

    return [evaluation_report], [_check(name, text) for name, text in CHECKS.items()]


def _check(name: str, description: str) -> dg.AssetChecksDefinition:
    """A blocking check that reads its rules of the decision which the evaluation wrote."""

    @dg.asset_check(asset="evaluation_report", name=name, description=description, blocking=True)
    def check(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
        from toto_pipeline.promotion.verdict import read_decision

        model_run = upstream_fact(context, "evaluation_report", "run")
        with user_errors():
            decision = read_decision(home.open().run(model_run))
        rules = [rule for rule in decision["rules"] if _reads(name, rule["name"])]
        passed = all(rule["passed"] for rule in rules)
        told = rules if passed else [rule for rule in rules if not rule["passed"]]
        text = " ".join(rule["text"] for rule in told) or "This rule does not apply: there is no champion yet."
        return dg.AssetCheckResult(passed=passed, description=text, metadata={"run": model_run, "why": text})

    return check


def _reads(check: str, rule: str) -> bool:
    if check in RULES:
        return rule in RULES[check]
    return not any(rule in names for names in RULES.values())
