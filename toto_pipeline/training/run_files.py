"""The files through which a run folder tells the training process what to do.

config.json       the settings of the whole retraining, the run's id and when it was created
training.json     what this training reads: its settings, the training data's folder and fingerprint; how often
                  the machine, and the weights and forecasts, are looked at
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import TrainingError
from toto_pipeline.events.system_monitor import INTERVAL_SECONDS
from toto_pipeline.settings.monitoring import OBSERVATIONS
from toto_pipeline.settings.training import TrainingSettings

CONFIG_FILE = "config.json"
TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class TrainingOrder:
    """What to train, on what, and how often the machine and the model are looked at.

    Folders are relative to the home. `observations` are as the setting `monitoring.observations` says.
    """

    settings: TrainingSettings
    training_data: str
    data_fingerprint: str
    system_seconds: float = INTERVAL_SECONDS
    observations: int = OBSERVATIONS


def record_settings(run_folder: Path, **sections: Any) -> None:
    """Add what is known of a run's settings to its config.json; the first call makes the run."""
    file = run_folder / CONFIG_FILE
    values = json.loads(file.read_bytes()) if file.exists() else {"run": run_folder.name, "created": time.time()}
    updated = {**values, **sections}
    if updated != values or not file.exists():
        write_file(file, json.dumps(updated, indent=2).encode())


def write_order(run_folder: Path, order: TrainingOrder) -> None:
    values = {
        "settings": order.settings.model_dump(mode="json"),
        "training_data": order.training_data,
        "data_fingerprint": order.data_fingerprint,
        "system_seconds": order.system_seconds,
        "observations": order.observations,
    }
    write_file(run_folder / TRAINING_FILE, json.dumps(values, indent=2).encode())


def read_order(run_folder: Path) -> TrainingOrder:
    """The order of a run.

    Raises:
        TrainingError: there is none, or it cannot be read.
    """
    file = run_folder / TRAINING_FILE
    try:
        values = json.loads(file.read_bytes())
        settings = TrainingSettings.model_validate(values["settings"])
        return TrainingOrder(
            settings,
            values["training_data"],
            values["data_fingerprint"],
            values.get("system_seconds", INTERVAL_SECONDS),  # runs that began before it was asked for lack it
            values.get("observations", OBSERVATIONS),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file}: does not tell what to train ({type(error).__name__}: {error})") from error
