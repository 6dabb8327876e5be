"""All runs of a home in metrics: whether the nights go well, and what is in production.

One exporter stays up for months, whatever runs begin and end, and reads at each scrape what the files of the home say:

    runs       how many ended how; of each outcome the newest: when, how long, with which scores
    data       how far the newest snapshot of the data reaches
    champion   version, age and scores, by a function that is asked in a thread, now and then

A run is read anew only when its small files have changed, or its training has started again or ended; of a log that
grows only the end is looked at. So a scrape costs a few file system calls a run.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from toto_pipeline.errors import PipelineError
from toto_pipeline.events.log import FILE_NAME, decode
from toto_pipeline.home import Home
from toto_pipeline.runs import (
    CONFIG_FILE,
    DECISION_FILE,
    OUTCOME_FILE,
    REPORT_FILE,
    Run,
    State,
    current_state,
    read_json,
    read_run,
)

OUTCOMES: tuple[State, ...] = get_args(State)
SUCCESSES = ("promoted", "refused")
"""Outcomes of a retraining that came to its decision; a model that was refused is no failure of the night."""

ASK_SECONDS = 60.0
_TAIL_BYTES = 64 << 10
_SMALL_FILES = (CONFIG_FILE, DECISION_FILE, OUTCOME_FILE, REPORT_FILE)
_DECIDED_FILES = (OUTCOME_FILE, DECISION_FILE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The model in production. created: Unix seconds."""

    model: str
    version: str
    run: str
    created: float
    scores: Mapping[str, float]


class ChampionWatch:
    """Asks for the champion each `seconds`, in a thread: a registry that is down holds no scrape up.

    Attributes:
        champion: the newest answer; None where there is no champion, or none is known.
        is_reachable: whether the last question was answered; None before the first.
    """

    def __init__(self, ask: Callable[[], Champion | None], seconds: float = ASK_SECONDS) -> None:
        self.champion: Champion | None = None
        self.is_reachable: bool | None = None
        self._ask = ask
        self._seconds = seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="champion", daemon=True)

    def refresh(self) -> None:
        """Ask now. Without an answer the champion that was known stays."""
        try:
            self.champion = self._ask()
        except PipelineError as error:
            if self.is_reachable is not False:
                _log.warning("%s", error)
            self.is_reachable = False
        else:
            self.is_reachable = True

    def __enter__(self) -> ChampionWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends without waiting for a question that is under way."""
        self._ending.set()

    def _watch(self) -> None:
        self.refresh()
        while not self._ending.wait(self._seconds):
            self.refresh()


class FleetCollector(Collector):
    """What a registry of metrics asks at each scrape. See the module."""

    def __init__(self, home: Home, watch: ChampionWatch) -> None:
        self._home = home
        self._watch = watch
        self._runs = RunCache(home)

    def read_runs(self) -> int:
        """Read all runs, so that the first scrape does not have to; their number."""
        return len(self._runs.read()[0])

    def collect(self) -> Iterator[Metric]:
        runs, unreadable = self._runs.read()
        yield from run_families(runs)
        manifests = [read_json(file) for file in self._home.snapshots.glob("*/manifest.json")]
        yield from data_families([manifest for manifest, problem in manifests if problem is None])
        yield from champion_families(self._watch)
        problems = sum(len(run.problems) for run in runs) + sum(problem is not None for _, problem in manifests)
        yield _gauge("toto_home_problems", "Files of this home that cannot be read.", problems + unreadable)


class RunCache:
    """The runs of a home without their logs; each is read when something about it has changed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: dict[str, tuple[Any, Run]] = {}
        self._unreadable: set[str] = set()
        self._reading = threading.Lock()

    def read(self) -> tuple[list[Run], int]:
        """Runs, oldest first, and how many could not be read at all."""
        with self._reading:
            names = self._home.run_names()
            found = [run for name in names if (run := self._run(name)) is not None]
            self._known = {run.run: self._known[run.run] for run in found}
            self._unreadable &= set(names)
            return found, len(self._unreadable)

    def _run(self, name: str) -> Run | None:
        folder = self._home.run(name)
        try:
            signature = _signature(folder)
            if name not in self._known or self._known[name][0] != signature:
                self._known[name] = signature, _without_log(read_run(folder))
        except (OSError, PipelineError) as error:
            if name not in self._unreadable:
                _log.warning("the run in %s cannot be read: %s", folder, error)
            self._unreadable.add(name)
            return None
        self._unreadable.discard(name)
        return self._known[name][1]


def _without_log(run: Run) -> Run:
    """The run with those of its events that tell when, how and by whom it was trained."""
    started = [run.started] if run.started is not None else []
    return replace(run, milestones=(*run.milestones[:1], *started, *run.milestones[-1:]))


def _signature(folder: Path) -> tuple[Any, ...]:
    """What differs when there is something new to say about a run."""
    return (*(_changed(folder / name) for name in _SMALL_FILES), _last_word(folder / FILE_NAME))


