"""Checkpoints that must stay because their weights are in use elsewhere: `checkpoints/pins.json`, name to reason."""

from __future__ import annotations

import json
from pathlib import Path

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import CheckpointError

FILE_NAME = "pins.json"
FOLDER = "checkpoints"


def pin(run_folder: Path, name: str, reason: str) -> None:
    """Keep the checkpoint called `name` whatever the settings of retention say."""
    pins = {**read_pins(run_folder), name: reason}
    write_file(run_folder / FOLDER / FILE_NAME, json.dumps(pins, indent=2, sort_keys=True).encode())


def read_pins(run_folder: Path) -> dict[str, str]:
    """The reason for each pinned checkpoint.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    file = run_folder / FOLDER / FILE_NAME
    try:
        return {str(name): str(reason) for name, reason in json.loads(file.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: does not name checkpoints to keep ({error}). Expected: a JSON object of names and reasons. "
            "What to do: mend it, or remove it if nothing need be kept."
        ) from error
