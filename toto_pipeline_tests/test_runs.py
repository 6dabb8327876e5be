"""What is read from a run's folder, complete, half done or damaged."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import pytest

from toto_pipeline.home import Home
from toto_pipeline.runs import (
    Outcome,
    Stage,
    current_state,
    describe,
    list_runs,
    read_run,
    write_config,
    write_outcome,
)
from toto_pipeline_tests.fixtures.recorded_run import CREATED, RUN, Recording, record

FAILED = Outcome(
    outcome="failed",
    message="prices.csv, row 3: not a number",
    exit_code=3,
    stages=(Stage(stage="series_snapshot", state="failed", seconds=0.25, message="not a number"),),
)


def test_a_finished_run_tells_everything(tmp_path: Path) -> None:
    run = read_run(record(tmp_path))
    assert (run.run, run.created, run.state, run.metric) == (RUN, CREATED, "promoted", "SQL")
    assert run.gain("seasonal_naive") == pytest.approx(1 - 0.5871 / 1.1824)
    assert run.gain("champion", "MASE") == pytest.approx(1 - 0.7362 / 0.7518)
    assert list(run.scores) == ["candidate", "seasonal_naive", "champion"]
    assert len(run.progress.finished_epochs) == 9
    assert run.problems == ()


@pytest.mark.parametrize(
    ("recording", "flags", "state"),
    [
        ({}, {"promoted": False}, "refused"),
        ({}, {"promoted": None}, "trained"),
        ({"fails_after": 50}, {"promoted": None, "evaluated": False}, "failed"),
        ({"stops_after": 50}, {"promoted": None, "evaluated": False}, "unfinished"),
        ({}, {"trained": False, "promoted": None, "evaluated": False}, "unfinished"),
    ],
)
def test_the_state_follows_from_how_far_it_came(
    tmp_path: Path, recording: dict[str, int], flags: dict[str, bool], state: str
) -> None:
    assert read_run(record(tmp_path, Recording(**recording), **flags)).state == state  # type: ignore[arg-type]


def test_a_dead_process_of_this_machine_is_told_from_a_living_one(tmp_path: Path) -> None:
    def stopped(name: str, pid: int) -> str:
        recording = Recording(run=name, stops_after=50, host=socket.gethostname(), pid=pid)
        return current_state(read_run(record(tmp_path, recording, evaluated=False, promoted=None)))

    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert stopped("living", os.getpid()) == "unfinished"
    assert stopped("dead", child) == "interrupted"


def test_a_refusal_gives_its_reason(tmp_path: Path) -> None:
    run = read_run(record(tmp_path, promoted=False))
    assert run.reason == "SQL may be up to 4.1 % higher than the champion's 0.6012."


def test_the_outcome_of_the_command_is_kept_and_wins(tmp_path: Path) -> None:
    folder = record(tmp_path, trained=False, evaluated=False, promoted=None)
    write_outcome(folder, FAILED)
    run = read_run(folder)
    assert run.outcome == FAILED
    assert (run.state, run.reason) == ("failed", "prices.csv, row 3: not a number")


def test_damaged_files_become_problems_in_words(tmp_path: Path) -> None:
    folder = record(tmp_path)
    (folder / "decision.json").write_bytes(b'{"promote"')
    (folder / "evaluation" / "report.json").write_bytes(b'{"models": {"candidate": 3}}')
    run = read_run(folder)
    assert run.state == "trained"
    assert [problem.partition(":")[0] for problem in run.problems] == ["evaluation/report.json", "decision.json"]


def test_a_description_is_json_without_nan(tmp_path: Path) -> None:
    described = describe(read_run(record(tmp_path, trained=False, evaluated=False, promoted=None)))
    assert described["best_validation_loss"] is None
    assert described["state"] == "unfinished"
    assert not any(isinstance(value, float) and math.isnan(value) for value in described.values())


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for index, name in enumerate(("first", "second", "third")):
        folder = record(home.runs, Recording(run=name, epochs=1))
        os.utime(folder / "config.json", (index, index))
    assert [run.run for run in list_runs(home, limit=2)] == ["third", "second"]


def test_a_config_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    write_config(tmp_path / "r", {"preset": "sample"}, 1.0)
    write_config(tmp_path / "r", {"preset": "other"}, 2.0)
    assert read_run(tmp_path / "r").config == {"preset": "sample", "run": "r", "created": 1.0}
