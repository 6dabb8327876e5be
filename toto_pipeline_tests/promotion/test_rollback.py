"""Going back to an earlier champion."""

from __future__ import annotations

from pathlib import Path

import pytest

from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.promotion.rollback import Plan, done_by, plan, roll_back
from toto_pipeline_tests.promotion.registering import aliases, register


@pytest.fixture
def registry(home: Home, tmp_path: Path) -> Registry:
    """Versions 1, 2 and 3, each of which was champion."""
    registry = Registry(home, "toto")
    for number, before in ((1, None), (2, "1"), (3, "2")):
        register(registry, tmp_path, f"run-{number}")
        registry.promote(str(number), expected_champion=before)
    return registry


def test_it_goes_back_one_champion_at_a_time_and_marks_what_it_takes_out(home: Home, registry: Registry) -> None:
    done = roll_back(home, "toto", plan(home, "toto"), reason="too low", run="dagster-9")
    assert (done.version.version, done.change.kind, done.change.replaced) == ("2", "rollback", "3")
    assert aliases(registry) == {"champion": "2", "previous": "1"}
    assert registry.version("3").tags["rolled_back"].endswith(": too low")
    assert plan(home, "toto") == Plan(champion="2", target="1")
    roll_back(home, "toto", plan(home, "toto"))
    assert aliases(registry) == {"champion": "1"}
    with pytest.raises(RegistryError, match=r"no version of 'toto' to go back to.*--to"):
        plan(home, "toto")


def test_it_goes_to_the_version_that_is_named_which_is_then_no_longer_taken_out(home: Home, registry: Registry) -> None:
    roll_back(home, "toto", plan(home, "toto", "1"))
    assert aliases(registry) == {"champion": "1", "previous": "2"}
    roll_back(home, "toto", plan(home, "toto", "3"))
    assert "rolled_back" not in registry.version("3").tags
    assert "rolled_back" in registry.version("1").tags
    assert [change.version for change in registry.changes()] == ["3", "1", "3", "2", "1"]


def test_a_damaged_version_is_refused_and_the_champion_stays(home: Home, registry: Registry) -> None:
    (registry.version("2").path / "model.safetensors").write_text("weights of run-X")
    with pytest.raises(RegistryError, match=r"model\.safetensors: its content was changed.*version 2"):
        roll_back(home, "toto", plan(home, "toto"))
    assert aliases(registry) == {"champion": "3", "previous": "2"}
    assert "rolled_back" not in registry.version("3").tags
    assert len(registry.changes()) == 3


def test_a_damaged_champion_can_be_left(home: Home, registry: Registry) -> None:
    (registry.version("3").path / "model.safetensors").unlink()
    with pytest.raises(RegistryError, match="toto-pipeline rollback"):
        registry.champion()
    roll_back(home, "toto", plan(home, "toto"))
    champion = registry.champion()
    assert champion is not None and champion.version == "2"


def test_it_refuses_when_the_champion_changed_since_it_was_planned(
    home: Home, registry: Registry, tmp_path: Path
) -> None:
    planned = plan(home, "toto")
    register(registry, tmp_path, "run-4")
    registry.promote("4", expected_champion="3")
    with pytest.raises(RegistryError, match="now it is version 4"):
        roll_back(home, "toto", planned)


@pytest.mark.parametrize(
    ("to", "message"), [("3", "is the champion already"), ("7", "no version '7'"), ("x", "no version 'x'")]
)
def test_a_version_that_cannot_be_meant_is_named(home: Home, registry: Registry, to: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        plan(home, "toto", to)


def test_without_a_champion_there_is_nothing_to_go_back_from(home: Home) -> None:
    with pytest.raises(RegistryError, match="no champion of 'toto'"):
        plan(home, "toto")


def test_a_run_that_is_tried_again_does_not_go_back_twice(home: Home, registry: Registry) -> None:
    assert done_by(home, "toto", "dagster-9") is None
    done = roll_back(home, "toto", plan(home, "toto"), run="dagster-9")
    assert done_by(home, "toto", "dagster-9") == done
    assert done_by(home, "toto", "dagster-8") is None
