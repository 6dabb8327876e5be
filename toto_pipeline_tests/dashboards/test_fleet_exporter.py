"""What the long-lived exporter says of the runs, the data and the champion of a home."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from toto_pipeline.dashboards.fleet_exporter import Champion, ChampionWatch, FleetCollector
from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home
from toto_pipeline_tests.fixtures.recorded_run import CREATED, Clock, Recording, record
from toto_pipeline_tests.monitoring.prometheus_help import Sample, check_with_promtool, sample, samples

CHAMPION = Champion(model="toto", version="4", run="run-1", created=CREATED, scores={"MASE": 0.7, "SQL": 0.6})


class Exporter:
    """A home, and what is read of it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.answer: Champion | RegistryError | None = None
        self.watch = ChampionWatch(self._ask)
        self._registry = CollectorRegistry()
        self._registry.register(FleetCollector(home, self.watch))

    def text(self) -> str:
        return generate_latest(self._registry).decode()

    def samples(self) -> dict[Sample, float]:
        return samples(self.text())

    def _ask(self) -> Champion | None:
        if isinstance(self.answer, RegistryError):
            raise self.answer
        return self.answer


@pytest.fixture
def exporter(home: Home) -> Exporter:
    return Exporter(home)


def recorded(home: Home, run: str, *, age: float = 0.0, ended: float | None = None, **how: object) -> Path:
    """A run that began `age` seconds before CREATED + 1000; `ended` is when its decision was written."""
    keys = ("trained", "evaluated", "promoted", "champion")
    outer = {key: how.pop(key) for key in keys if key in how}
    recording = Recording(run=run, epochs=2, steps_per_epoch=10, clock=Clock(), **how)  # type: ignore[arg-type]
    folder = record(home.runs, recording, **outer)  # type: ignore[arg-type]
    os.utime(folder / "config.json", (CREATED + 1000 - age,) * 2)
    if ended is not None:
        os.utime(folder / "decision.json", (ended, ended))
    return folder


def test_an_empty_home_has_no_runs_and_never_succeeded(exporter: Exporter) -> None:
    found = exporter.samples()
    assert found[sample("toto_runs", outcome="promoted")] == 0
    assert found[sample("toto_last_success_timestamp_seconds")] == 0
    assert not any(name.startswith(("toto_last_run", "toto_champion", "toto_data")) for name, _ in found)


