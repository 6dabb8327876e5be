"""Dagster's instance inside the home: `$TOTO_HOME/dagster/dagster.yaml`.

The command line and `make dev` share it, so a run started in a terminal is in the UI's history.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.home import Home

TEMPLATE = Path(__file__).with_name("instance.yaml")


def instance_settings(folder: str) -> dict[str, Any]:
    """dagster.yaml as a mapping, with everything stored below `folder`."""
    settings: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    settings["storage"] = {"sqlite": {"base_dir": f"{folder}/storage"}}
    settings["local_artifact_storage"] = {
        "module": "dagster._core.storage.root",
        "class": "LocalArtifactStorage",
        "config": {"base_dir": folder},
    }
    settings["compute_logs"] = {
        "module": "dagster._core.storage.local_compute_log_manager",
        "class": "LocalComputeLogManager",
        "config": {"base_dir": f"{folder}/compute_logs"},
    }
    return settings


def prepare_instance(home: Home) -> Path:
    """Write dagster.yaml into the home unless a person has put one there; return the folder for DAGSTER_HOME."""
    folder = home.prepare().dagster
    file = folder / "dagster.yaml"
    generated = f"# Written by toto-pipeline; delete this line to keep your own changes.\n{_dump(str(folder))}"
    if not file.exists() or file.read_text(encoding="utf-8").startswith("# Written by toto-pipeline"):
        write_file(file, generated.encode())
    return folder


def _dump(folder: str) -> str:
    return yaml.safe_dump(instance_settings(folder), sort_keys=False)
