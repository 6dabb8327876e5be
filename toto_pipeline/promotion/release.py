"""Registering a run's model with where it came from, and making it the champion if the gate said so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from toto_pipeline.checkpoints import retention
from toto_pipeline.checkpoints.manifest import Manifest, read_manifest, sha256_of
from toto_pipeline.checkpoints.pins import FOLDER, pin
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import CheckpointError, EvaluationError
from toto_pipeline.evaluation.backtest import CANDIDATE
from toto_pipeline.evaluation.report import load_report
from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event, number
from toto_pipeline.home import Home
from toto_pipeline.promotion.registry import ModelVersion, Registry
from toto_pipeline.promotion.verdict import WEIGHTS_FILE, read_decision, write_version
from toto_pipeline.settings.training import CheckpointSettings

_METRICS = ("MASE", "SQL", "WQL", "WAPE", "coverage_80")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A registered version. replaced: the champion before it, None for the first."""

    version: ModelVersion
    replaced: str | None
    snapshot: str
    training_data: str
    code_version: str
    reasons: tuple[str, ...]


def promote(home: Home, run_folder: Path, model_name: str, tags: Mapping[str, str]) -> Release:
    """Register the model that the gate accepted and make it the champion. Called again, it changes nothing.

    The checkpoint that the model was published from is pinned first, so that no retention deletes the champion's.

    Raises:
        CheckpointError: the pins of the run cannot be read.
        EvaluationError: the gate refused the model, or the model is not the one that was evaluated.
        RegistryError: the champion changed since the evaluation, or the registry cannot be reached.
    """
    decision = read_decision(run_folder)
    if not decision["promote"]:
        raise EvaluationError(f"{run_folder}: the gate refused this model; it stays in {run_folder / 'model'}.")
    registry = Registry(home, model_name)
    version = _register(registry, home, run_folder, decision, {**tags, "decision": "promoted"})
    checkpoint = published_checkpoint(run_folder)
    if checkpoint is not None:
        pin(run_folder, checkpoint, f"weights of {model_name} version {version.version}")
    registry.promote(version.version, expected_champion=decision["champion"])
    write_version(run_folder, version.version)
    return Release(
        version=version,
        replaced=decision["champion"],
        snapshot=version.tags["series_snapshot"],
        training_data=version.tags["training_data"],
        code_version=version.tags["code_version"],
        reasons=_reasons(decision),
    )


def keep_refused(home: Home, run_folder: Path, model_name: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register a model that the gate refused, so that it can be found and looked at; no alias points to it."""
    decision = read_decision(run_folder)
    version = _register(Registry(home, model_name), home, run_folder, decision, {**tags, "decision": "refused"})
    write_version(run_folder, version.version)
    return version


def published_checkpoint(run_folder: Path) -> str | None:
    """Name of the checkpoint whose weights are in `model/`, chosen as the training chose it; None where there is none.

    With `restore_best` that is the best of those saved, which is not that of the best epoch where the settings did not
    ask for a save after it; without, the newest.
    """
    config = _started(run_folder)["config"]
    settings = CheckpointSettings.model_validate(config.get("checkpoints", {}))
    saved = _saved(run_folder / FOLDER)
    kept = [retention.Kept(name, manifest.step, manifest.metrics) for name, manifest in saved.items()]
    best = retention.best(kept, metric=settings.metric, mode=settings.mode)
    if config.get("restore_best", True) and best:
        return best[0].name
    return max(kept, key=lambda each: each.step).name if kept else None


def _saved(folder: Path) -> dict[str, Manifest]:
    """The readable manifests of the checkpoints in `folder`, by their names."""
    found = {}
    for checkpoint in folder.glob("step_*"):
        with suppress(CheckpointError):  # damaged ones were not published from; the training sets them aside
            found[checkpoint.name] = read_manifest(checkpoint)
    return found


def _register(
    registry: Registry, home: Home, run_folder: Path, decision: Mapping[str, Any], tags: Mapping[str, str]
) -> ModelVersion:
    model = run_folder / "model"
    sha256 = sha256_of(model / WEIGHTS_FILE)
    if sha256 != decision["model_sha256"]:
        raise EvaluationError(
            f"{model / WEIGHTS_FILE}: is not the model that was evaluated (SHA-256 {sha256[:12]} instead of "
            f"{decision['model_sha256'][:12]}). What to do: materialize evaluation_report again."
        )
    metrics = {
        name if key == CANDIDATE else f"{key}_{name}": number(values[name])
        for key, values in load_report(run_folder)["models"].items()
        for name in _METRICS
    }
    return registry.register(
        model,
        run=run_folder.name,
        metrics=metrics,
        tags={**_lineage(home, run_folder), **tags, "model_sha256": sha256, "reasons": "\n".join(_reasons(decision))},
        params=_params(run_folder),
    )


def _started(run_folder: Path) -> Event:
    """How the run was started the last time."""
    return [event for event in read_events(run_folder) if event["type"] == "run_started"][-1]


def _lineage(home: Home, run_folder: Path) -> dict[str, str]:
    """Where the model came from, out of the run's own log."""
    started = _started(run_folder)
    data = TrainingData.open(home.training_data / started["data_fingerprint"])
    return {
        "series_snapshot": data.manifest.snapshot,
        "training_data": data.fingerprint,
        "code_version": started["code_version"],
        "config_hash": started["config_hash"],
        "parent_model": started["config"]["model"]["weights"] or "from scratch",
    }


def _params(run_folder: Path) -> dict[str, Any]:
    settings = orjson.loads((run_folder / "config.json").read_bytes())
    return {name: settings[name] for name in ("preset", "preparation", "training") if name in settings}


def _reasons(decision: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(rule["text"] for rule in decision["rules"])
