"""evaluation_report: the new model, the baseline and the champion on the same windows; and the checks that gate."""

from typing import Any

import dagster as dg
import pydantic

from toto_pipeline.assets.common import OWNERS, picture, table, upstream_fact, user_errors
from toto_pipeline.assets.launchpad import config_class
from toto_pipeline.config import RetrainSettings, build
from toto_pipeline.resources import HomeResource
from toto_pipeline.settings.promotion import EvaluationSettings, PromotionSettings
from toto_pipeline.training.run_files import record_settings

CHECKS = {
    "beats_baseline": "The new model is better than the seasonal naive, with the confidence that the policy asks for.",
    "not_worse_than_champion": "The new model is not worse than the model in production, on the very same windows.",
}


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
        context: dg.AssetExecutionContext, config: config_cls, home: HomeResource
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.dashboards.html.report import write_report as write_page
        from toto_pipeline.promotion.release import keep_refused
        from toto_pipeline.promotion.tracking import track
        from toto_pipeline.promotion.verdict import evaluate

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
                keep_refused(opened, run_folder, policy.model_name, {"dagster_run": context.run.run_id})
            write_page(run_folder)
            if not verdict.decision.promote:
                track(opened, run_folder)  # nothing follows that would
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
                "reasons": dg.MetadataValue.md("\n".join(f"- {rule.text}" for rule in verdict.decision.rules)),
                "scores": table(scores),
                "champion_version": verdict.champion.version if verdict.champion else "none",
                **headline,
                **{f"forecast_{n}": picture(path) for n, path in enumerate(verdict.pictures, start=1)},
                "folder": dg.MetadataValue.path(str(run_folder / "evaluation")),
                "report": dg.MetadataValue.path(str(run_folder / "report.html")),
            },
        )

    return [evaluation_report], [_check(name, text) for name, text in CHECKS.items()]


def _check(name: str, description: str) -> dg.AssetChecksDefinition:
    """A blocking check that reads one rule of the decision which the evaluation wrote."""

    @dg.asset_check(asset="evaluation_report", name=name, description=description, blocking=True)
    def check(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
        from toto_pipeline.promotion.verdict import read_decision

        model_run = upstream_fact(context, "evaluation_report", "run")
        with user_errors():
            decision = read_decision(home.open().run(model_run))
        rules = [rule for rule in decision["rules"] if rule["name"] == name]
        passed = all(rule["passed"] for rule in rules)
        text = " ".join(rule["text"] for rule in rules) or "This rule does not apply: there is no champion yet."
        return dg.AssetCheckResult(passed=passed, description=text, metadata={"run": model_run, "why": text})

    return check
