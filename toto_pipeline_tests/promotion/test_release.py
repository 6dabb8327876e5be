"""Promotion of a run's model, as far as it is about the checkpoint that the model was published from."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import torch

from toto_pipeline.checkpoints.manager import CheckpointManager, State
from toto_pipeline.checkpoints.manifest import sha256_of
from toto_pipeline.checkpoints.pins import read_pins
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import CheckpointError
from toto_pipeline.events.log import EventWriter
from toto_pipeline.home import Home
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.promotion.release import promote
from toto_pipeline.settings.training import CheckpointSettings, TrainingSettings
from toto_pipeline_tests.fixtures.recorded_run import decision, evaluation_report

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0}


def save(run_folder: Path, settings: CheckpointSettings, losses: dict[int, float]) -> None:
    with CheckpointManager(run_folder, settings) as manager:
        manager.prepare()
        for step, loss in losses.items():
            metrics = {"validation_loss": loss, "MASE": 1 / loss}
            manager.save(State(step, step // 10, metrics, {"model": {"weight": torch.full((3,), float(step))}}, {}))


def trained_run(home: Home, data: TrainingData, settings: TrainingSettings) -> Path:
    """A run that has saved its checkpoints, and whose model the gate accepted."""
    folder = home.run("run-1")
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