def _changed(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _last_word(log: Path) -> tuple[int, bool]:
    """The newest attempt that the end of a log tells of, and whether it has ended."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0, False
    attempt, has_ended = 0, False
    for event in filter(None, map(decode, lines)):
        attempt = event.get("attempt", attempt)
        has_ended = event["type"] == "run_ended" or (has_ended and event["type"] != "run_started")
    return attempt, has_ended


def run_families(runs: Sequence[Run]) -> Iterator[Metric]:
    """Metrics of runs, oldest first."""
    states = [current_state(run) for run in runs]
    newest = dict(zip(states, runs, strict=True))
    yield _gauge_by(
        "toto_runs", "Runs of this home by how they ended.", "outcome", {one: states.count(one) for one in OUTCOMES}
    )
    successes = [_ended(newest[one]) for one in SUCCESSES if one in newest]
    yield _gauge(
        "toto_last_success_timestamp_seconds",
        "When a retraining last came to a decision, in Unix time; 0 for never.",
        max(successes, default=0.0),
    )
    if runs:
        yield _gauge("toto_last_start_timestamp_seconds", "When a run last began, in Unix time.", runs[-1].created)
        yield _newest_run(runs[-1], states[-1])
    over: dict[State, Run] = {one: run for one, run in newest.items() if one != "unfinished"}
    for name, help, value in (
        ("toto_last_run_timestamp_seconds", "When the newest run of each outcome ended, in Unix time.", _ended),
        ("toto_last_run_duration_seconds", "How long the newest run of each outcome took.", _duration),
        ("toto_last_run_training_seconds", "How long its training took.", lambda run: run.training_seconds),
        ("toto_last_run_epochs", "Epochs that it trained.", lambda run: len(run.progress.finished_epochs)),
        ("toto_last_run_attempts", "How often it was started.", lambda run: run.progress.attempt),
        (
            "toto_last_run_validation_loss",
            "The validation loss of its best epoch.",
            lambda run: run.progress.best_validation_loss,
        ),
    ):
        yield _gauge_by(name, help, "outcome", {one: value(run) for one, run in over.items()})
    yield _scores(over)


def data_families(manifests: Sequence[Any]) -> Iterator[Metric]:
    """How fresh the newest of some snapshots of data is; nothing where there is none."""
    known = [one for one in manifests if isinstance(one, dict) and not math.isnan(_unix_seconds(one.get("created")))]
    if not known:
        return
    newest = max(known, key=lambda one: _unix_seconds(one["created"]))
    for name, help, value in (
        (
            "toto_data_end_timestamp_seconds",
            "The last time in the newest data, as Unix time.",
            _unix_seconds(newest.get("end")),
        ),
        (
            "toto_data_snapshot_timestamp_seconds",
            "When the newest data were read, in Unix time.",
            _unix_seconds(newest["created"]),
        ),
        ("toto_data_series", "Series in the newest data.", float(newest.get("n_series", math.nan))),
    ):
        yield _gauge(name, help, value)


def champion_families(watch: ChampionWatch) -> Iterator[Metric]:
    if watch.is_reachable is not None:
        yield _gauge(
            "toto_registry_up", "Whether the model registry answered when last asked.", float(watch.is_reachable)
        )
    champion = watch.champion
    if champion is None:
        return
    info = InfoMetricFamily("toto_champion", "The model in production.", labels=())
    info.add_metric((), {"model": champion.model, "version": champion.version, "run": champion.run})
    yield info
    labels = {"model": champion.model}
    if champion.version.isdecimal():
        yield _gauge("toto_champion_version", "Version of the model in production.", int(champion.version), labels)
    yield _gauge(
        "toto_champion_created_timestamp_seconds",
        "When the model in production was registered, in Unix time.",
        champion.created,
        labels,
    )
    scores = GaugeMetricFamily(
        "toto_champion_score", "Scores of the model in production when it was compared.", labels=("model", "metric")
    )
    for metric, value in champion.scores.items():
        scores.add_metric((champion.model, metric), value)
    yield scores


def _newest_run(run: Run, state: State) -> Metric:
    info = InfoMetricFamily("toto_last_run", "The newest run.", labels=())
    started = run.started or {}
    facts = {name: str(started[name]) for name in ("data_fingerprint", "code_version") if started.get(name)}
    info.add_metric((), {"run": run.run, "outcome": state, **facts})
    return info


def _scores(newest: Mapping[State, Run]) -> Metric:
    family = GaugeMetricFamily(
        "toto_last_run_score",
        "Scores on the test windows of each model that the newest run of each outcome compared.",
        labels=("outcome", "model", "metric"),
    )
    for outcome, run in newest.items():
        for model, values in run.scores.items():
            for metric, value in values.items():
                family.add_metric((outcome, model, metric), value)
    return family


def _ended(run: Run) -> float:
    """When a run came to its end, in Unix seconds; NaN where it has not, or nobody knows."""
    for name in _DECIDED_FILES:
        with suppress(FileNotFoundError):
            return (run.folder / name).stat().st_mtime
    return float(run.milestones[-1]["time"]) if run.progress.outcome is not None else math.nan


def _duration(run: Run) -> float:
    return _ended(run) - run.created


def _unix_seconds(text: Any) -> float:
    """ISO 8601 as Unix seconds, UTC where no zone is named; NaN where it is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _gauge(name: str, help: str, value: float, labels: Mapping[str, str] | None = None) -> Metric:
    labels = labels or {}
    family = GaugeMetricFamily(name, help, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), value)
    return family


def _gauge_by(name: str, help: str, label: str, values: Mapping[Any, float]) -> Metric:
    """Without what is not known."""
    family = GaugeMetricFamily(name, help, labels=(label,))
    for key, value in values.items():
        if not math.isnan(value):
            family.add_metric((key,), value)
    return family
