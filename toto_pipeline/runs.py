"""What can be said about a run from the files in its folder, without starting anything.

    config.json                 the settings, and when the run began
    events.jsonl                the training, projected by monitoring.progress
    evaluation/report.json      scores of every model on the test windows
    decision.json               promoted or refused, and by which rules
    outcome.json                how the command that ran it ended, stage by stage; written by the command line

Any of these may be missing, because the run has not come so far or because it failed; a file that is there but cannot
be read becomes a problem in words, never an exception: one damaged run must not hide the others.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import PipelineError
from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event, number, spell_out
from toto_pipeline.home import Home, storage_errors
from toto_pipeline.monitoring.progress import Progress, progress

CONFIG_FILE = "config.json"
DECISION_FILE = "decision.json"
OUTCOME_FILE = "outcome.json"
REPORT_FILE = "evaluation/report.json"
FORECASTS_FILE = "evaluation/forecasts.json"
HTML_FILE = "report.html"

CANDIDATE, BASELINE, CHAMPION = "candidate", "seasonal_naive", "champion"
MODEL_NAMES = {
    CANDIDATE: "New model",
    BASELINE: "Seasonal naive",
    CHAMPION: "Champion",
    "zero_shot": "Starting weights",
    "drift": "Drift",
}
"""Model keys of an evaluation, in the order they are shown, and what a person calls them."""

METRIC_TITLES = {"coverage_80": "Coverage 80 %", "interval_width": "Width 80 %"}
"""What a person calls a metric whose key is not its name."""

State = Literal["promoted", "refused", "failed", "canceled", "trained", "unfinished", "interrupted"]
"""trained: the training ended and nothing was decided yet; unfinished: no end is recorded; interrupted: the same, and
the process that trained is gone."""

STAGES = {
    "series_snapshot": "Read and check the data",
    "training_data": "Prepare windows",
    "trained_model": "Train",
    "evaluation_report": "Compare models",
    "promoted_checkpoint": "Decide and promote",
    "run_dashboard": "Write the report",
}
"""Stages of a retraining in order, and what each does."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of the promotion gate, and what it found."""

    name: str
    passed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    promote: bool
    version: str | None
    rules: tuple[Rule, ...]

    @property
    def refusals(self) -> list[str]:
        return [rule.text for rule in self.rules if not rule.passed]


@dataclass(frozen=True, kw_only=True)
class Stage:
    stage: str
    state: str
    seconds: float
    message: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: promoted, refused, failed or canceled."""

    outcome: str
    message: str
    exit_code: int
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything about a run but its steps."""

    run: str
    folder: Path
    config: Mapping[str, Any]
    milestones: tuple[Event, ...]
    progress: Progress
    report: Mapping[str, Any] | None
    decision: Decision | None
    outcome: Outcome | None
    problems: tuple[str, ...] = field(default=())

    @property
    def created(self) -> float:
        """Unix seconds; NaN where neither config nor events say it."""
        times = [self.config.get("created"), *(event.get("time") for event in self.milestones[:1])]
        return next((number(time) for time in times if time is not None), math.nan)

    @property
    def training_seconds(self) -> float:
        """From the first to the last event of the training, restarts included."""
        if not self.milestones:
            return math.nan
        return number(self.milestones[-1]["time"]) - number(self.milestones[0]["time"])

    @property
    def started(self) -> Event | None:
        """The newest `run_started` event."""
        return next((event for event in reversed(self.milestones) if event["type"] == "run_started"), None)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Model key to metric to value, in the order the models are shown."""
        return scores(self.report or {})

    @property
    def metric(self) -> str:
        """The metric that decides about promotion."""
        return str((self.config.get("promotion") or {}).get("metric") or "SQL")

    @property
    def state(self) -> State:
        if self.outcome is not None and self.outcome.outcome in ("promoted", "refused", "failed", "canceled"):
            return self.outcome.outcome  # type: ignore[return-value]
        if self.decision is not None:
            return "promoted" if self.decision.promote else "refused"
        ended = self.progress.outcome
        if ended in ("failed", "canceled"):
            return ended  # type: ignore[return-value]
        return "unfinished" if ended is None else "trained"

    @property
    def reason(self) -> str:
        """Why the run is in its state, as far as its files tell."""
        if self.outcome is not None and self.outcome.message:
            return self.outcome.message
        if self.decision is not None and not self.decision.promote:
            return "; ".join(self.decision.refusals)
        return self.progress.reason or ""

    def gain(self, reference: str, metric: str | None = None) -> float:
        """How much lower the new model's error is than the reference's, as a share of it; NaN if unknown."""
        name = metric or self.metric
        own = self.scores.get(CANDIDATE, {}).get(name, math.nan)
        other = self.scores.get(reference, {}).get(name, math.nan)
        return 1 - own / other if other else math.nan


def read_run(folder: Path) -> Run:
    """The run of a folder, complete or not."""
    problems: list[str] = []

    def part(name: str) -> Any:
        value, problem = read_json(folder / name)
        problems.extend([f"{name}: {problem}"] if problem else [])
        return value

    def understood[T](name: str, read: Callable[[Mapping[str, Any]], T]) -> T | None:
        value = part(name)
        try:
            return None if value is None else read(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{name}: does not have the fields it should ({type(error).__name__}: {error})")
            return None

    milestones = tuple(event for event in read_events(folder) if event["type"] != "step")
    return Run(
        run=folder.name,
        folder=folder,
        config=understood(CONFIG_FILE, dict) or {},
        milestones=milestones,
        progress=progress(milestones),
        report=understood(REPORT_FILE, _checked_report),
        decision=understood(DECISION_FILE, _decision),
        outcome=understood(OUTCOME_FILE, _outcome),
        problems=tuple(problems),
    )


def list_runs(home: Home, limit: int | None = None) -> list[Run]:
    """Runs of a home, newest first."""
    newest = list(reversed(home.run_names()))
    return [read_run(home.run(name)) for name in newest[:limit]]


def planned_epochs(run: Run) -> int:
    """Epochs that the training set out to do, as its log says or, before it began, its settings."""
    return run.progress.epochs or int((run.config.get("training") or {}).get("epochs") or 0)


def current_state(run: Run) -> State:
    """`run.state`, with `unfinished` told from `interrupted` by asking this machine for the process."""
    if run.state != "unfinished" or run.started is None or run.started.get("host") != socket.gethostname():
        return run.state
    return "unfinished" if _alive(int(run.started.get("pid") or 0)) else "interrupted"


def scores(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The scores of an evaluation report, known models first."""
    table: Mapping[str, Mapping[str, Any]] = report.get("models") or {}
    ordered = [key for key in MODEL_NAMES if key in table] + [key for key in table if key not in MODEL_NAMES]
    return {
        key: {metric: number(value) for metric, value in table[key].items() if _is_number(value)} for key in ordered
    }