def test_runs_are_counted_by_outcome_and_the_newest_of_each_is_told(exporter: Exporter) -> None:
    home = exporter.home
    recorded(home, "promoted-old", age=500, ended=CREATED + 100)
    recorded(home, "promoted-new", age=400, ended=CREATED + 5000, dies_after=15)
    recorded(home, "refused", age=300, ended=CREATED + 6000, promoted=False)
    recorded(home, "failed", age=200, fails_after=7, evaluated=False, promoted=None)
    recorded(home, "trained", age=100, evaluated=False, promoted=None)
    exposition = exporter.text()
    check_with_promtool(exposition)
    found = samples(exposition)
    runs = {dict(labels)["outcome"]: value for (name, labels), value in found.items() if name == "toto_runs"}
    none = dict.fromkeys(("canceled", "unfinished", "interrupted"), 0)
    assert runs == {"promoted": 2, "refused": 1, "failed": 1, "trained": 1} | none
    report = json.loads((home.run("promoted-new") / "evaluation" / "report.json").read_bytes())
    expected = {
        sample("toto_last_success_timestamp_seconds"): CREATED + 6000,
        sample("toto_last_start_timestamp_seconds"): CREATED,
        sample("toto_last_run_timestamp_seconds", outcome="promoted"): CREATED + 5000,
        sample("toto_last_run_duration_seconds", outcome="promoted"): 5000,
        sample("toto_last_run_attempts", outcome="promoted"): 2,
        sample("toto_last_run_epochs", outcome="promoted"): 2,
        sample("toto_last_run_epochs", outcome="failed"): 0,
        sample("toto_last_run_info", outcome="trained", **FACTS): 1,
        sample("toto_home_problems"): 0,
    } | {
        sample("toto_last_run_score", outcome="promoted", model=model, metric=metric): value
        for model, scores in report["models"].items()
        for metric, value in scores.items()
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found[sample("toto_last_run_training_seconds", outcome="failed")] > 0
    assert 'run="trained"' in exposition


FACTS = {"data_fingerprint": "5eed" * 16, "code_version": "0.1.0+g1a2b3c4d5e"}


def test_a_run_that_lives_is_told_from_one_whose_process_is_gone(exporter: Exporter) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for run, pid in (("lives", os.getpid()), ("gone", gone.pid)):
        how = {"stops_after": 5, "pid": pid, "host": platform.node()}
        recorded(exporter.home, run, evaluated=False, promoted=None, **how)
    found = exporter.samples()
    assert found[sample("toto_runs", outcome="unfinished")] == 1
    assert found[sample("toto_runs", outcome="interrupted")] == 1
    assert sample("toto_last_run_epochs", outcome="interrupted") in found
    assert sample("toto_last_run_epochs", outcome="unfinished") not in found, "it is not over"


def test_the_end_of_a_run_is_seen(exporter: Exporter) -> None:
    how = {"stops_after": 5, "pid": os.getpid(), "host": platform.node()}
    folder = recorded(exporter.home, "run", evaluated=False, promoted=None, **how)
    assert exporter.samples()[sample("toto_runs", outcome="unfinished")] == 1
    ending = {"schema": 1, "type": "run_ended", "attempt": 1, "time": CREATED + 70, "outcome": "canceled"}
    with (folder / "events.jsonl").open("ab") as log:
        log.write(orjson.dumps(ending) + b"\n")
    found = exporter.samples()
    assert found[sample("toto_runs", outcome="canceled")] == 1
    assert found[sample("toto_last_run_timestamp_seconds", outcome="canceled")] == CREATED + 70
    (folder / "decision.json").write_bytes(orjson.dumps({"promote": True, "version": "1", "rules": []}))
    assert exporter.samples()[sample("toto_runs", outcome="promoted")] == 1


def test_a_log_is_read_again_only_when_there_is_something_new(exporter: Exporter) -> None:
    """The beginning of the log is spoilt: who reads it again gets another time of training."""
    folder = recorded(exporter.home, "run", ended=CREATED + 50)
    before = exporter.samples()
    log = folder / "events.jsonl"
    log.write_bytes(b"#" * 20 + log.read_bytes()[20:])
    assert exporter.samples() == before
    (folder / "config.json").touch()
    trained = sample("toto_last_run_training_seconds", outcome="promoted")
    assert exporter.samples()[trained] != before[trained]


def test_one_damaged_run_hides_no_other(exporter: Exporter, caplog: pytest.LogCaptureFixture) -> None:
    home = exporter.home
    recorded(home, "whole", ended=CREATED + 50)
    (recorded(home, "torn", evaluated=False) / "decision.json").write_text('{"promote": tr')
    unreadable = recorded(home, "unreadable") / "events.jsonl"
    unreadable.unlink()
    unreadable.mkdir()
    (home.snapshots / "abc").mkdir()
    (home.snapshots / "abc" / "manifest.json").write_text("{")
    for _ in range(2):
        found = exporter.samples()
        assert found[sample("toto_runs", outcome="promoted")] == 1
        assert found[sample("toto_home_problems")] == 3
    assert sum(str(unreadable.parent) in one.getMessage() for one in caplog.records) == 1


def test_the_age_of_the_newest_data_is_told(exporter: Exporter) -> None:
    for name, created, end in (
        ("old", "2026-05-01T00:00:00+00:00", "2026-04-30T23:00:00"),
        ("new", "2026-05-02T00:00:00+00:00", "2026-05-01T23:00:00+02:00"),
    ):
        (exporter.home.snapshots / name).mkdir()
        manifest = {"created": created, "end": end, "n_series": 26}
        (exporter.home.snapshots / name / "manifest.json").write_text(json.dumps(manifest))
    found = exporter.samples()
    assert found[sample("toto_data_snapshot_timestamp_seconds")] == 1777680000
    assert found[sample("toto_data_end_timestamp_seconds")] == 1777680000 - 3600 - 7200
    assert found[sample("toto_data_series")] == 26


def test_a_registry_that_is_down_leaves_the_champion_that_was_known(exporter: Exporter) -> None:
    assert sample("toto_registry_up") not in exporter.samples()
    exporter.answer = CHAMPION
    exporter.watch.refresh()
    check_with_promtool(exporter.text())
    exporter.answer = RegistryError("the model registry cannot be reached")
    assert exporter.samples()[sample("toto_registry_up")] == 1
    exporter.watch.refresh()
    found = exporter.samples()
    assert found[sample("toto_registry_up")] == 0
    assert found[sample("toto_champion_version", model="toto")] == 4
    assert found[sample("toto_champion_created_timestamp_seconds", model="toto")] == CREATED
    assert found[sample("toto_champion_score", model="toto", metric="SQL")] == 0.6
    assert found[sample("toto_champion_info", model="toto", version="4")] == 1
    exporter.answer = None
    exporter.watch.refresh()
    found = exporter.samples()
    assert found[sample("toto_registry_up")] == 1
    assert not any(name.startswith("toto_champion") for name, _ in found)


def test_the_champion_is_asked_for_by_a_thread(home: Home) -> None:
    asked: list[float] = []

    def ask() -> Champion:
        asked.append(time.monotonic())
        return CHAMPION

    with ChampionWatch(ask, seconds=0.01) as watch:
        deadline = time.monotonic() + 30
        while len(asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(asked) >= 3
    assert watch.champion == CHAMPION
