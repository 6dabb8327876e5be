"""The page of promoted_checkpoint, whoever changed the champion; and the job `rollback`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from toto_pipeline.assets.promoted import record_by_command, record_changes
from toto_pipeline.assets.rollback import rollback_job
from toto_pipeline.config import RetrainSettings
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import DATABASE_FILE
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.resources import HomeResource
from toto_pipeline_tests.fixtures.mlflow_store import make_empty_database
from toto_pipeline_tests.promotion.registering import aliases, register


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_database(tmp_path_factory.mktemp("initialised"))


@pytest.fixture
def registry(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two versions that were champion one after the other."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path / "home").prepare()
    shutil.copy(empty_database, home.registry / DATABASE_FILE)
    registry = Registry(home, "toto")
    for number, before in ((1, None), (2, "1")):
        register(registry, tmp_path, f"run-{number}", series_snapshot="5eed", checkpoint="step_10")
        registry.promote(str(number), expected_champion=before, reason="it is better")
    return registry


def home_of(registry: Registry) -> Home:
    return Home(registry.store.folder.parent)


def roll_back(registry: Registry, instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return rollback_job(RetrainSettings()).execute_in_process(
        run_config={"ops": {"roll_back": {"config": config}}},
        resources={"home": HomeResource(path=str(home_of(registry).root))},
        instance=instance,
        raise_on_error=False,
    )


def pages(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """Metadata of the materializations of promoted_checkpoint, oldest first."""
    records = instance.fetch_materializations(dg.AssetKey("promoted_checkpoint"), limit=50, ascending=True).records
    found = [record.asset_materialization for record in records]
    return [{name: entry.value for name, entry in each.metadata.items()} for each in found if each]


def test_the_job_goes_back_and_the_page_shows_it(registry: Registry) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        record_changes(instance, home_of(registry), "toto")
        done = roll_back(registry, instance, reason="too low")
        assert done.success
        page = pages(instance)[-1]
        assert (page["version"], page["replaced_version"], page["decision"]) == ("1", "2", "rollback")
        assert (page["change"], page["series_snapshot"], page["checkpoint"]) == (3, "5eed", "step_10")
        assert "somebody went back to it" in page["why"] and "too low" in page["why"]
        assert page["data"] == dg.AssetKey("series_snapshot") and page["epochs"] == dg.AssetKey("training_epoch")
        assert page["trained_by"] == "run-1" and page["mlflow_version"] == "models:/toto/1"
        record = instance.fetch_materializations(dg.AssetKey("promoted_checkpoint"), limit=1).records[0]
        assert record.run_id == done.run_id
    assert aliases(registry) == {"champion": "1"}
    assert registry.changes(1)[0].run == done.run_id


def test_the_job_fails_with_the_reason_where_the_version_is_damaged(registry: Registry) -> None:
    (registry.version("1").path / "config.json").write_text("{ }")
    with dg.DagsterInstance.ephemeral() as instance:
        done = roll_back(registry, instance, to="1")
        assert not done.success
        failure = next(event for event in done.all_events if event.is_step_failure)
        assert "config.json: has 3 bytes" in str(failure.step_failure_data.user_failure_data.description)
        assert pages(instance) == []
    assert registry.with_alias("champion") == "2"


def test_a_change_that_dagster_missed_is_made_up_for_once(registry: Registry) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert record_changes(instance, home_of(registry), "toto", before=2) == [1]
        assert record_changes(instance, home_of(registry), "toto") == [2]
        assert record_changes(instance, home_of(registry), "toto") == []
        assert [page["version"] for page in pages(instance)] == ["1", "2"]


def test_a_command_records_in_the_instance_of_the_home(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")  # so that what the command sets is undone
    assert record_by_command(home_of(registry), "toto") == [1, 2]
    with dg.DagsterInstance.get() as instance:
        assert [page["version"] for page in pages(instance)] == ["1", "2"]


def test_with_a_server_the_page_links_to_mlflow(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from toto_pipeline.assets.promoted import mlflow_links

    version = registry.version("2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow.example:5000/")
    links = mlflow_links(home_of(registry), "toto", version)
    assert links["mlflow_version"].value == "http://mlflow.example:5000/#/models/toto/versions/2"
    assert links["mlflow_run"].value == f"http://mlflow.example:5000/#/runs/{version.mlflow_run}"
