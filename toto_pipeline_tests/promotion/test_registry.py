"""The registry on MLflow's own SQLite store, and on a real server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toto_pipeline.errors import ConfigError, RegistryError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import URI_VARIABLE
from toto_pipeline.promotion.registry import ModelVersion, Registry
from toto_pipeline_tests.fixtures.mlflow_store import Server, free_port

METRICS = {"MASE": 0.8, "SQL": 0.7, "champion_MASE": float("nan")}


def model(folder: Path, content: str = "weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"d_model": 8}')
    (folder / "model.safetensors").write_text(content)
    return folder


def register(registry: Registry, folder: Path, run: str, **tags: str) -> ModelVersion:
    params = {"training": {"epochs": 3, "model": {"d_model": 8}}}
    return registry.register(
        model(folder / run, f"weights of {run}"), run=run, metrics=METRICS, tags=tags, params=params
    )


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home, "toto")


def test_a_home_without_a_registry_has_no_champion_and_gets_no_files(tmp_path: Path) -> None:
    registry = Registry(Home(tmp_path), "toto")
    assert registry.champion() is None
    assert registry.versions() == []
    assert list(tmp_path.iterdir()) == []


def test_a_version_carries_what_it_was_given(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, "run-1", data_fingerprint="abc", code_version="1.2")
    assert (version.version, version.run, version.aliases) == ("1", "run-1", ("challenger",))
    assert version.tags == {"data_fingerprint": "abc", "code_version": "1.2"}
    assert version.metrics["MASE"] == 0.8
    assert version.metrics["champion_MASE"] != version.metrics["champion_MASE"]
    assert abs(version.created - time.time()) < 300
    assert sorted(file.name for file in version.path.iterdir()) == ["config.json", "model.safetensors"]
    assert (version.path / "model.safetensors").read_text() == "weights of run-1"
    assert registry.champion() is None


def test_the_mlflow_run_is_finished_and_holds_params_metrics_tags_and_files(registry: Registry, tmp_path: Path) -> None:
    import mlflow

    register(registry, tmp_path, "run-1", code_version="1.2")
    client = mlflow.MlflowClient(registry.store.uri)
    found = client.get_model_version("toto", "1")
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run-1"
    assert run.data.params == {"training.epochs": "3", "training.model.d_model": "8"}
    assert run.data.metrics == {"evaluation/MASE": 0.8, "evaluation/SQL": 0.7}
    assert run.data.tags["code_version"] == "1.2"
    names = {Path(file.path).name for file in client.list_artifacts(found.run_id, "model")}
    assert names == {"config.json", "model.safetensors"}
    assert Path(client.download_artifacts(found.run_id, "model/model.safetensors")).read_text() == "weights of run-1"


def test_a_run_is_registered_once(registry: Registry, tmp_path: Path) -> None:
    first = register(registry, tmp_path, "run-1", decision="refused")
    again = register(registry, tmp_path, "run-1", decision="promoted", reasons="a human said so")
    assert again.version == first.version
    assert again.tags == {"decision": "promoted", "reasons": "a human said so"}
    assert len(registry.versions()) == 1
    model(tmp_path / "run-1", "other weights")
    with pytest.raises(RegistryError, match=r"run-1 is already registered as version 1.*model\.safetensors"):
        registry.register(tmp_path / "run-1", run="run-1", metrics={}, tags={})


def test_what_a_killed_registration_began_is_completed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mlflow.MlflowClient, "create_model_version", killed)
        register(registry, tmp_path, "run-1")
    register(registry, tmp_path, "run-1")
    client = mlflow.MlflowClient(registry.store.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len(client.search_runs(experiments)) == 1
    assert [version.version for version in registry.versions()] == ["1"]


def test_promotion_moves_champion_and_previous(registry: Registry, tmp_path: Path) -> None:
    for run in ("run-1", "run-2", "run-3"):
        register(registry, tmp_path, run)
    registry.promote("1", expected_champion=None)
    registry.promote("2", expected_champion="1")
    registry.promote("2", expected_champion="1")
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.run, champion.aliases) == ("2", "run-2", ("champion",))
    aliases = {version.version: version.aliases for version in registry.versions()}
    assert aliases == {"3": ("challenger",), "2": ("champion",), "1": ("previous",)}


def test_promotion_refuses_when_the_champion_changed_since(registry: Registry, tmp_path: Path) -> None:
    for run in ("run-1", "run-2"):
        register(registry, tmp_path, run)
    registry.promote("1", expected_champion=None)
    with pytest.raises(RegistryError, match=r"compared with no champion.*now it is version 1.*evaluate again"):
        registry.promote("2", expected_champion=None)
    champion = registry.champion()
    assert champion is not None
    assert champion.version == "1"


def test_two_promotions_at_once_have_one_winner(home: Home, registry: Registry, tmp_path: Path) -> None:
    versions = [register(registry, tmp_path, f"run-{number}").version for number in range(4)]

    def attempt(version: str) -> bool:
        try:
            Registry(home, "toto").promote(version, expected_champion=None)
        except RegistryError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(attempt, versions))
    champion = registry.champion()
    assert champion is not None
    assert [version for version, win in zip(versions, won, strict=True) if win] == [champion.version]


def test_a_tampered_champion_is_refused_by_file(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, "run-1")
    registry.promote("1", expected_champion=None)
    weights = version.path / "model.safetensors"
    weights.write_text(weights.read_text().upper())
    with pytest.raises(RegistryError, match=r"model\.safetensors: its content was changed.*What to do: restore"):
        registry.champion()
    weights.unlink()
    with pytest.raises(RegistryError, match=r"model\.safetensors: is missing"):
        registry.champion()
    assert [version.version for version in registry.versions()] == ["1"]


def test_a_damaged_version_is_not_promoted(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, "run-1")
    (version.path / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"config\.json"):
        registry.promote("1", expected_champion=None)
    assert registry.champion() is None


def test_a_home_can_be_moved(home: Home, registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, "run-1")
    registry.promote("1", expected_champion=None)
    moved = Home(tmp_path / "elsewhere")
    shutil.move(home.root, moved.root)
    champion = Registry(moved, "toto").champion()
    assert champion is not None
    assert champion.path.is_relative_to(moved.root)
    assert register(Registry(moved, "toto"), tmp_path, "run-2").path.is_relative_to(moved.root)


def test_an_unknown_version_and_a_bad_name_are_named(home: Home, registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, "run-1")
    with pytest.raises(RegistryError, match="no version '7' of 'toto'"):
        registry.promote("7", expected_champion=None)
    with pytest.raises(ConfigError, match=r"promotion\.model_name"):
        Registry(home, "a/b")
    with pytest.raises(RegistryError, match="holds no model"):
        registry.register(home.cache, run="run-9", metrics={}, tags={})


def test_a_database_that_is_none_is_named(home: Home) -> None:
    (home.registry / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db cannot be used.*What to do"):
        Registry(home, "toto").champion()


def test_a_server_that_is_down_is_named_within_seconds(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv(URI_VARIABLE, uri)
    registry = Registry(home, "toto")
    registry.store.client()
    started = time.monotonic()
    with pytest.raises(RegistryError, match=rf"{uri} cannot be used.*MLflow server"):
        registry.champion()
    assert time.monotonic() - started < 30


def test_a_password_is_not_shown(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI_VARIABLE, f"http://me:secret@127.0.0.1:{free_port()}")
    with pytest.raises(RegistryError) as raised:
        Registry(home, "toto").champion()
    assert "secret" not in str(raised.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    running = Server(folder)
    try:
        running.start()
        yield running.uri
    finally:
        running.stop()


def test_a_server_keeps_models_and_gives_them_to_another_home(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URI_VARIABLE, server)
    here, there = Home(tmp_path / "here").prepare(), Home(tmp_path / "there").prepare()
    registry = Registry(here, "toto")
    assert registry.champion() is None
    assert registry.versions() == []
    version = register(registry, tmp_path, "run-1", decision="promoted")
    assert register(registry, tmp_path, "run-1", decision="promoted").version == version.version
    registry.promote(version.version, expected_champion=None)

    champion = Registry(there, "toto").champion()
    assert champion is not None
    assert champion.path.is_relative_to(there.cache)
    assert (champion.path / "model.safetensors").read_text() == "weights of run-1"
    assert champion.tags["decision"] == "promoted"
    (champion.path / "model.safetensors").write_text("damaged in the cache")
    again = Registry(there, "toto").champion()
    assert again is not None
    assert (again.path / "model.safetensors").read_text() == "weights of run-1"
    assert not list(here.registry.glob("*.db"))
