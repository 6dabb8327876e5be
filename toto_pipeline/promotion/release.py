"""Registering a run's model with where it came from, and making it the champion if the gate, or a person, said so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from toto_pipeline.checkpoints import retention
from toto_pipeline.checkpoints.manifest import FILE_NAME as MANIFEST_FILE
from toto_pipeline.checkpoints.manifest import Manifest, read_manifest, sha256_of
from toto_pipeline.checkpoints.pins import FOLDER, pin
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import CheckpointError, ConfigError, EvaluationError, RegistryError
from toto_pipeline.evaluation.backtest import CANDIDATE
from toto_pipeline.evaluation.report import load_report
from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event, number
from toto_pipeline.home import Home
from toto_pipeline.promotion import model_folder
from toto_pipeline.promotion.changes import ROLLED_BACK, Change, Kind, who
from toto_pipeline.promotion.facts import nonfinite_weights
from toto_pipeline.promotion.model_card import gather, model_card
from toto_pipeline.promotion.production import ACCEPTED, FORCED, PROMOTED, REFUSED
from toto_pipeline.promotion.registry import CHAMPION, DECISION, MODEL_HASH, ModelVersion, Registry
from toto_pipeline.promotion.verdict import WEIGHTS_FILE, amend_decision, read_decision
from toto_pipeline.settings.training import CheckpointSettings

DAGSTER_URL_VARIABLE = "TOTO_DAGSTER_URL"
_METRICS = ("MASE", "SQL", "WQL", "WAPE", "coverage_80")


NEVER_FORCED = ("same_windows", "finite_scores", "weights_finite")
"""Rules of the gate that no human decision overrides: what they found is not a model that can be compared."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version that became champion. replaced: the champion before it, None for the first."""

    version: ModelVersion
    change: Change
    replaced: str | None
    snapshot: str
    training_data: str
    code_version: str
    reasons: tuple[str, ...]


def promote(
    home: Home, run_folder: Path, model_name: str, tags: Mapping[str, str], *, allow_rolled_back: bool = False
) -> Release:
    """Register the model that the gate accepted and make it the champion. Called again, it changes nothing.

    The checkpoint that the model was published from is pinned first, so that no retention deletes the champion's.

    Raises:
        CheckpointError: the pins of the run cannot be read.
        EvaluationError: the gate refused the model, or the model is not the one that was evaluated.
        RegistryError: the champion changed since the evaluation, a rollback took this model out of production, or the
            registry cannot be reached.
    """
    decision = read_decision(run_folder)
    if not decision["promote"]:
        raise EvaluationError(
            f"{run_folder}: the gate refused this model; it stays in {run_folder / 'model'}. What to do: see why with "
            f"`toto-pipeline why {run_folder.name}`; `toto-pipeline promote {run_folder.name} --force --reason TEXT` "
            "is a human's decision."
        )
    registry = Registry(home, model_name)
    version = _register(registry, home, run_folder, decision, tags)
    if not allow_rolled_back and CHAMPION not in version.aliases:
        refuse_rolled_back(registry, decision["model_sha256"], run_folder.name)
    return _make_champion(registry, run_folder, version, decision, decision["champion"], "promotion", tags)


def force(home: Home, run_folder: Path, model_name: str, *, reason: str, expected_champion: str | None) -> Release:
    """Make the model of a run the champion because a person says so, whatever the gate said.

    Args:
        reason: kept with the change, the version and the decision.
        expected_champion: the version that the person saw as champion, None where there was none.

    Raises:
        ConfigError: there is no reason.
        EvaluationError: the run was not evaluated, the model is not the one that was, or its scores or weights are no
            numbers.
        RegistryError: the champion changed since, or the registry cannot be reached.
    """
    if not reason.strip():
        raise ConfigError("--reason: is empty. Expected: why this model is to be the champion, in words that stay.")
    decision = read_decision(run_folder)
    broken = [rule["text"] for rule in decision["rules"] if rule["name"] in NEVER_FORCED and not rule["passed"]]
    if broken:
        raise EvaluationError(f"{run_folder}: cannot be forced: {' '.join(broken)} What to do: train another model.")
    model = run_folder / "model"
    _evaluated_weights(model, decision)
    for name in nonfinite_weights(model) or ():
        raise EvaluationError(f"{model}: {name} holds NaN or infinity. What to do: train another model.")
    registry = Registry(home, model_name)
    version = _register(registry, home, run_folder, decision, {})
    amend_decision(run_folder, forced={"by": who(), "reason": reason})
    return _make_champion(registry, run_folder, version, decision, expected_champion, "forced", {}, reason)


