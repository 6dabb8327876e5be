"""`toto-pipeline follow`: what it shows, what it finishes, what it exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toto_pipeline.events.log import read_events
from toto_pipeline.home import Home
from toto_pipeline.monitoring.status import read_status
from toto_pipeline_tests.monitoring.small_sinks import (
    PATIENCE_SECONDS,
    Trainer,
    calls,
    command,
    environment,
    make_package,
    outcomes,
    wait_until,
    write_run,
    written,
)

RUN = "3f2a9c10-7d54-4f0e-9b1c-5a8e2f6d4b21"


class Setting:
    """A home with one run, and the command line beside a package with sinks."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home").prepare()
        self.run_folder = self.home.run(RUN)
        self.run_folder.mkdir()
        (self.run_folder / "config.json").write_text("{}")
        self.package = make_package(folder / "package")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "toto_pipeline.cli", "--home", str(self.home.root), "follow", *words],
            env={**environment(self.package), "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        return self.end(self.start(*words))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, error = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, out, error

    def follower(self, *words: str) -> subprocess.Popen[str]:
        """A follower that is not the command's."""
        process = subprocess.Popen(
            command(self.run_folder, {"file": {}}, *words),
            env=environment(self.package),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_run_that_has_ended_is_finished(setting: Setting) -> None:
    events = write_run(setting.run_folder, 5)
    code, out, error = setting.run("latest", "--sinks", "file")
    assert code == 0, error
    assert "done" in out and "every sink has everything" in out
    assert written(setting.run_folder) == events
    code, out, _ = setting.run(RUN[:4])  # the sinks are kept with the run
    assert code == 0 and "every sink has everything" in out
    assert len(calls(setting.run_folder)) == 2


def test_json_is_all_that_is_on_standard_output(setting: Setting) -> None:
    events = write_run(setting.run_folder, 5, outcome="stopped")
    code, out, error = setting.run("--sinks", "file", "--json")
    assert code == 0, error
    status = json.loads(out)
    assert (status["run"], status["folder"], status["outcome"]) == (RUN, str(setting.run_folder), "stopped")
    assert status["sinks"]["file"]["state"] == "done"
    assert status["sinks"]["file"]["events"] == len(events)


def test_a_run_under_way_is_fed_and_shown_until_it_has_ended(setting: Setting) -> None:
    with Trainer(setting.run_folder) as trainer:
        process = setting.start("--sinks", "file")
        trainer.step(5)
        assert process.stdout is not None
        assert process.stdout.readline() == "file: fed\n"
        wait_until(lambda: len(written(setting.run_folder)) == 6)
        trainer.end()
        code, out, error = setting.end(process)
    assert code == 0, error
    assert "The run has ended: completed; every sink has everything." in out


def test_a_run_that_is_followed_already_is_shown(setting: Setting) -> None:
    with Trainer(setting.run_folder) as trainer:
        first = setting.follower()
        trainer.step(5)
        wait_until(lambda: len(written(setting.run_folder)) == 6)
        wait_until(lambda: (status := read_status(setting.run_folder)) and status.sinks)
        process = setting.start("latest")
        assert process.stdout is not None
        assert process.stdout.readline() == "file: fed\n"
        trainer.end()
        assert setting.end(process)[0] == 0
        first.communicate(timeout=PATIENCE_SECONDS)
    assert [call["pid"] for call in calls(setting.run_folder)] == [first.pid, first.pid]


def test_interrupted_it_takes_its_follower_with_it_and_leaves_the_cursors(setting: Setting) -> None:
    with Trainer(setting.run_folder) as trainer:
        process = setting.start("--sinks", "file")
        trainer.step(5)
        wait_until(lambda: len(written(setting.run_folder)) == 6)
        process.send_signal(signal.SIGINT)
        assert setting.end(process)[0] == 130
        status = read_status(setting.run_folder)
        assert status is not None and not status.is_at_work
        assert outcomes(setting.run_folder) == [None]
        trainer.step(5)
        trainer.end()
    assert setting.run()[0] == 0
    assert written(setting.run_folder) == list(read_events(setting.run_folder))


def test_a_sink_is_fed_from_the_start_again(setting: Setting) -> None:
    events = write_run(setting.run_folder, 5)
    assert setting.run("--sinks", "file,other")[0] == 0
    (setting.run_folder / "file" / "events.jsonl").unlink()
    assert setting.run("--restart", "file")[0] == 0
    assert written(setting.run_folder) == events


def test_a_run_that_is_followed_is_not_restarted(setting: Setting) -> None:
    with Trainer(setting.run_folder):
        first = setting.follower()
        wait_until(lambda: len(written(setting.run_folder)) == 1)
        wait_until(lambda: read_status(setting.run_folder))
        code, _, error = setting.run("--restart", "file")
    assert code == 1
    assert f"process {first.pid} follows this run" in error and "What to do" in error


def test_one_sink_is_fed_and_the_others_stay_where_they_are(setting: Setting) -> None:
    write_run(setting.run_folder, 5)
    kept = setting.run_folder / "monitoring" / "sinks.json"
    kept.parent.mkdir()
    kept.write_text('{"file": {}, "broken": {}}')
    assert setting.run("--sinks", "file")[0] == 0
    assert [call["call"] for call in calls(setting.run_folder)] == ["open", "close"]
    code, out, _ = setting.run()
    assert code == 1
    assert "disabled" in out and "broken behind" in out
    code, out, _ = setting.run("--json")
    assert code == 1
    broken = json.loads(out)["sinks"]["broken"]
    assert broken["state"] == "disabled" and "cannot be imported" in broken["error"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--sinks", "tensorbord"], 2, "did you mean 'tensorboard'"),
        (["latest"], 2, "no sinks are named"),
        (["abc"], 1, "fits no run"),
    ],
)
def test_a_mistake_gets_a_message_and_an_exit_code(setting: Setting, words: list[str], code: int, message: str) -> None:
    write_run(setting.run_folder, 1)
    found, out, error = setting.run(*words)
    assert (found, out) == (code, "")
    assert message in error and "Traceback" not in error


def test_a_run_that_ended_before_its_training_is_not_waited_for(setting: Setting) -> None:
    (setting.run_folder / "outcome.json").write_text("{}")
    code, _, error = setting.run("latest", "--sinks", "file")
    assert code == 1 and "holds no event log" in error


def test_any_folder_with_a_log_can_be_followed(setting: Setting, tmp_path: Path) -> None:
    events = write_run(tmp_path / "elsewhere", 3)
    code, _, error = setting.run(os.path.relpath(tmp_path / "elsewhere"), "--sinks", "file")
    assert code == 0, error
    assert written(tmp_path / "elsewhere") == events


def test_help_teaches_with_examples(setting: Setting) -> None:
    code, out, _ = setting.run("--help")
    assert code == 0
    assert "Examples" in out and "toto-pipeline follow 3f2a --restart mlflow  " in out
