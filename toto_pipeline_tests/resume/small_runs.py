"""Runs small enough to be done dozens of times, and what two of them are compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.events.log import latest_attempt, read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.settings.training import ModelSettings, TrainingSettings
from toto_pipeline.training.run_files import TrainingOrder, write_order

TINY = ModelSettings(patch_size=8, d_model=16, num_heads=2, num_layers=4, layer_group_size=4)


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {"model": TINY, "epochs": 3, "steps_per_epoch": 6, "batch_size": 4, "max_restarts": 1, **changes}
    )


def order(data: TrainingData, **changes: Any) -> TrainingOrder:
    return TrainingOrder(settings(**changes), f"training_data/{data.folder.name}", data.fingerprint)


def new_run(home: Home, name: str, data: TrainingData, **changes: Any) -> Path:
    """A run folder with its order, ready for a trainer."""
    run_folder = home.run(name)
    run_folder.mkdir(parents=True)
    write_order(run_folder, order(data, **changes))
    return run_folder


def weights(run_folder: Path) -> dict[str, object]:
    """The published weights, number by number."""
    return {name: tensor.tolist() for name, tensor in load_file(run_folder / "model" / "model.safetensors").items()}


def history(run_folder: Path) -> list[tuple[object, ...]]:
    """What was learned, without when: every step's loss and gradient, every epoch's losses and scores."""
    names = (
        "type",
        "step",
        "epoch",
        "loss",
        "gradient_norm",
        "learning_rate",
        "train_loss",
        "validation_loss",
        "metrics",
        "statistics",
    )
    return [tuple(event.get(name) for name in names) for event in latest_attempt(read_events(run_folder))]


def of_type(run_folder: Path, kind: str) -> list[Event]:
    return [event for event in read_events(run_folder) if event["type"] == kind]


def outcomes(run_folder: Path) -> list[str]:
    return [str(event["outcome"]) for event in of_type(run_folder, "run_ended")]
