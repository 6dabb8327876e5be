"""What differs between runs: settings, data, code and machine, scores, training, decision.

`compare` is a pure function of what `read_subject` has found of each run. The first run is the one that the others are
measured against; another order of the same runs gives the same facts, mirrored. What a run does not tell is None in its
place and a sentence in `missing`, so a run that is under way or that failed can be compared as far as it came.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toto_pipeline.dashboards.facts import Better, Fact, Kind, Section
from toto_pipeline.dashboards.html.sections import NEITHER, flat
from toto_pipeline.errors import PipelineError
from toto_pipeline.events.schema import spell_out
from toto_pipeline.home import Home
from toto_pipeline.runs import (
    DECISION_FILE,
    METRIC_TITLES,
    MODEL_NAMES,
    Run,
    State,
    current_state,
    planned_epochs,
    read_json,
    read_run,
    without_nan,
)

MANIFEST_FILE = "manifest.json"
ABSENT = "not there"
"""A setting that a run's code did not have, while its section is recorded."""

_IDENTITY = frozenset({"run", "created"})
_SECTIONS = ("data", "preparation", "training", "evaluation", "promotion")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run, and what lies outside its own summary.

    training_data, snapshot: manifests of what it learnt from, empty where unknown. champion: the version that its model
    was compared with; "none" where there was none, None where that is unknown.
    """

    run: Run
    state: State
    training_data: Mapping[str, Any]
    snapshot: Mapping[str, Any]
    champion: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """runs: ids; missing: for each run, sentences about what it does not tell; notes: what to keep in mind."""

    runs: tuple[str, ...]
    created: tuple[float, ...]
    states: tuple[State, ...]
    sections: tuple[Section, ...]
    missing: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def section(self, name: str) -> Section:
        return next(section for section in self.sections if section.name == name)

    @property
    def labels(self) -> tuple[str, ...]:
        """The shortest beginnings of the ids, of eight characters or more, that tell the runs apart."""
        for length in range(8, max(map(len, self.runs)) + 1):
            labels = tuple(run[:length] for run in self.runs)
            if len(set(labels)) == len(set(self.runs)):
                return labels
        return self.runs


def read_subject(home: Home, prefix: str) -> Subject:
    """The run named by a full id, an unambiguous beginning of one, or `latest`.

    Raises:
        PipelineError: no run, or more than one, fits; or the run has recorded nothing.
    """
    run = read_run(home.find_run(prefix))
    if not (set(run.config) - _IDENTITY or run.milestones or run.report):
        because = f" ({'; '.join(run.problems)})" if run.problems else ""
        raise PipelineError(
            f"{run.folder}: holds nothing to compare{because}. Expected: a run with settings or an event log. "
            "What to do: name another run; `toto-pipeline runs` lists them."
        )
    training_data = _manifest(home.training_data, _data_fingerprint(run))
    decision, _ = read_json(run.folder / DECISION_FILE)
    return Subject(
        run=run,
        state=current_state(run),
        training_data=training_data,
        snapshot=_manifest(home.snapshots, training_data.get("snapshot")),
        champion=_champion(decision),
    )


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Every fact of the runs side by side, those that differ told from those that do not.

    Args:
        subjects: one or more; the first is the one that the others are measured against.
    """
    return Comparison(
        runs=tuple(subject.run.run for subject in subjects),
        created=tuple(subject.run.created for subject in subjects),
        states=tuple(subject.state for subject in subjects),
        sections=(
            Section(name="settings", title="Settings", facts=_settings(subjects)),
            Section(name="data", title="Data", facts=_data(subjects)),
            Section(name="code", title="Code and machine", facts=_code(subjects)),
            Section(name="scores", title="Scores on the test windows", facts=_scores(subjects), equal_matter=True),
            Section(name="training", title="Training", facts=_training(subjects), equal_matter=True),
            Section(name="decision", title="Decision", facts=_decision(subjects), equal_matter=True),
        ),
        missing=tuple(tuple(_missing(subject)) for subject in subjects),
        notes=tuple(_notes(subjects)),
    )


def describe(comparison: Comparison, *, everything: bool = False) -> dict[str, Any]:
    """A comparison as plain JSON-able values, for programs."""
    return {
        "runs": [
            {"run": run, "created": without_nan(created), "state": state, "missing": list(missing)}
            for run, created, state, missing in zip(
                comparison.runs, comparison.created, comparison.states, comparison.missing, strict=True
            )
        ],
        "notes": list(comparison.notes),
        **{
            section.name: {
                fact.name: {"values": list(fact.values), "changes": list(fact.changes), "differs": fact.differs}
                for fact in section.shown(everything=everything)
            }
            for section in comparison.sections
        },
    }


