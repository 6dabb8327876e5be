"""Why the model changed, or did not: what data came, what was trained, how the scores compared, which rule decided.

`gather` collects what the registry, the run folders and the snapshots know; `explain` is a function of that and nothing
else; `as_markdown` and `as_plain` write its answer for people and for programs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toto_pipeline.data.snapshot import SnapshotManifest, open_snapshot
from toto_pipeline.errors import DataError, PipelineError, RegistryError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_run import flat
from toto_pipeline.promotion.changes import ROLLED_BACK, Change
from toto_pipeline.promotion.markdown import bullets, escape, table
from toto_pipeline.promotion.registry import CHAMPION as PRODUCTION
from toto_pipeline.promotion.registry import ModelVersion, Registry
from toto_pipeline.runs import CHAMPION, DECISION_FILE, MODEL_NAMES, Rule, Run, read_json, read_run

_METRICS = ("MASE", "SQL", "WQL", "WAPE", "coverage_80")
_SECTIONS = ("preparation", "training", "evaluation", "promotion")
_MOST_SETTINGS = 12
_CHANGED = {
    "promotion": "it passed every rule of the gate",
    "rollback": "somebody went back to it",
    "forced": "a person decided so, whatever the gate said",
    "outside": "the alias was moved outside of this pipeline",
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run and the version that it made, as far as they are there."""

    run: Run | None = None
    version: ModelVersion | None = None
    snapshot: SnapshotManifest | None = None

    @property
    def name(self) -> str:
        return self.run.run if self.run else self.version.run if self.version else ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about one change of champion, or about one run that changed nothing.

    subject: the run, or the version that became champion. change: how it did, None where it did not. before: what was
    champion until then. champion: the version in production now.
    """

    model: str
    subject: Training
    change: Change | None = None
    before: Training = field(default_factory=Training)
    champion: str | None = None


@dataclass(frozen=True, kw_only=True)
class Why:
    """The answer, in sentences; scores by model key; rules of the gate, those that refused first."""

    headline: str
    data: tuple[str, ...]
    training: tuple[str, ...]
    scores: Mapping[str, Mapping[str, float]]
    rules: tuple[Rule, ...]
    decided: str
    facts: Facts


def gather(home: Home, model_name: str, subject: str | None = None) -> Facts:
    """What is known about a subject.

    Args:
        subject: a run (or an unambiguous beginning of its id, or `latest`), or the number of a version; digits alone
            are always a version. By default the newest event of the two: the last change of champion, or the newest
            run that ended.

    Raises:
        PipelineError: there is neither such a run nor such a version, or nothing has happened yet.
    """
    registry = Registry(home, model_name)
    changes = registry.changes(1)
    if subject is None:
        return _newest(home, registry, changes)
    if subject.isdigit():
        version = registry.version(subject)
        return _of(home, registry, _training(home, version.run, version))
    run = home.find_run(subject).name
    return _of(home, registry, _training(home, run, registry.of_run(run)))


def _newest(home: Home, registry: Registry, changes: list[Change]) -> Facts:
    run = next((found for name in reversed(home.run_names()) if _ended(found := read_run(home.run(name)))), None)
    if run is not None and not (changes and changes[0].at >= run.created):
        return _of(home, registry, _training(home, run.run, registry.of_run(run.run)))
    if not changes:
        raise PipelineError(
            f"There is nothing to explain in {home.root}: no run has ended and there is no champion of "
            f"{registry.name!r}. What to do: run `toto-pipeline retrain`, or name another home with --home."
        )
    version = registry.version(changes[0].version)
    return _about_change(home, registry, _training(home, version.run, version), changes[0])


def _ended(run: Run) -> bool:
    return run.outcome is not None or run.decision is not None or run.progress.outcome is not None


def _of(home: Home, registry: Registry, training: Training) -> Facts:
    """Facts about a run or version: the newest change that it made, if any."""
    mine = None if training.version is None else registry.change_to(training.version.version)
    if mine is not None:
        return _about_change(home, registry, training, mine)
    champion = registry.with_alias(PRODUCTION)
    return Facts(
        model=registry.name,
        subject=training,
        before=_of_version(home, registry, _compared_with(training.run) or champion),
        champion=champion,
    )


def _compared_with(run: Run | None) -> str | None:
    """The version that was champion when a run was evaluated."""
    decision = {} if run is None else read_json(run.folder / DECISION_FILE)[0] or {}
    champion = decision.get("champion")
    return None if champion is None else str(champion)


def _about_change(home: Home, registry: Registry, training: Training, change: Change) -> Facts:
    return Facts(
        model=registry.name,
        subject=training,
        change=change,
        before=_of_version(home, registry, change.replaced),
        champion=registry.with_alias(PRODUCTION),
    )


def _of_version(home: Home, registry: Registry, version: str | None) -> Training:
    if version is None:
        return Training()
    try:
        found = registry.version(version)
    except RegistryError:
        return Training()  # it was deleted
    return _training(home, found.run, found)


def _training(home: Home, run: str, version: ModelVersion | None) -> Training:
    folder = home.run(run)
    found = read_run(folder) if run and folder.is_dir() else None
    snapshot = version.tags.get("series_snapshot") if version else _snapshot_of(home, found)
    return Training(run=found, version=version, snapshot=_read_snapshot(home.snapshots, snapshot))


def _snapshot_of(home: Home, run: Run | None) -> str | None:
    from toto_pipeline.data.training_data import TrainingData

    fingerprint = (run.started or {}).get("data_fingerprint") if run else None
    if not fingerprint or not (home.training_data / fingerprint).is_dir():
        return None
    return TrainingData.open(home.training_data / fingerprint).manifest.snapshot


def _read_snapshot(snapshots: Path, fingerprint: str | None) -> SnapshotManifest | None:
    if not fingerprint or not (snapshots / fingerprint).is_dir():
        return None
    try:
        return open_snapshot(snapshots / fingerprint).manifest
    except DataError:
        return None  # damaged: that is told by who uses it


def explain(facts: Facts) -> Why:
    """The answer, out of facts and nothing else."""
    run = facts.subject.run
    rules = () if run is None or run.decision is None else run.decision.rules
    return Why(
        headline=_headline(facts),
        data=tuple(_data(facts)),
        training=tuple(_trained(facts)),
        scores=run.scores if run else {},
        rules=tuple(sorted(rules, key=lambda rule: rule.passed)),
        decided=_decided(facts, rules),
        facts=facts,
    )


def _headline(facts: Facts) -> str:
    change = facts.change
    if change is None:
        now = f"version {facts.champion} stays" if facts.champion else "there is still none"
        name, run = facts.subject.name, facts.subject.run
        if run is not None and run.decision is not None and run.decision.promote:
            return f"Run {name} passed the gate and is not the champion of {facts.model}: {now}."
        return f"Run {name} did not change the champion of {facts.model}: {now}."
    replaced = f" in place of version {change.replaced}" if change.replaced else ", the first champion"
    headline = f"Version {change.version} of {facts.model} became champion on {_moment(change.at)}{replaced}"
    later = "" if facts.champion == change.version else f"; today version {facts.champion} is"
    return f"{headline}: {_CHANGED[change.kind]}{later}."


def _data(facts: Facts) -> list[str]:
    own, other = facts.subject.snapshot, facts.before.snapshot
    if own is None:
        return []
    said = [
        f"{own.n_series} series, {own.n_rows} rows from {own.start} to {own.end} (snapshot {own.fingerprint[:12]})."
    ]
    if other is None:
        return said
    champion = f"version {_version(facts.before)}"
    if other.fingerprint == own.fingerprint:
        return [*said, f"The very same data as {champion} was trained on."]
    said.append(
        f"Against that of {champion}: {own.n_rows - other.n_rows:+d} rows, {own.n_series - other.n_series:+d} series; "
        f"the newest row is of {own.end}, and was of {other.end}."
    )
    return said


def _trained(facts: Facts) -> list[str]:
    run, version = facts.subject.run, facts.subject.version
    said = []
    if run is not None:
        progress = run.progress
        best = progress.best_validation_loss
        loss = f"; lowest validation loss {best:.4g} in epoch {progress.best_epoch}" if _finite(best) else ""
        said.append(f"Run {run.run}: {len(progress.finished_epochs)} epochs{loss}.")
        if run.reason and not run.decision:
            said.append(f"It ended as {run.state}: {run.reason}")
    if version is not None:
        parent, code = version.tags.get("parent_model"), version.tags.get("code_version")
        said += [f"Started from: {parent}."] if parent else []
        said += [f"Code: {code}."] if code else []
    said += _changed_settings(run, facts.before)
    return said


def _changed_settings(run: Run | None, before: Training) -> list[str]:
    if run is None or before.run is None or run.run == before.run.run:
        return []
    own, other = (_settings(each) for each in (run, before.run))
    changed = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
    if not changed:
        return [f"The settings are those of version {_version(before)}."]
    shown = ", ".join(f"{name} {other.get(name)} -> {own.get(name)}" for name in changed[:_MOST_SETTINGS])
    more = f" and {len(changed) - _MOST_SETTINGS} more" if len(changed) > _MOST_SETTINGS else ""
    return [f"Settings that differ from those of version {_version(before)}: {shown}{more}."]


def _settings(run: Run) -> dict[str, Any]:
    return flat({name: run.config[name] for name in _SECTIONS if name in run.config})


def _decided(facts: Facts, rules: tuple[Rule, ...]) -> str:
    change, version = facts.change, facts.subject.version
    if change is not None and change.kind in ("rollback", "forced", "outside"):
        return f"{change.kind.capitalize()} by {change.by}: {change.reason or 'no reason was given'}"
    failed = [rule for rule in rules if not rule.passed]
    if failed:
        return " ".join(f"{rule.name} refused it: {rule.text}" for rule in failed)
    if version is not None and ROLLED_BACK in version.tags:
        return f"It was rolled back {version.tags[ROLLED_BACK]}"
    if change is not None:
        against = next((rule.text for rule in rules if CHAMPION in rule.name), "")
        return f"All {len(rules)} rules passed. {against}".strip()
    if rules:
        return "All rules passed; `toto-pipeline promote` makes it champion where the pipeline has not."
    run = facts.subject.run
    return run.reason if run and run.reason else "It never came to a decision."


def as_markdown(why: Why) -> str:
    """The answer for a page of Dagster or a file."""
    rows = [
        [escape(MODEL_NAMES.get(key, key)), *(_figure(scores.get(metric)) for metric in _METRICS)]
        for key, scores in why.scores.items()
    ]
    parts = [
        f"**{escape(why.headline)}**",
        escape(why.decided),
        _part("What data came", why.data),
        _part("What was trained", why.training),
        table(["Test windows", *(escape(metric) for metric in _METRICS)], rows) if rows else "",
        _part("What the rules said", [f"{'passed' if r.passed else 'FAILED'}: {r.text}" for r in why.rules]),
    ]
    return "\n\n".join(part for part in parts if part)


def as_plain(why: Why) -> dict[str, Any]:
    """The answer as plain values, for JSON."""
    facts = why.facts
    version, change = facts.subject.version, facts.change
    return {
        "headline": why.headline,
        "decided": why.decided,
        "model": facts.model,
        "run": facts.subject.name or None,
        "version": version.version if version else None,
        "champion": facts.champion,
        "change": None if change is None else vars(change),
        "data": list(why.data),
        "training": list(why.training),
        "scores": {key: dict(scores) for key, scores in why.scores.items()},
        "rules": [vars(rule) for rule in why.rules],
        "lineage": dict(version.tags) if version else {},
    }


def _part(title: str, lines: Any) -> str:
    return f"{title}:\n\n{bullets(escape(line) for line in lines)}" if lines else ""


def _version(training: Training) -> str:
    return training.version.version if training.version else "?"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _figure(value: float | None) -> str:
    return f"{value:.4g}" if _finite(value) else "-"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
