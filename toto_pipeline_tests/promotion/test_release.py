"""Promotion of a run's model: its checkpoint, its lineage, what is never promoted, and what a person may decide."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import save_file

from toto_pipeline.checkpoints.manager import CheckpointManager, State
from toto_pipeline.checkpoints.manifest import sha256_of
from toto_pipeline.checkpoints.pins import read_pins
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import CheckpointError, ConfigError, EvaluationError, RegistryError
from toto_pipeline.events.log import EventWriter
from toto_pipeline.home import Home
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.promotion.release import dagster_tags, force, keep_refused, promote
from toto_pipeline.promotion.rollback import plan, roll_back
from toto_pipeline.promotion.verdict import read_decision
from toto_pipeline.settings.training import CheckpointSettings, TrainingSettings
from toto_pipeline_tests.fixtures.recorded_run import decision, evaluation_report

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0}


def save(run_folder: Path, settings: CheckpointSettings, losses: dict[int, float]) -> None:
    with CheckpointManager(run_folder, settings) as manager:
        manager.prepare()
        for step, loss in losses.items():
            metrics = {"validation_loss": loss, "MASE": 1 / loss}
            manager.save(State(step, step // 10, metrics, {"model": {"weight": torch.full((3,), float(step))}}, {}))


def trained_run(home: Home, data: TrainingData, settings: TrainingSettings, run: str = "run-1") -> Path:
    """A run that has saved its checkpoints, and whose model the gate accepted."""
    folder = home.run(run)
    save(folder, settings.checkpoints, LOSSES)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(b"weights")
    (folder / "config.json").write_bytes(orjson.dumps({"training": settings.model_dump(mode="json")}))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "report.json").write_bytes(orjson.dumps(evaluation_report()))
    accepted = {**decision(), "version": None, "champion": None, "model_sha256": sha256_of(weights)}
    (folder / "decision.json").write_bytes(orjson.dumps(accepted))
    with EventWriter(folder) as log:
        log.append(
            "run_started",
            config=settings.model_dump(mode="json"),
            config_hash=settings.fingerprint(),
            data_fingerprint=data.fingerprint,
            code_version="0.1.0",
        )
    return folder


@pytest.mark.parametrize(
    ("values", "published"),
    [
        ({}, "step_20"),
        ({"restore_best": False}, "step_30"),
        ({"checkpoints": {"metric": "MASE"}}, "step_10"),
        ({"checkpoints": {"metric": "MASE", "mode": "max"}}, "step_20"),
        ({"checkpoints": {"metric": "WQL"}}, "step_30"),
    ],
)
def test_the_champions_checkpoint_outlives_those_that_a_resumed_training_saves(
    home: Home, training_data: TrainingData, values: dict[str, object], published: str
) -> None:
    settings = TrainingSettings.model_validate(values)
    run_folder = trained_run(home, training_data, settings)
    promote(home, run_folder, "toto", {})
    assert read_pins(run_folder) == {published: "weights of toto version 1"}
    greedy = settings.checkpoints.model_copy(update={"keep_last": 1, "metric": "validation_loss", "mode": "min"})
    save(run_folder, greedy, {40: 0.5, 50: 0.4})
    left = sorted(folder.name for folder in (run_folder / "checkpoints").glob("step_*"))
    assert left == [published, "step_50"]


def test_promoting_again_changes_no_pin(home: Home, training_data: TrainingData) -> None:
    run_folder = trained_run(home, training_data, TrainingSettings())
    first = promote(home, run_folder, "toto", {})
    pins = read_pins(run_folder)
    assert promote(home, run_folder, "toto", {}).version.version == first.version.version
    assert read_pins(run_folder) == pins


def test_a_damaged_checkpoint_is_not_taken_for_the_published_one(home: Home, training_data: TrainingData) -> None:
    run_folder = trained_run(home, training_data, TrainingSettings())
    (run_folder / "checkpoints" / "step_20" / "manifest.json").write_text("{")
    promote(home, run_folder, "toto", {})
    assert list(read_pins(run_folder)) == ["step_30"]


def test_a_model_without_checkpoints_is_promoted_and_nothing_is_pinned(home: Home, training_data: TrainingData) -> None:
    run_folder = trained_run(home, training_data, TrainingSettings())
    (run_folder / "checkpoints").rename(run_folder / "elsewhere")
    assert promote(home, run_folder, "toto", {}).version.version == "1"
    assert not (run_folder / "checkpoints").exists()


def test_nothing_is_promoted_whose_checkpoint_cannot_be_pinned(home: Home, training_data: TrainingData) -> None:
    run_folder = trained_run(home, training_data, TrainingSettings())
    (run_folder / "checkpoints" / "pins.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"pins\.json.*What to do: mend it"):
        promote(home, run_folder, "toto", {})
    assert Registry(home, "toto").champion() is None


def test_a_version_tells_where_it_came_from(
    home: Home, training_data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = trained_run(home, training_data, TrainingSettings())
    monkeypatch.setenv("TOTO_DAGSTER_URL", "https://dagster.example/")
    tags = promote(home, run_folder, "toto", dagster_tags("run-1")).version.tags
    manifest = sha256_of(run_folder / "checkpoints" / "step_20" / "manifest.json")
    assert (tags["checkpoint"], tags["checkpoint_sha256"]) == ("step_20", manifest)
    assert (tags["dagster_run"], tags["dagster_url"]) == ("run-1", "https://dagster.example/runs/run-1")
    assert tags["series_snapshot"] == training_data.manifest.snapshot
    assert (tags["training_data"], tags["parent_model"]) == (training_data.fingerprint, "from scratch")
    assert tags["config_hash"] == TrainingSettings().fingerprint()
    assert tags["decision"] == "promoted"
    monkeypatch.delenv("TOTO_DAGSTER_URL")
    assert dagster_tags("run-1") == {"dagster_run": "run-1"}


def test_the_card_is_a_file_of_the_version_and_its_description(home: Home, training_data: TrainingData) -> None:
    release = promote(home, trained_run(home, training_data, TrainingSettings()), "toto", {})
    card = (release.version.path / "MODEL_CARD.md").read_text()
    assert "0.5871" in card and training_data.manifest.snapshot in card
    client = Registry(home, "toto").store.client()
    assert client.get_model_version("toto", "1").description == card
    (release.version.path / "MODEL_CARD.md").write_text("another story")
    with pytest.raises(RegistryError, match=r"MODEL_CARD\.md"):
        Registry(home, "toto").champion()


@pytest.mark.parametrize("cut", [False, True], ids=["tampered", "truncated"])
def test_a_model_that_is_not_the_evaluated_one_is_neither_promoted_nor_forced(
    home: Home, training_data: TrainingData, cut: bool
) -> None:
    run_folder = trained_run(home, training_data, TrainingSettings())
    weights = run_folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] if cut else weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(EvaluationError, match="not the model that was evaluated"):
        promote(home, run_folder, "toto", {})
    with pytest.raises(EvaluationError):
        force(home, run_folder, "toto", reason="I want it", expected_champion=None)
    assert Registry(home, "toto").versions() == []


def refused(run_folder: Path) -> Path:
    file = run_folder / "decision.json"
    file.write_bytes(orjson.dumps({**orjson.loads(file.read_bytes()), **decision(promoted=False), "version": None}))
    return run_folder


def test_a_person_may_promote_what_the_gate_refused_and_it_is_kept_who_and_why(
    home: Home, training_data: TrainingData
) -> None:
    run_folder = refused(real_run(home, training_data))
    kept = keep_refused(home, run_folder, "toto", {})
    assert (kept.tags["decision"], kept.aliases) == ("refused", ("challenger",))
    with pytest.raises(EvaluationError, match=r"the gate refused this model.*--force --reason"):
        promote(home, run_folder, "toto", {})
    with pytest.raises(ConfigError, match="--reason: is empty"):
        force(home, run_folder, "toto", reason=" ", expected_champion=None)
    for _ in range(2):
        release = force(home, run_folder, "toto", reason="the sensor was replaced", expected_champion=None)
    assert (release.change.kind, release.change.reason) == ("forced", "the sensor was replaced")
    assert (release.version.tags["decision"], release.version.aliases) == ("forced", ("champion",))
    assert read_decision(run_folder)["forced"]["reason"] == "the sensor was replaced"
    assert read_decision(run_folder)["version"] == "1"


def test_nobody_forces_scores_or_weights_that_are_no_numbers(home: Home, training_data: TrainingData) -> None:
    run_folder = refused(real_run(home, training_data, bad_weight=True))
    with pytest.raises(EvaluationError, match="bad holds NaN or infinity"):
        force(home, run_folder, "toto", reason="I want it", expected_champion=None)
    file = run_folder / "decision.json"
    rules = [{"name": "finite_scores", "passed": False, "text": "Scores of candidate are not finite."}]
    file.write_bytes(orjson.dumps({**orjson.loads(file.read_bytes()), "rules": rules}))
    with pytest.raises(EvaluationError, match="cannot be forced: Scores of candidate are not finite"):
        force(home, run_folder, "toto", reason="I want it", expected_champion=None)
    assert Registry(home, "toto").versions() == []


def test_the_next_night_does_not_promote_what_was_rolled_back(home: Home, training_data: TrainingData) -> None:
    first = real_run(home, training_data, run="run-1", weight=1.0)
    promote(home, first, "toto", {})
    second = real_run(home, training_data, run="run-2", weight=2.0, champion="1")
    promote(home, second, "toto", {})
    roll_back(home, "toto", plan(home, "toto"), reason="too low")
    night = real_run(home, training_data, run="run-3", weight=2.0, champion="1")  # the same data, the same weights
    for run_folder in (second, night):
        with pytest.raises(RegistryError, match=r"version 2 of 'toto', which was rolled back .*too low.*--force"):
            promote(home, run_folder, "toto", {})
    registry = Registry(home, "toto")
    assert registry.with_alias("champion") == "1"
    promote(home, real_run(home, training_data, run="run-4", weight=3.0, champion="1"), "toto", {})
    assert registry.with_alias("champion") == "4"
    roll_back(home, "toto", plan(home, "toto", "1"))
    release = promote(home, night, "toto", {}, allow_rolled_back=True)
    assert release.version.run == "run-3"
    assert registry.with_alias("champion") == release.version.version


def real_run(
    home: Home,
    data: TrainingData,
    *,
    run: str = "run-1",
    weight: float = 1.0,
    bad_weight: bool = False,
    champion: str | None = None,
) -> Path:
    """A run whose model is a real safetensors file of one or two numbers."""
    folder = trained_run(home, data, TrainingSettings(), run)
    file = folder / "model" / "model.safetensors"
    bad = {"bad": torch.tensor([float("nan")])} if bad_weight else {}
    save_file({"weight": torch.tensor([weight]), **bad}, file)
    accepted = {**decision(), "version": None, "champion": champion, "model_sha256": sha256_of(file)}
    (folder / "decision.json").write_bytes(orjson.dumps(accepted))
    return folder
