"""run_dashboard: one HTML page about this run."""

import hashlib

import dagster as dg

from toto_pipeline.assets.common import OWNERS, upstream_fact, user_errors
from toto_pipeline.resources import HomeResource


def dashboard_assets() -> list[dg.AssetsDefinition]:
    @dg.asset(
        group_name="dashboards",
        kinds={"html"},
        owners=OWNERS,
        deps=["trained_model", "evaluation_report", "promoted_checkpoint"],
        description="One self-contained HTML page with the run's loss curves, scores, forecasts and decision. It opens "
        "without a server, and is also written when a model is refused.",
    )
    def run_dashboard(context: dg.AssetExecutionContext, home: HomeResource) -> dg.MaterializeResult[None]:
        from toto_pipeline.dashboards.html.report import write_report
        from toto_pipeline.promotion.tracking import track

        model_run = upstream_fact(context, "trained_model", "run")
        with user_errors():
            opened = home.open()
            page = write_report(opened.run(model_run))
            track(opened, opened.run(model_run))
        content = page.read_bytes()
        return dg.MaterializeResult(
            data_version=dg.DataVersion(hashlib.sha256(content).hexdigest()),
            metadata={
                "run": model_run,
                "page": dg.MetadataValue.path(str(page)),
                "open": dg.MetadataValue.url(page.as_uri()),
                "bytes": len(content),
            },
        )

    return [run_dashboard]
