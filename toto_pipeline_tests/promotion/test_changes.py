"""Who was champion when: the records beside the alias, also where a process was killed or MLflow was used by hand."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import mlflow
import pytest

from toto_pipeline.home import Home
from toto_pipeline.promotion.changes import who
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.promotion.rollback import plan, roll_back
from toto_pipeline_tests.fixtures.mlflow_faults import ends_when_killed_at, in_child
from toto_pipeline_tests.promotion.registering import aliases, register


@pytest.fixture
def registry(home: Home, tmp_path: Path) -> Registry:
    """Three versions, and a clock that ticks."""
    ticks = count(1_780_000_000)
    registry = Registry(home, "toto", clock=lambda: float(next(ticks)))
    for run in ("run-1", "run-2", "run-3"):
        register(registry, tmp_path, run)
    return registry


def chain(registry: Registry) -> list[tuple[int, str, str, str | None]]:
    return [(change.number, change.kind, change.version, change.replaced) for change in registry.changes()]


def test_every_change_is_told_newest_first(registry: Registry) -> None:
    registry.promote("1", expected_champion=None, reason="the first", run="dagster-1")
    registry.promote("2", expected_champion="1")
    registry.promote("3", expected_champion="2", kind="forced", reason="a person said so")
    newest, _, first = registry.changes()
    assert chain(registry) == [(3, "forced", "3", "2"), (2, "promotion", "2", "1"), (1, "promotion", "1", None)]
    assert (newest.reason, newest.by) == ("a person said so", who())
    assert (first.reason, first.run) == ("the first", "dagster-1")
    assert first.at < newest.at
    assert registry.changes(1) == [newest]
    assert registry.version("3").tags["decision"] == "forced"
    assert registry.version("1").tags["decision"] == "promoted"


def test_promoting_the_champion_again_adds_nothing(registry: Registry) -> None:
    first = registry.promote("1", expected_champion=None, reason="the first")
    assert registry.promote("1", expected_champion=None, reason="again") == first
    assert len(registry.changes()) == 1


def test_the_challenger_is_the_newest_version_that_was_never_champion(registry: Registry, tmp_path: Path) -> None:
    assert aliases(registry) == {"challenger": "3"}
    registry.promote("3", expected_champion=None)
    assert aliases(registry) == {"champion": "3"}
    register(registry, tmp_path, "run-4")
    register(registry, tmp_path, "run-2")  # tried again: it is older than what is known
    register(registry, tmp_path, "run-3")
    assert aliases(registry) == {"champion": "3", "challenger": "4"}


def test_an_alias_that_was_moved_in_mlflow_is_recorded_as_such(registry: Registry) -> None:
    registry.promote("1", expected_champion=None)
    client = mlflow.MlflowClient(registry.store.uri)
    client.set_registered_model_alias("toto", "champion", "2")
    assert chain(registry) == [(2, "outside", "2", "1"), (1, "promotion", "1", None)]  # seen, not yet written
    registry.promote("3", expected_champion="2")
    assert chain(registry)[:2] == [(3, "promotion", "3", "2"), (2, "outside", "2", "1")]
    client.delete_registered_model_alias("toto", "champion")
    assert registry.changes() == []
    registry.promote("1", expected_champion=None)
    assert chain(registry) == [(4, "promotion", "1", None)]


def test_a_champion_from_before_the_records_can_be_replaced_and_gone_back_to(home: Home, registry: Registry) -> None:
    client = mlflow.MlflowClient(registry.store.uri)
    client.set_registered_model_alias("toto", "champion", "1")
    registry.promote("2", expected_champion="1")
    assert chain(registry) == [(2, "promotion", "2", "1"), (1, "outside", "1", None)]
    assert plan(home, "toto").target == "1"


def test_the_history_ends_at_a_version_that_was_deleted(registry: Registry) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        registry.promote(version, expected_champion=before)
    mlflow.MlflowClient(registry.store.uri).delete_model_version("toto", "2")
    assert chain(registry) == [(3, "promotion", "3", "2")]
    assert registry.to_go_back_to() is None


def _base(home: Home, folder: Path) -> None:
    registry = Registry(home, "toto")
    register(registry, folder, "run-1")
    register(registry, folder, "run-2")
    registry.promote("1", expected_champion=None)
    registry.promote("2", expected_champion="1")


@pytest.mark.slow
def test_a_promotion_killed_anywhere_and_tried_again_ends_right(home: Home, tmp_path: Path) -> None:
    """The process is killed with SIGKILL before each of its calls of MLflow and of the disk."""
    import shutil

    in_child(lambda: _base(home, tmp_path))

    def release(where: Home) -> None:
        registry = Registry(where, "toto")
        version = register(registry, tmp_path, "run-3")
        registry.promote(version.version, expected_champion="2", reason="better")

    for number in count(1):
        copy = Home(tmp_path / f"killed at {number}")
        shutil.copytree(home.root, copy.root)
        killed = ends_when_killed_at(number, lambda copy=copy: release(copy))  # type: ignore[misc]
        registry = Registry(copy, "toto")
        champion = registry.champion()
        assert champion is not None and champion.version in ("2", "3")
        in_between = chain(registry)
        assert in_between[0][2] == champion.version, number
        release(copy)
        assert chain(registry) == [(3, "promotion", "3", "2"), (2, "promotion", "2", "1"), (1, "promotion", "1", None)]
        assert aliases(registry) == {"champion": "3", "previous": "2"}, number
        assert [version.run for version in registry.versions()] == ["run-3", "run-2", "run-1"]
        assert registry.version("3").tags["decision"] == "promoted"
        client = registry.store.client()
        assert len(client.search_runs([each.experiment_id for each in client.search_experiments()])) == 3
        if not killed:
            assert number > 20
            return


@pytest.mark.slow
def test_a_rollback_killed_anywhere_and_followed_by_any_call_ends_right(home: Home, tmp_path: Path) -> None:
    import shutil

    in_child(lambda: _base(home, tmp_path))
    for number in count(1):
        copy = Home(tmp_path / f"killed at {number}")
        shutil.copytree(home.root, copy.root)

        def go_back(where: Home = copy) -> None:
            roll_back(where, "toto", plan(where, "toto"), reason="too low")

        killed = ends_when_killed_at(number, go_back)
        registry = Registry(copy, "toto")
        registry.settle()
        if registry.with_alias("champion") == "2":
            assert killed
            assert "rolled_back" not in registry.version("2").tags
            go_back()
        assert chain(registry)[0] == (3, "rollback", "1", "2")
        assert aliases(registry) == {"champion": "1"}
        assert "too low" in registry.version("2").tags["rolled_back"]
        if not killed:
            assert number > 8
            return