def _settings(subjects: Sequence[Subject]) -> tuple[Fact, ...]:
    known = [{name: value for name, value in flat(each.run.config) if name not in _IDENTITY} for each in subjects]
    recorded = [set(each.run.config) for each in subjects]
    return tuple(
        Fact(
            name=name,
            title=name,
            values=tuple(
                spell_out(values.get(name, ABSENT)) if name.split(".")[0] in sections else None
                for values, sections in zip(known, recorded, strict=True)
            ),
        )
        for name in sorted(set().union(*known))
    )


def _data(subjects: Sequence[Subject]) -> tuple[Fact, ...]:
    def of_manifest(part: str, field: str) -> Callable[[Subject], Any]:
        return lambda each: getattr(each, part).get(field)

    def span(each: Subject) -> Any:
        start, end = each.snapshot.get("start"), each.snapshot.get("end")
        return None if start is None or end is None else f"{start} to {end}"

    def source(each: Subject) -> Any:
        return (each.run.config.get("data") or {}).get("source")

    def windows(each: Subject) -> Any:
        return (each.run.report or {}).get("windows_fingerprint")

    return (
        _fact(subjects, "source", "Source", source),
        _fact(subjects, "snapshot", "Snapshot", of_manifest("training_data", "snapshot")),
        _fact(subjects, "training_data", "Training data", lambda each: _data_fingerprint(each.run)),
        _fact(subjects, "span", "Span", span),
        _fact(subjects, "rows", "Rows", of_manifest("snapshot", "n_rows"), "count"),
        _fact(subjects, "series", "Series", of_manifest("training_data", "n_series"), "count"),
        _fact(subjects, "variates", "Variates", of_manifest("training_data", "variates")),
        _fact(subjects, "frequency", "Frequency", of_manifest("training_data", "frequency")),
        _fact(subjects, "steps", "Steps of the grid", of_manifest("training_data", "n_steps"), "count"),
        _fact(subjects, "missing_steps", "Missing steps", of_manifest("training_data", "n_missing"), "count"),
        _fact(subjects, "training_from", "Training from", of_manifest("training_data", "train_start")),
        _fact(subjects, "validation_from", "Validation from", of_manifest("training_data", "validation_start")),
        _fact(subjects, "test_from", "Test from", of_manifest("training_data", "test_start")),
        _fact(subjects, "test_to", "Test to", of_manifest("training_data", "end")),
        _fact(subjects, "left_out", "Left out", of_manifest("training_data", "dropped")),
        _fact(
            subjects, "test_windows", "Test windows", lambda each: (each.run.report or {}).get("windows_fingerprint")
        ),
    )


def _code(subjects: Sequence[Subject]) -> tuple[Fact, ...]:
    def started(field: str) -> Callable[[Subject], Any]:
        return lambda each: (each.run.started or {}).get(field)

    return (
        _fact(subjects, "code_version", "Code version", started("code_version")),
        _fact(subjects, "host", "Host", started("host")),
        _fact(subjects, "device", "Device", started("device")),
        _fact(subjects, "processes", "Training processes", started("processes"), "count"),
        _fact(subjects, "parameters", "Parameters", started("parameters"), "count"),
        _fact(subjects, "trained_parameters", "Trained parameters", started("trained_parameters"), "count"),
    )


def _scores(subjects: Sequence[Subject]) -> tuple[Fact, ...]:
    tables = [each.run.scores for each in subjects]
    models = [key for key in MODEL_NAMES if any(key in table for table in tables)]
    models += [key for key in _united(tables) if key not in MODEL_NAMES]
    return tuple(
        _fact_of(
            f"{model}.{metric}",
            f"{MODEL_NAMES.get(model, model)}, {METRIC_TITLES.get(metric, metric)}",
            [table.get(model, {}).get(metric) for table in tables],
            "score",
            None if metric in NEITHER else "lower",
        )
        for model in models
        for metric in _united([table.get(model, {}) for table in tables])
    )


def _training(subjects: Sequence[Subject]) -> tuple[Fact, ...]:
    def begun(measure: Callable[[Run], Any]) -> Callable[[Subject], Any]:
        return lambda each: measure(each.run) if each.run.milestones else None

    def speed(run: Run) -> float | None:
        rates = [epoch.windows_per_second for epoch in run.progress.finished_epochs]
        return statistics.median(rates) if rates else None

    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    def whole(each: Subject) -> float | None:
        stages = () if each.run.outcome is None else each.run.outcome.stages
        return math.fsum(stage.seconds for stage in stages) if stages else None

    loss = begun(lambda run: known(run.progress.best_validation_loss))
    return (
        _fact(subjects, "best_validation_loss", "Best validation loss", loss, "score", "lower"),
        _fact(subjects, "best_epoch", "Best epoch", begun(lambda run: run.progress.best_epoch)),
        _fact(subjects, "epochs", "Epochs done", begun(lambda run: len(run.progress.finished_epochs)), "count"),
        _fact(subjects, "epochs_planned", "Epochs planned", lambda each: planned_epochs(each.run) or None, "count"),
        _fact(subjects, "attempts", "Attempts", begun(lambda run: run.progress.attempt), "count"),
        _fact(subjects, "training_seconds", "Trained for", begun(lambda run: run.training_seconds), "seconds"),
        _fact(subjects, "all_seconds", "All stages took", whole, "seconds"),
        _fact(subjects, "windows_per_second", "Windows a second, median epoch", begun(speed), "significant", "higher"),
    )


