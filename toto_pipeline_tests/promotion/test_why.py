"""Why the model changed, or did not."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from toto_pipeline.errors import PipelineError, RegistryError
from toto_pipeline.home import Home
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.promotion.rollback import plan, roll_back
from toto_pipeline.promotion.why import Why, as_markdown, as_plain, explain, gather
from toto_pipeline.runs import without_nan
from toto_pipeline_tests.conftest import make_training_data, write_series
from toto_pipeline_tests.fixtures.recorded_run import CREATED, Clock, Recording, record
from toto_pipeline_tests.promotion.registering import register


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home, "toto", clock=lambda: CREATED + 100)


def night(home: Home, run: str, *, hours: int = 0, promoted: bool = True, settings: tuple[str, ...] = ()) -> Path:
    """A run that began `hours` after the first night's."""
    clock = Clock(wall=CREATED + 3600 * hours)
    recording = Recording(run=run, epochs=2, clock=clock, settings=("training.learning_rate=0.08", *settings))
    folder = record(home.runs, recording, promoted=promoted)
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({**config, "created": CREATED + 3600 * hours}))
    return folder


def why(home: Home, subject: str | None = None) -> Why:
    return explain(gather(home, "toto", subject))


def test_nothing_to_explain_is_told(home: Home) -> None:
    with pytest.raises(PipelineError, match=r"nothing to explain.*toto-pipeline retrain"):
        gather(home, "toto")


def test_a_promotion_is_explained_by_data_training_scores_and_the_rule(
    home: Home, registry: Registry, tmp_path: Path
) -> None:
    old = make_training_data(home, write_series(tmp_path / "old", steps=600)).manifest.snapshot
    new = make_training_data(home, write_series(tmp_path / "new", steps=624)).manifest.snapshot
    night(home, "night-1")
    register(registry, tmp_path, "night-1", series_snapshot=old)
    registry.promote("1", expected_champion=None)
    night(home, "night-2", hours=-1, settings=("training.seed=7",))
    register(registry, tmp_path, "night-2", series_snapshot=new, parent_model="from scratch", code_version="1.2")
    registry.promote("2", expected_champion="1")

    answer = why(home)
    assert answer.headline == (
        "Version 2 of toto became champion on 2026-05-28 20:28 UTC in place of version 1: it passed every rule of the "
        "gate."
    )
    assert answer.data[0].startswith("3 series, 1872 rows")
    assert answer.data[1].startswith("Against that of version 1: +72 rows, +0 series")
    assert "Run night-2: 2 epochs" in answer.training[0]
    assert "Code: 1.2." in answer.training
    assert "Settings that differ from those of version 1: training.seed 0 -> 7." in answer.training
    assert answer.scores["champion"]["SQL"] == 0.6012
    assert answer.decided == "All 2 rules passed. SQL is 2.3 % lower than the champion's 0.6012."
    assert why(home, "2") == why(home, "night-2") == answer
    first = why(home, "1")
    assert "the first champion" in first.headline and first.headline.endswith("today version 2 is.")


def test_a_night_that_changed_nothing_is_explained_by_what_refused_it(
    home: Home, registry: Registry, tmp_path: Path
) -> None:
    night(home, "night-1")
    register(registry, tmp_path, "night-1")
    registry.promote("1", expected_champion=None)
    night(home, "night-2", hours=24, promoted=False)
    answer = why(home)
    assert answer.headline == "Run night-2 did not change the champion of toto: version 1 stays."
    assert answer.decided == (
        "not_worse_than_champion refused it: SQL may be up to 4.1 % higher than the champion's 0.6012."
    )
    assert [rule.passed for rule in answer.rules] == [False, True]
    assert "The settings are those of version 1." in answer.training


def test_a_night_that_failed_is_explained_by_its_failure(home: Home) -> None:
    record(home.runs, Recording(run="night-1", epochs=2, fails_after=50), evaluated=False, promoted=None)
    answer = why(home)
    assert answer.headline == "Run night-1 did not change the champion of toto: there is still none."
    assert answer.decided == "the loss was nan for 3 steps in a row"


def test_a_rollback_is_explained_by_who_did_it_and_why(home: Home, registry: Registry, tmp_path: Path) -> None:
    for number, before in ((1, None), (2, "1")):
        register(registry, tmp_path, f"run-{number}")
        registry.promote(str(number), expected_champion=before)
    roll_back(home, "toto", plan(home, "toto"), reason="too <low> | *really*")
    answer = why(home)
    assert "Version 1 of toto became champion" in answer.headline
    assert "in place of version 2: somebody went back to it." in answer.headline
    assert answer.decided.endswith(": too <low> | *really*")
    assert why(home, "2").facts.change is not None
    assert r"too \<low\> \| \*really\*" in as_markdown(answer)


def test_it_is_plain_values_for_programs(home: Home, registry: Registry, tmp_path: Path) -> None:
    night(home, "night-1")
    register(registry, tmp_path, "night-1")
    registry.promote("1", expected_champion=None, reason="better")
    plain = orjson.loads(orjson.dumps(without_nan(as_plain(why(home)))))
    assert (plain["run"], plain["version"], plain["champion"]) == ("night-1", "1", "1")
    assert plain["change"]["reason"] == "better"
    assert plain["rules"][0]["passed"] is True
    assert plain["lineage"]["model_sha256"] == "sha of night-1"


def test_a_subject_that_is_not_there_is_named(home: Home, registry: Registry, tmp_path: Path) -> None:
    night(home, "night-1")
    register(registry, tmp_path, "night-1")
    with pytest.raises(RegistryError, match="no version '7'"):
        gather(home, "toto", "7")
    with pytest.raises(PipelineError, match="'other' fits no run"):
        gather(home, "toto", "other")
