"""What happens when a run has ended, whoever started it: its MLflow run gets the status that the whole of it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

import dagster as dg

from toto_pipeline.home import Home

Status = Literal["FINISHED", "FAILED", "KILLED"]

_STATUSES: Mapping[dg.DagsterRunStatus, Status] = {
    dg.DagsterRunStatus.SUCCESS: "FINISHED",
    dg.DagsterRunStatus.FAILURE: "FAILED",
    dg.DagsterRunStatus.CANCELED: "KILLED",
}


def run_end_sensors() -> list[dg.SensorDefinition]:
    """One sensor for each way in which a run can end, switched on with the code location.

    They watch every job: an asset of any of them may log into the MLflow run of its Dagster run.
    """
    return [_sensor(status) for status in _STATUSES]


def _sensor(status: dg.DagsterRunStatus) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        name=f"mlflow_{status.value.lower()}",
        run_status=status,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Gives the MLflow run of a Dagster run that ended with {status.value} the right status.",
    )
    def sensor(context: dg.RunStatusSensorContext) -> None:
        run = context.dagster_run
        end_mlflow_run(Home.from_environment(), run.root_run_id or run.run_id, run.status)

    return sensor


def end_mlflow_run(home: Home, run_id: str, status: dg.DagsterRunStatus) -> None:
    """Close the MLflow run of an ended retraining.

    A run that Dagster calls failed because the gate refused the model did what it should: its MLflow run is FINISHED.

    Args:
        run_id: of the run, or of the first where it was retried.

    Raises:
        RegistryError: MLflow cannot be reached; the status is kept, and told with that of the next run.
    """
    from toto_pipeline.monitoring.mlflow_run import close_run

    ending = _STATUSES[status]
    if ending == "FAILED" and _was_refused(home, run_id):
        ending = "FINISHED"
    close_run(home, run_id, ending)


def _was_refused(home: Home, run_id: str) -> bool:
    try:
        return json.loads((home.run(run_id) / "decision.json").read_bytes())["promote"] is False
    except FileNotFoundError:
        return False
