"""What is told of a run when its training starts: settings, tags, a note for people, the data it is trained on."""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.monitoring.sink import FollowedRun

WEBSERVER_VARIABLE = "DAGSTER_WEBSERVER_URL"
"""Where Dagster's pages are, so that MLflow can link to them."""
_DIGEST_CHARACTERS = 36
_ABOUT = ("run", "created")
"""What config.json holds beside settings."""


def run_settings(run_folder: Path, event: Event) -> dict[str, Any]:
    """The settings of a run: those of its config.json, and those that its trainer says it was started with."""
    config: dict[str, Any] = event.get("config") or {}
    file = run_folder / "config.json"
    if not file.is_file():
        return config
    known = {name: value for name, value in orjson.loads(file.read_bytes()).items() if name not in _ABOUT}
    return {**known, **(config if "training" in config else {"training": config})}


def describe_run(run_folder: Path, event: Event) -> dict[str, str]:
    """Tags of a run, out of its `run_started`; what is not known is left out."""
    run, is_pipeline = run_folder.name, is_pipeline_run(run_folder)
    url = dagster_url(run) if is_pipeline else None
    tags = {
        "dagster_run_id": run if is_pipeline else None,
        "dagster/run_url": url,
        "toto.attempt": event.get("attempt"),
        "toto.code_version": event.get("code_version"),
        "toto.config_hash": event.get("config_hash"),
        "toto.data_fingerprint": event.get("data_fingerprint"),
        "toto.device": event.get("device"),
        "toto.host": event.get("host"),
        "toto.parameters": event.get("parameters"),
        "toto.processes": event.get("processes"),
        "mlflow.source.name": "toto-pipeline" if is_pipeline else run,
        "mlflow.source.type": "JOB" if is_pipeline else "LOCAL",
        "mlflow.source.git.commit": commit_of(event.get("code_version")),
        "mlflow.user": user_name(),
    }
    if event.get("attempt", 1) == 1:  # later ones leave the note to whoever has edited it
        tags["mlflow.note.content"] = note(run, event, url)
    return {name: str(value) for name, value in tags.items() if value not in (None, "")}


def is_pipeline_run(run_folder: Path) -> bool:
    """Whether the run is one of the pipeline, which Dagster knows by the same id."""
    return (run_folder / "config.json").is_file() and _is_uuid(run_folder.name)


def dagster_url(run: str) -> str | None:
    server = os.environ.get(WEBSERVER_VARIABLE)
    return f"{server.rstrip('/')}/runs/{run}" if server else None


def note(run: str, event: Event, url: str | None) -> str:
    """What MLflow shows above everything else of the run, in Markdown."""
    plan = f"{event.get('epochs')} epochs of {event.get('steps_per_epoch')} steps" if event.get("epochs") else None
    known = {
        "Run": f"[{run}]({url})" if url else f"`{run}`",
        "Plan": plan,
        "Parameters": f"{event['parameters']:,}" if event.get("parameters") else None,
        "Device": event.get("device"),
        "Host": event.get("host"),
        "Data": f"`{event['data_fingerprint']}`" if event.get("data_fingerprint") else None,
        "Code": f"`{event['code_version']}`" if event.get("code_version") else None,
    }
    lines = [f"- {name}: {value}" for name, value in known.items() if value]
    return "\n".join(
        [
            "**A training recorded by toto_pipeline**",
            "",
            *lines,
            "",
            "Metrics: `train/` of steps, `validation/` and `epoch/` of epochs, `evaluation/` against the baseline and "
            "the champion, `system/` of the machine.",
        ]
    )


def dataset_input(run: FollowedRun, event: Event, settings: Mapping[str, Any]) -> Any | None:
    """The data of a training as MLflow's `DatasetInput`, known by their fingerprint; None where there is none."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    fingerprint = event.get("data_fingerprint")
    if not fingerprint:
        return None
    source = str((settings.get("data") or {}).get("source") or "training data")
    dataset = Dataset(
        name=Path(source).stem or "training data",
        digest=fingerprint[:_DIGEST_CHARACTERS],
        source_type="local",
        source=orjson.dumps({"uri": source, "training_data": f"training_data/{fingerprint}"}).decode(),
        profile=orjson.dumps(_profile(run, fingerprint)).decode(),
    )
    return DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", "training")])


def _profile(run: FollowedRun, fingerprint: str) -> dict[str, Any]:
    """Facts of the training data, as far as their manifest is here."""
    if run.home is None:
        return {"fingerprint": fingerprint}
    file = Home(run.home).training_data / fingerprint / "manifest.json"
    if not file.is_file():
        return {"fingerprint": fingerprint}
    manifest: dict[str, Any] = orjson.loads(file.read_bytes())
    return {name: value for name, value in manifest.items() if not isinstance(value, list)}


def commit_of(code_version: object) -> str | None:
    """The commit in a version such as 0.1.0+g1a2b3c4; None where it has none."""
    _, _, local = str(code_version or "").partition("+g")
    return local.split(".")[0] or None


def user_name() -> str:
    """Who runs this process; in a container that knows no such user, the number."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _is_uuid(name: str) -> bool:
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True
