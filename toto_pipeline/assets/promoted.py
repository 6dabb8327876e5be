"""What the page of promoted_checkpoint shows of a change of champion, whoever made it: an asset, a job or a command."""

from __future__ import annotations

import os
from typing import Any

import dagster as dg

from toto_pipeline.assets.common import materializations
from toto_pipeline.home import Home

PROMOTED = "promoted_checkpoint"
_MOST_RECORDED = 20
"""Changes that are made up for at once: a new instance beside an old registry does not get all of its history."""
_LINEAGE = (
    "training_data", "model_sha256", "checkpoint", "checkpoint_sha256", "parent_model", "code_version", "config_hash",
)  # fmt: skip


def change_metadata(home: Home, model_name: str, change: Any, version: Any) -> dict[str, Any]:
    """Metadata of a materialization: what changed and why, and the way to data, training, evaluation and MLflow.

    Args:
        change: a `promotion.changes.Change`; version: the `promotion.registry.ModelVersion` that became champion.
    """
    from toto_pipeline.promotion.why import as_markdown, explain, gather

    tags = version.tags
    return {
        "version": version.version,
        "replaced_version": change.replaced or "none: this is the first champion",
        "decision": change.kind,
        "change": change.number,
        "model": model_name,
        "by": change.by,
        "why": dg.MetadataValue.md(as_markdown(explain(gather(home, model_name, version.version)))),
        "reasons": dg.MetadataValue.md("\n".join(f"- {line}" for line in change.reason.splitlines()) or "-"),
        "run": version.run,
        "trained_by": dg.MetadataValue.dagster_run(version.run),
        "data": dg.MetadataValue.asset(dg.AssetKey("series_snapshot")),
        "training": dg.MetadataValue.asset(dg.AssetKey("trained_model")),
        "epochs": dg.MetadataValue.asset(dg.AssetKey("training_epoch")),
        "evaluation": dg.MetadataValue.asset(dg.AssetKey("evaluation_report")),
        "series_snapshot": tags.get("series_snapshot", "not known"),
        **{name: tags[name] for name in _LINEAGE if name in tags},
        **mlflow_links(home, model_name, version),
        **version.metrics,
        "folder": dg.MetadataValue.path(str(version.path)),
    }


def mlflow_links(home: Home, model_name: str, version: Any) -> dict[str, Any]:
    """Pages of the version and its run where MLflow is a server, else their names and how to open the store."""
    from toto_pipeline.monitoring.mlflow_connection import Store

    store = Store.of(home)
    if store.remote:
        return {
            "mlflow_version": dg.MetadataValue.url(f"{store.page}/#/models/{model_name}/versions/{version.version}"),
            "mlflow_run": dg.MetadataValue.url(f"{store.page}/#/runs/{version.mlflow_run}"),
        }
    return {
        "mlflow_version": f"models:/{model_name}/{version.version}",
        "mlflow_run": version.mlflow_run,
        "mlflow_ui": f"mlflow ui --backend-store-uri {store}",
    }


def record_changes(
    instance: dg.DagsterInstance, home: Home, model_name: str, *, log: Any = None, before: int | None = None
) -> list[int]:
    """Materialize promoted_checkpoint for the newest changes of champion that Dagster does not know; their numbers.

    So a change that a command made, or one after which a process was killed, gets to the page too.

    Args:
        log: takes a materialization of the running step; by default it belongs to no run.
        before: only changes with lower numbers, where the caller materializes that one itself.
    """
    from toto_pipeline.promotion.registry import Registry

    registry = Registry(home, model_name)
    known = recorded_change(instance, model_name)
    changes = [
        change
        for change in registry.changes(_MOST_RECORDED)
        if change.number > known and (before is None or change.number < before)
    ]
    for change in reversed(changes):
        version = registry.version(change.version)
        event = dg.AssetMaterialization(PROMOTED, metadata=change_metadata(home, model_name, change, version))
        (log or instance.report_runless_asset_event)(event)
    return [change.number for change in reversed(changes)]


def recorded_change(instance: dg.DagsterInstance, model_name: str) -> int:
    """Number of the newest change of champion that a materialization tells; 0 where there is none."""
    for record in materializations(instance, PROMOTED):
        metadata = record.asset_materialization.metadata if record.asset_materialization else {}
        if "change" in metadata and str(metadata["model"].value) == model_name:
            return int(str(metadata["change"].value))
    return 0


def record_by_command(home: Home, model_name: str) -> list[int]:
    """`record_changes` in the instance of a home, for a command that runs outside of Dagster."""
    from toto_pipeline.automation.instance import prepare_instance

    os.environ["DAGSTER_HOME"] = str(prepare_instance(home))
    with dg.DagsterInstance.get() as instance:
        return record_changes(instance, home, model_name)
