"""The MLflow run of a Dagster run, as assets of users get it: one for all its steps, processes and retries."""

# Dagster reads the annotations of assets as objects, so they are not postponed here.
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from toto_pipeline.automation.sensors import run_end_sensors
from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import DATABASE_FILE, URI_VARIABLE, Store
from toto_pipeline.resources import HomeResource, MlflowResource
from toto_pipeline_tests.conftest import write_series
from toto_pipeline_tests.fixtures.mlflow_job import FAIL_VARIABLE, definitions, together
from toto_pipeline_tests.fixtures.mlflow_store import Server, make_empty_database

IN_PROCESS = {"execution": {"config": {"in_process": {}}}}
MULTIPROCESS = {"execution": {"config": {"multiprocess": {"max_concurrent": 2}}}}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_database(tmp_path_factory.mktemp("initialised"))


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home that nothing has been recorded in, and that $TOTO_HOME names."""
    for name in (URI_VARIABLE, "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOTO_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home").prepare()


@pytest.fixture
def home(clean: Home, empty_database: Path) -> Home:
    shutil.copy(empty_database, clean.registry / DATABASE_FILE)
    return clean


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as started:
        yield started


def resource() -> MlflowResource:
    return MlflowResource(home=HomeResource())


def materialized(asset: dg.AssetsDefinition, **options: Any) -> dg.ExecuteInProcessResult:
    return dg.materialize([asset], resources={"mlflow": resource()}, **options)


def all_runs(home: Home) -> list[Any]:
    client = Store.of(home).client()
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def only_run(home: Home) -> Any:
    (run,) = all_runs(home)
    return run


def test_what_an_asset_logs_is_in_the_mlflow_run_of_its_dagster_run(home: Home, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")

    @dg.asset
    def mine(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> None:
        run = mlflow.run(context)
        run.log_metrics({"error": 0.5, "bias": -0.25}, step=7)
        run.log_params({"model": {"depth": 3}})
        run.log_tags({"who": "me"})
        run.log_artifact(tmp_path / "notes.txt", folder="notes")

    result = materialized(mine)
    run = only_run(home)
    assert run.data.tags["toto.run"] == run.info.run_name == result.run_id
    assert run.data.metrics == {"error": 0.5, "bias": -0.25}
    assert Store.of(home).client().get_metric_history(run.info.run_id, "error")[0].step == 7
    assert run.data.params == {"model.depth": "3"}
    assert run.data.tags["who"] == "me"
    assert run.info.status == "RUNNING"  # how it ended is told by the sensors
    (kept,) = (home.registry / "artifacts").rglob("notes.txt")
    assert kept.read_text() == "words"
    assert kept.parent.name == "notes"


def test_nothing_is_opened_before_something_is_logged(clean: Home) -> None:
    @dg.asset
    def silent(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> dg.MaterializeResult[None]:
        mlflow.run(context)
        return dg.MaterializeResult(metadata=mlflow.metadata(context, context.run.run_id))

    assert materialized(silent).success
    assert Store.of(clean).is_empty()


def start(home: Home, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "toto_pipeline_tests.fixtures.mlflow_job", str(home.root), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_two_processes_at_once_share_one_run(home: Home) -> None:
    steps = [start(home, name) for name in ("one", "two")]
    assert [answer(step) for step in steps] == ["ready", "ready"]
    for number in range(8):
        for step in steps:
            tell(step, f"run-{number}")
        first, second = (answer(step) for step in steps)
        assert first == second != ""
    for step in steps:
        step.communicate()
        assert step.returncode == 0
    runs = all_runs(home)
    assert sorted(run.data.tags["toto.run"] for run in runs) == [f"run-{number}" for number in range(8)]
    assert all(run.data.metrics == {"one": 1.0, "two": 1.0} for run in runs)


@pytest.mark.slow
def test_two_first_steps_of_the_multiprocess_executor_share_one_run(clean: Home, instance: dg.DagsterInstance) -> None:
    """In a home whose tables are not there yet either."""
    with dg.execute_job(dg.reconstructable(together), instance, run_config=MULTIPROCESS) as result:
        assert result.success
    run = only_run(clean)
    assert run.data.tags["toto.run"] == result.run_id
    assert run.data.metrics == {"first": 1.0, "second": 2.0, "second_done": 3.0}
    assert run.info.status == "RUNNING"


def test_a_step_that_is_tried_again_goes_on_in_the_same_run(home: Home) -> None:
    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def shaky(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> None:
        mlflow.run(context).log_metric(f"try_{context.retry_number}", 1.0)
        if context.retry_number == 0:
            raise RuntimeError("once")

    assert materialized(shaky).success
    assert only_run(home).data.metrics == {"try_0": 1.0, "try_1": 1.0}


def test_a_run_that_is_retried_goes_on_in_the_same_mlflow_run(
    home: Home, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAIL_VARIABLE, str(tmp_path / "failed"))
    job = dg.reconstructable(together)
    with dg.execute_job(job, instance, run_config=IN_PROCESS) as failed:
        assert not failed.success
    retry = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
    with dg.execute_job(job, instance, run_config=IN_PROCESS, reexecution_options=retry) as done:
        assert done.success
        assert done.run_id != failed.run_id
    run = only_run(home)
    assert run.data.tags["toto.run"] == failed.run_id
    assert run.data.metrics == {"first": 1.0, "second": 2.0, "second_done": 3.0}


@pytest.mark.parametrize(("fails", "status"), [(False, "FINISHED"), (True, "FAILED")])
def test_the_sensors_end_the_run_of_any_job(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, status: str
) -> None:
    if fails:
        monkeypatch.setenv(FAIL_VARIABLE, str(tmp_path / "failed"))
    with dg.DagsterInstance.ephemeral() as instance:
        sensors = {sensor: dg.build_sensor_context(instance) for sensor in run_end_sensors()}
        for sensor, context in sensors.items():
            sensor.evaluate_tick(context)  # the first look only says where it begins
        job = definitions().resolve_job_def("together")
        job.execute_in_process(instance=instance, raise_on_error=False)
        assert only_run(home).info.status == "RUNNING"
        for sensor, context in sensors.items():
            sensor.evaluate_tick(dg.build_sensor_context(instance, cursor=context.cursor))
    assert only_run(home).info.status == status


def state_of_mlflow() -> tuple[Any, ...]:
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
    return (mlflow.active_run(), mlflow.is_tracking_uri_set(), *(os.environ.get(name) for name in names))


def test_dagster_mlflow_works_in_the_same_run_and_leaves_the_process_as_it_was(home: Home) -> None:
    before = state_of_mlflow()

    @dg.asset
    def fluent_one(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> None:
        with mlflow.fluent(context) as functions:
            functions.log_metric("fluent", 2.0)
            functions.log_params({f"p{number}": number for number in range(150)})
            functions.log_dict({"a": 1}, "a.json")
        mlflow.run(context).log_metric("plain", 1.0)

    result = materialized(fluent_one)
    assert state_of_mlflow() == before
    run = only_run(home)
    assert run.data.metrics == {"fluent": 2.0, "plain": 1.0}
    assert len(run.data.params) == 150
    assert run.info.run_name == result.run_id
    assert run.info.status == "RUNNING"
    assert [file.name for file in (home.registry / "artifacts").rglob("a.json")] == ["a.json"]


def test_dagster_mlflow_does_not_end_the_run_of_a_step_that_fails(home: Home) -> None:
    before = state_of_mlflow()

    @dg.asset
    def failing(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> None:
        with mlflow.fluent(context) as functions:
            functions.log_metric("reached", 1.0)
            raise ValueError("mine")

    assert not materialized(failing, raise_on_error=False).success
    assert state_of_mlflow() == before
    assert only_run(home).info.status == "RUNNING"


def test_dagster_mlflow_is_refused_where_it_would_log_into_another_run(home: Home) -> None:
    import mlflow as library

    @dg.asset
    def mixed(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> None:
        library.set_tracking_uri(Store.of(home).uri)
        try:
            with library.start_run() as other, mlflow.fluent(context):
                raise AssertionError(other)
        finally:
            library.set_tracking_uri(None)

    with pytest.raises(RegistryError, match=r"is active in this process\. Expected: none"):
        materialized(mixed)


def logging_asset() -> dg.AssetsDefinition:
    @dg.asset
    def linked(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> dg.MaterializeResult[None]:
        mlflow.run(context).log_metric("error", 0.5)
        return dg.MaterializeResult(metadata=mlflow.metadata(context, context.run.run_id))

    return linked


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (materialization,) = result.asset_materializations_for_node("linked")
    return {name: value.value for name, value in materialization.metadata.items()}


def test_the_way_to_a_local_store_is_a_command(home: Home) -> None:
    metadata = metadata_of(materialized(logging_asset()))
    assert metadata["mlflow_run"] == only_run(home).info.run_id
    assert metadata["mlflow_ui"] == f"mlflow ui --backend-store-uri sqlite:///{home.registry / DATABASE_FILE}"


def test_a_link_to_a_server_that_is_away_is_a_warning(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(URI_VARIABLE, "http://127.0.0.1:9")

    @dg.asset
    def linked(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=mlflow.metadata(context, context.run.run_id))

    assert metadata_of(materialized(linked)) == {}
    assert "There is no link to MLflow: MLflow at http://127.0.0.1:9 cannot be used" in capfd.readouterr().err


@pytest.mark.slow
def test_the_way_to_a_server_is_a_page(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    try:
        monkeypatch.setenv(URI_VARIABLE, server.uri)
        metadata = metadata_of(materialized(logging_asset()))
        run = only_run(home)
        assert metadata == {"mlflow_run": f"{server.uri}/#/runs/{run.info.run_id}"}
        assert run.data.metrics == {"error": 0.5}
        with_password = server.uri.replace("://", "://me:secret@")
        monkeypatch.setenv(URI_VARIABLE, with_password)
        assert "secret" not in metadata_of(materialized(logging_asset()))["mlflow_run"]
    finally:
        server.stop()


@pytest.mark.slow
def test_a_retraining_links_to_its_mlflow_run(clean: Home, tmp_path: Path) -> None:
    quick = [
        "training.epochs=1",
        "training.steps_per_epoch=5",
        "preparation.horizon=16",
        "preparation.context_length=64",
    ]
    words = ["--data", str(write_series(tmp_path / "input")), *(word for each in quick for word in ("--set", each))]
    command = [sys.executable, "-m", "toto_pipeline.cli", "--home", str(clean.root), "retrain", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 10), done.stdout + done.stderr  # promoted or refused
    run_id = only_run(clean).info.run_id
    with dg.DagsterInstance.from_config(str(clean.dagster)) as instance:
        for asset in ("trained_model", "evaluation_report"):
            record = instance.get_latest_materialization_event(dg.AssetKey(asset))
            assert record is not None
            assert record.asset_materialization is not None
            metadata = record.asset_materialization.metadata
            assert metadata["mlflow_run"].value == run_id
            assert str(metadata["mlflow_ui"].value).startswith("mlflow ui --backend-store-uri sqlite:///")