def keep_refused(home: Home, run_folder: Path, model_name: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register a model that the gate refused, so that it can be found and looked at; `challenger` points to it."""
    decision = read_decision(run_folder)
    version = _register(Registry(home, model_name), home, run_folder, decision, tags)
    amend_decision(run_folder, version=version.version)
    return version


def dagster_tags(run_id: str) -> dict[str, str]:
    """Which run of Dagster it was, and its page where $TOTO_DAGSTER_URL says where the UI is."""
    address = os.environ.get(DAGSTER_URL_VARIABLE, "").rstrip("/")
    return {"dagster_run": run_id, **({"dagster_url": f"{address}/runs/{run_id}"} if address else {})}


def refuse_rolled_back(registry: Registry, model_sha256: str, run: str) -> None:
    """Raise if these very weights were in production once and a rollback took them out.

    Raises:
        RegistryError: says which version it was, when and why.
    """
    for version in registry.rolled_back(model_sha256):
        raise RegistryError(
            f"Run {run} is not promoted: its model is version {version.version} of {registry.name!r}, which was rolled "
            f"back {version.tags[ROLLED_BACK]}. Expected: another model. What to do: `toto-pipeline promote {run} "
            "--force --reason TEXT` if a person wants it back, or set promotion.allow_rolled_back."
        )


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


def _make_champion(
    registry: Registry,
    run_folder: Path,
    version: ModelVersion,
    decision: Mapping[str, Any],
    expected_champion: str | None,
    kind: Kind,
    tags: Mapping[str, str],
    reason: str | None = None,
) -> Release:
    checkpoint = published_checkpoint(run_folder)
    if checkpoint is not None:
        pin(run_folder, checkpoint, f"weights of {registry.name} version {version.version}")
    reasons = _reasons(decision)
    change = registry.promote(
        version.version,
        expected_champion=expected_champion,
        kind=kind,
        reason="\n".join(reasons) if reason is None else reason,
        run=tags.get("dagster_run", ""),
    )
    amend_decision(run_folder, version=version.version)
    released = registry.version(version.version)
    return Release(
        version=released,
        change=change,
        replaced=change.replaced,
        snapshot=released.tags["series_snapshot"],
        training_data=released.tags["training_data"],
        code_version=released.tags["code_version"],
        reasons=reasons,
    )


def _register(
    registry: Registry,
    home: Home,
    run_folder: Path,
    decision: Mapping[str, Any],
    tags: Mapping[str, str],
) -> ModelVersion:
    """The version of a run."""
    model = run_folder / "model"
    sha256 = _evaluated_weights(model, decision)
    known = registry.of_run(run_folder.name)
    lineage = {**_lineage(home, run_folder), **tags}
    data = TrainingData.open(home.training_data / lineage["training_data"])
    if known is None:
        model_folder.complete(model, run_folder, data, code_version=lineage["code_version"])
    before = known.tags.get(DECISION) if known else None
    said = before if before in (PROMOTED, FORCED) else ACCEPTED if decision["promote"] else REFUSED
    return registry.register(
        model,
        run=run_folder.name,
        metrics=_metrics(run_folder),
        tags={**lineage, DECISION: said, MODEL_HASH: sha256, "reasons": "\n".join(_reasons(decision))},
        params=_params(run_folder),
        card=model_card(gather(registry.name, run_folder, {**lineage, MODEL_HASH: sha256}, data.manifest)),
    )


def _evaluated_weights(model: Path, decision: Mapping[str, Any]) -> str:
    """The SHA-256 of a model's weights, which are those that were evaluated."""
    sha256 = sha256_of(model / WEIGHTS_FILE)
    if sha256 != decision["model_sha256"]:
        raise EvaluationError(
            f"{model / WEIGHTS_FILE}: is not the model that was evaluated (SHA-256 {sha256[:12]} instead of "
            f"{decision['model_sha256'][:12]}). What to do: materialize evaluation_report again."
        )
    return sha256


def _metrics(run_folder: Path) -> dict[str, float]:
    return {
        name if key == CANDIDATE else f"{key}_{name}": number(values[name])
        for key, values in load_report(run_folder)["models"].items()
        for name in _METRICS
    }


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
        **_checkpoint(run_folder),
    }


def _checkpoint(run_folder: Path) -> dict[str, str]:
    """The checkpoint that the model was published from, and the SHA-256 of its manifest."""
    name = published_checkpoint(run_folder)
    if name is None:
        return {}
    return {"checkpoint": name, "checkpoint_sha256": sha256_of(run_folder / FOLDER / name / MANIFEST_FILE)}


def _params(run_folder: Path) -> dict[str, Any]:
    settings = orjson.loads((run_folder / "config.json").read_bytes())
    return {name: settings[name] for name in ("preset", "preparation", "training") if name in settings}


def _reasons(decision: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(rule["text"] for rule in decision["rules"])