def describe(run: Run) -> dict[str, Any]:
    """A run as plain JSON-able values, for programs: NaN becomes null."""
    started = run.started or {}
    described = {
        "run": run.run,
        "folder": str(run.folder),
        "created": run.created,
        "state": current_state(run),
        "reason": run.reason,
        "epochs": len(run.progress.finished_epochs),
        "epochs_planned": planned_epochs(run),
        "best_epoch": run.progress.best_epoch,
        "best_validation_loss": run.progress.best_validation_loss,
        "training_seconds": run.training_seconds,
        "attempts": run.progress.attempt if run.milestones else 0,
        "metric": run.metric,
        "gain_over_seasonal_naive": run.gain(BASELINE),
        "gain_over_champion": run.gain(CHAMPION),
        "scores": run.scores,
        "promoted": None if run.decision is None else run.decision.promote,
        "version": None if run.decision is None else run.decision.version,
        "rules": [] if run.decision is None else [vars(rule) for rule in run.decision.rules],
        "stages": [] if run.outcome is None else [vars(stage) for stage in run.outcome.stages],
        "data_fingerprint": started.get("data_fingerprint"),
        "code_version": started.get("code_version"),
        "report": str(run.folder / HTML_FILE) if (run.folder / HTML_FILE).is_file() else None,
        "problems": list(run.problems),
    }
    return {key: without_nan(value) for key, value in described.items()}


def without_nan(value: Any) -> Any:
    """`value` with every non-finite float as None, through dicts, lists and tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Keep how a command ended beside what it did."""
    plain = {**vars(outcome), "stages": [vars(stage) for stage in outcome.stages]}
    write_file(folder / OUTCOME_FILE, orjson.dumps(spell_out(plain), option=orjson.OPT_INDENT_2))


def write_config(folder: Path, settings: Mapping[str, Any], created: float) -> None:
    """Make a run known from its first moment, before any stage has begun; an existing config.json stays."""
    if not (folder / CONFIG_FILE).is_file():
        value = {**settings, "run": folder.name, "created": created}
        write_file(folder / CONFIG_FILE, orjson.dumps(value, option=orjson.OPT_INDENT_2))


def read_json(path: Path) -> tuple[Any, str | None]:
    """The value of a JSON file and None, or None and what is wrong with it; a missing file is nothing wrong."""
    try:
        with storage_errors(path):
            return orjson.loads(path.read_bytes()), None
    except FileNotFoundError:
        return None, None
    except orjson.JSONDecodeError as error:
        return None, f"is not JSON ({error})"
    except (OSError, PipelineError) as error:
        return None, f"cannot be read ({error})"


def _decision(value: Mapping[str, Any]) -> Decision:
    rules = tuple(
        Rule(name=str(rule["name"]), passed=bool(rule["passed"]), text=str(rule["text"])) for rule in value["rules"]
    )
    version = value.get("version")
    return Decision(promote=bool(value["promote"]), version=None if version is None else str(version), rules=rules)


def _outcome(value: Mapping[str, Any]) -> Outcome:
    stages = tuple(
        Stage(
            stage=str(stage["stage"]),
            state=str(stage["state"]),
            seconds=number(stage["seconds"]),
            message=str(stage["message"]),
        )
        for stage in value.get("stages", [])
    )
    return Outcome(
        outcome=str(value["outcome"]),
        message=str(value["message"]),
        exit_code=int(value["exit_code"]),
        stages=stages,
    )


def _checked_report(value: Mapping[str, Any]) -> Mapping[str, Any]:
    scores(value)
    return value


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or value in ("nan", "inf", "-inf")


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
