"""What every asset needs: errors a person can read, facts of upstream assets, pictures as metadata."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from toto_pipeline.errors import PipelineError

OWNERS = ["team:forecasting"]
_RECENT = 200


@contextmanager
def user_errors() -> Iterator[None]:
    """A fault that a user can mend fails the asset with its message, and is not retried: it would fail again."""
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"error": type(error).__name__, "what_to_do": str(error)},
            allow_retries=False,
        ) from None  # the message is whole; where in our code it arose is of no use to its reader


def run_id_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> str:
    """The retraining that this step belongs to: a retry belongs to the run it retries."""
    return context.run.root_run_id or context.run.run_id


def run_family(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> set[str]:
    """The ids of this run and of the runs it retries."""
    run = context.run
    family = {run.run_id, run_id_of(context)}
    if run.parent_run_id:
        family.add(run.parent_run_id)
    return family


def upstream_fact(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: str, name: str) -> str:
    """A text fact that the newest materialization of `asset` recorded, this run's own before any other's.

    Raises:
        dg.Failure: the asset was never materialized.
    """
    records = materializations(context.instance, asset)
    family = run_family(context)
    own = [record for record in records if record.run_id in family]
    for record in own or records:
        value = record.asset_materialization.metadata.get(name) if record.asset_materialization else None
        if value is not None:
            return str(value.value)
    raise dg.Failure(
        description=f"{asset} has not been materialized yet. Expected: its {name}. What to do: run the job `retrain`, "
        f"or materialize {asset} first.",
        allow_retries=False,
    )


def materializations(instance: dg.DagsterInstance, asset: str, limit: int = _RECENT) -> Sequence[dg.EventLogRecord]:
    """The newest materializations of `asset`, newest first."""
    return instance.fetch_materializations(dg.AssetKey(asset), limit=limit).records


def picture(data: bytes | Path) -> Any:
    """A PNG as metadata that the UI shows."""
    content = data.read_bytes() if isinstance(data, Path) else data
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(content).decode()})")


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows of plain values as a table in the UI."""
    records = [dg.TableRecord({key: _cell(value) for key, value in row.items()}) for row in rows]
    if not records:
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.table(records)


def columns(schema: Sequence[dict[str, str]]) -> Any:
    """The column schema that the UI shows on the asset's page."""
    return dg.TableSchema([dg.TableColumn(entry["name"], entry["type"]) for entry in schema])


def _cell(value: Any) -> str | int | float | bool | None:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