def _decision(subjects: Sequence[Subject]) -> tuple[Fact, ...]:
    rules = [_rules(each.run) for each in subjects]
    return (
        _fact(subjects, "state", "Outcome", lambda each: each.state),
        _fact(subjects, "reason", "Reason", lambda each: each.run.reason or None),
        _fact(subjects, "version", "Version", lambda each: each.run.decision and each.run.decision.version),
        _fact(subjects, "champion", "Compared with champion version", lambda each: each.champion),
        *(_fact_of(f"rule.{name}", f"Rule {name}", [texts.get(name) for texts in rules]) for name in _united(rules)),
    )


def _rules(run: Run) -> dict[str, str]:
    """What each rule of the gate found, by its name; a rule that was applied more than once has a line for each."""
    found: dict[str, list[str]] = {}
    for rule in () if run.decision is None else run.decision.rules:
        found.setdefault(rule.name, []).append(f"{'passed' if rule.passed else 'failed'}: {rule.text}")
    return {name: "\n".join(lines) for name, lines in found.items()}


def _missing(subject: Subject) -> Iterable[str]:
    run = subject.run
    if subject.state == "unfinished" and run.milestones:
        done, planned = len(run.progress.finished_epochs), planned_epochs(run)
        yield f"No end is recorded: {done} of {planned} epochs are done, and it is compared as far as it came."
    if subject.state == "interrupted":
        yield "Its process is gone before the end: it is compared as far as it came."
    absent = [name for name in _SECTIONS if name not in run.config]
    if absent:
        yield f"Settings of {', '.join(absent)} are not recorded."
    if not run.milestones:
        yield "Training has not begun: there are no losses, and code and machine are unknown."
    if not subject.training_data:
        fingerprint = _data_fingerprint(run)
        lies = f": training data {fingerprint} is not in this home" if fingerprint else ""
        yield f"Series, rows and span are unknown{lies}."
    elif not subject.snapshot:
        yield f"Rows and span are unknown: snapshot {subject.training_data.get('snapshot')} is not in this home."
    if not run.scores:
        yield "No scores: it was not evaluated."
    if run.decision is None:
        yield "No decision was made."
    yield from (f"{problem}." for problem in run.problems)


def _notes(subjects: Sequence[Subject]) -> Iterable[str]:
    windows = {str(report["windows_fingerprint"]) for report in _reports(subjects) if "windows_fingerprint" in report}
    if len(windows) > 1:
        yield (
            "The scores are of different test windows, so their difference is not the models' alone. "
            "`Seasonal naive` shows how much harder or easier the windows are."
        )


def _reports(subjects: Sequence[Subject]) -> list[Mapping[str, Any]]:
    return [each.run.report for each in subjects if each.run.report]


def _fact(
    subjects: Sequence[Subject],
    name: str,
    title: str,
    ask: Callable[[Subject], Any],
    kind: Kind = "text",
    better: Better | None = None,
) -> Fact:
    return _fact_of(name, title, [ask(each) for each in subjects], kind, better)


def _fact_of(name: str, title: str, values: Iterable[Any], kind: Kind = "text", better: Better | None = None) -> Fact:
    return Fact(name=name, title=title, values=tuple(map(spell_out, values)), kind=kind, better=better)


def _united(collections: Iterable[Iterable[str]]) -> list[str]:
    """Every name once, in an order that does not depend on which collection comes first."""
    places: dict[str, int] = {}
    for collection in collections:
        for place, name in enumerate(collection):
            places[name] = min(place, places.get(name, place))
    return sorted(places, key=lambda name: (places[name], name))


def _data_fingerprint(run: Run) -> str | None:
    """Of the training data: as the training recorded it, or as it was evaluated on."""
    found = (run.started or {}).get("data_fingerprint") or (run.report or {}).get("data_fingerprint")
    return None if found is None else str(found)


def _champion(decision: Any) -> str | None:
    if not isinstance(decision, dict) or "champion" not in decision:
        return None
    return "none" if decision["champion"] is None else str(decision["champion"])


def _manifest(folder: Any, fingerprint: Any) -> Mapping[str, Any]:
    """The manifest of a content-addressed folder; empty where the fingerprint or the folder is unknown."""
    if not isinstance(fingerprint, str) or not fingerprint.isalnum():
        return {}
    value, _ = read_json(folder / fingerprint / MANIFEST_FILE)
    return value if isinstance(value, dict) else {}
