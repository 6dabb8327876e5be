"""Promotion and rollback against a real MLflow server that stops answering at each request, then is there again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import URI_VARIABLE
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.promotion.rollback import plan, roll_back
from toto_pipeline_tests.fixtures.mlflow_faults import Proxy
from toto_pipeline_tests.fixtures.mlflow_store import Server
from toto_pipeline_tests.promotion.registering import aliases, register

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = Server(folder)
    try:
        server.start()
        with Proxy(server.uri) as proxy:
            yield proxy
    finally:
        server.stop()


@pytest.mark.parametrize(("after", "every"), [(False, 1), (True, 3)], ids=["request lost", "answer lost"])
def test_a_server_that_stops_at_any_request_of_a_promotion(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, every: int
) -> None:
    monkeypatch.setenv(URI_VARIABLE, proxy.uri)
    home = Home(tmp_path / "home").prepare()
    for number in count(1, every):
        proxy.answer_again()
        name = f"model {number} {after}"
        registry = Registry(home, name)
        register(registry, tmp_path, f"{name} first")
        registry.promote("1", expected_champion=None)

        def release(name: str = name) -> None:
            fresh = Registry(home, name)
            version = register(fresh, tmp_path, f"{name} second")
            fresh.promote(version.version, expected_champion="1", reason="better")

        proxy.silent_from(number, after=after)
        reached = True
        try:
            release()
            reached = proxy.requests >= number
        except RegistryError as error:
            assert "What to do: start the MLflow server" in str(error)
        proxy.answer_again()
        champion = Registry(home, name).champion()
        assert champion is not None and champion.version in ("1", "2")
        release()
        assert aliases(registry) == {"champion": "2", "previous": "1"}, number
        assert [(change.number, change.version) for change in registry.changes()] == [(2, "2"), (1, "1")]
        assert [version.run for version in registry.versions()] == [f"{name} second", f"{name} first"]
        client = registry.store.client()
        found = client.search_runs(
            [each.experiment_id for each in client.search_experiments()], f"tags.`toto.run` = '{name} second'"
        )
        assert len(found) == 1
        if not reached:
            assert number > 15
            return


def test_a_server_that_stops_at_any_request_of_a_rollback(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URI_VARIABLE, proxy.uri)
    home = Home(tmp_path / "home").prepare()
    for number in count(1, 2):
        proxy.answer_again()
        name = f"rolled {number}"
        registry = Registry(home, name)
        for version, before in (("1", None), ("2", "1")):
            register(registry, tmp_path, f"{name} {version}")
            registry.promote(version, expected_champion=before)
        planned = plan(home, name)
        proxy.silent_from(number)
        with contextlib.suppress(RegistryError):
            roll_back(home, name, planned, reason="too low")
        reached = proxy.requests >= number
        proxy.answer_again()
        roll_back(home, name, planned, reason="too low")
        assert aliases(registry) == {"champion": "1"}, number
        assert registry.changes(1)[0].kind == "rollback"
        assert "too low" in registry.version("2").tags["rolled_back"]
        if not reached:
            assert number > 8
            return
