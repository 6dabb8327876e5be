"""The MLflow run of a retraining ends as the whole of it did, however it was started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import mlflow
import pytest

from toto_pipeline.automation.sensors import end_mlflow_run
from toto_pipeline.config import RetrainSettings
from toto_pipeline.definitions import build_definitions
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import URI_VARIABLE, Store
from toto_pipeline.monitoring.mlflow_run import find_run, open_run
from toto_pipeline_tests.fixtures.mlflow_store import make_empty_database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_database(tmp_path_factory.mktemp("store"))


@pytest.fixture
def tracked(home: Home, database: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose MLflow store holds the run of a training that is over."""
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    monkeypatch.setenv("TOTO_HOME", str(home.root))
    shutil.copy(database, home.registry / database.name)
    store = Store.of(home)
    open_run(store, store.client(), "run-1")
    return home


def _status(home: Home) -> str:
    found = find_run(mlflow.MlflowClient(Store.of(home).uri), "run-1")
    assert found is not None
    return str(found.info.status)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (dg.DagsterRunStatus.SUCCESS, "FINISHED"),
        (dg.DagsterRunStatus.FAILURE, "FAILED"),
        (dg.DagsterRunStatus.CANCELED, "KILLED"),
    ],
)
def test_a_run_is_shown_as_it_ended(tracked: Home, status: dg.DagsterRunStatus, shown: str) -> None:
    assert _status(tracked) == "RUNNING"
    end_mlflow_run(tracked, "run-1", status)
    assert _status(tracked) == shown


@pytest.mark.parametrize(("promote", "shown"), [(False, "FINISHED"), (True, "FAILED")])
def test_a_refusal_is_no_failure(tracked: Home, promote: bool, shown: str) -> None:
    folder = tracked.run("run-1")
    folder.mkdir(parents=True)
    (folder / "decision.json").write_text(json.dumps({"promote": promote, "rules": []}))
    end_mlflow_run(tracked, "run-1", dg.DagsterRunStatus.FAILURE)
    assert _status(tracked) == shown


def test_the_daemon_tells_by_the_first_run_of_a_retried_one(tracked: Home) -> None:
    definitions = build_definitions(RetrainSettings())
    sensor = definitions.resolve_sensor_def("mlflow_canceled")
    job = definitions.resolve_job_def("retrain")
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(
            job, status=dg.DagsterRunStatus.CANCELED, root_run_id="run-1", parent_run_id="run-1"
        )
        event = dg.DagsterEvent(event_type_value="PIPELINE_CANCELED", job_name="retrain")
        context = dg.build_run_status_sensor_context(
            sensor_name="mlflow_canceled", dagster_instance=instance, dagster_run=run, dagster_event=event
        )
        sensor(context)
    assert _status(tracked) == "KILLED"


def test_each_sensor_is_on_and_watches_one_ending() -> None:
    sensors = {
        sensor.name: sensor
        for sensor in build_definitions(RetrainSettings()).sensors or ()
        if isinstance(sensor, dg.RunStatusSensorDefinition)
    }
    assert set(sensors) == {"mlflow_success", "mlflow_failure", "mlflow_canceled"}
    assert {sensor.default_status for sensor in sensors.values()} == {dg.DefaultSensorStatus.RUNNING}
