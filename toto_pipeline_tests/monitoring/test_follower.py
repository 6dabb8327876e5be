"""The follower as a real process: killed, stopped, doubled, orphaned, and with sinks that misbehave."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from toto_pipeline.events.log import end_of_log, read_events
from toto_pipeline.events.processes import is_alive, process_name
from toto_pipeline.home import Home
from toto_pipeline.monitoring.follower import follower_lock
from toto_pipeline.monitoring.start import Follower, start_follower
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

FILE: dict[str, dict[str, Any]] = {"file": {}}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def start(package: Path, run_folder: Path) -> Iterator[Start]:
    """Starts followers of the run; kills at the end of the test what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def begin(sinks: Mapping[str, Mapping[str, Any]] | None = FILE, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(run_folder, sinks, *words), env=environment(package), stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what was said."""
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, said


def test_a_run_is_followed_to_its_end(run_folder: Path, start: Start) -> None:
    with Trainer(run_folder) as trainer:
        follower = start()
        trainer.step(10)
        wait_until(lambda: len(written(run_folder)) == 11)
        trainer.end("stopped")
        code, said = ended(follower)
    assert code == 0, said
    assert written(run_folder) == list(read_events(run_folder))
    assert outcomes(run_folder) == ["stopped"]
    status = read_status(run_folder)
    assert status is not None and not status.is_at_work
    assert status.outcome == "stopped"
    assert status.sinks["file"].state == "done"
    assert status.sinks["file"].events == 12
    assert status.sinks["file"].bytes_behind == 0
    assert status.sinks["file"].cursor == tuple(end_of_log(run_folder).to_json())


@pytest.mark.parametrize("seed", range(3))
def test_a_follower_that_is_killed_again_and_again_leaves_every_event_once(
    run_folder: Path, start: Start, seed: int
) -> None:
    """Killed before a write, within it, and between it and the keeping of the cursor."""
    chance = random.Random(seed)
    write_run(run_folder, 3000)
    for when in chance.sample(["before", "halfway", "after"], 3):
        code, said = ended(start({"file": {"kill": (when, chance.randint(1, 2))}}))
        assert code in (-signal.SIGKILL, 0), said
    assert ended(start())[0] == 0
    assert written(run_folder) == list(read_events(run_folder))
    assert outcomes(run_folder) == ["completed"]


def test_kill_at_any_instant_from_outside(run_folder: Path, start: Start) -> None:
    with Trainer(run_folder) as trainer:
        for count in (5, 1, 17):
            follower = start()
            before = len(written(run_folder))
            trainer.step(count)
            wait_until(lambda before=before: len(written(run_folder)) > before)
            follower.kill()
            assert ended(follower)[0] == -signal.SIGKILL
        trainer.end()
    assert ended(start())[0] == 0
    assert written(run_folder) == list(read_events(run_folder))
    assert len(written(run_folder)) == 1 + 5 + 1 + 17 + 1


def test_a_trainer_killed_with_9_ends_as_killed(run_folder: Path, start: Start) -> None:
    with Trainer(run_folder) as trainer:
        follower = start()
        trainer.step(10)
        wait_until(lambda: len(written(run_folder)) == 11)
        trainer.kill()
        assert ended(follower)[0] == 0
    assert outcomes(run_folder) == ["killed"]
    assert len(written(run_folder)) == 11
    status = read_status(run_folder)
    assert status is not None and status.outcome == "killed"


def test_while_the_supervisor_lives_another_attempt_is_waited_for(run_folder: Path, start: Start) -> None:
    supervisor = subprocess.Popen(["sleep", "600"])
    try:
        name = process_name(psutil.Process(supervisor.pid))
        with Trainer(run_folder, supervisor=name) as trainer:
            follower = start()
            trainer.step(5)
            wait_until(lambda: len(written(run_folder)) == 6)
        with Trainer(run_folder, attempt=2, supervisor=name) as trainer:
            trainer.step(5)
            wait_until(lambda: len(written(run_folder)) == 12)
            assert follower.poll() is None and outcomes(run_folder) == []
        assert follower.poll() is None
    finally:
        supervisor.kill()
        supervisor.wait()
    assert ended(follower)[0] == 0
    assert outcomes(run_folder) == ["killed"]


def test_a_retry_is_followed_by_the_next_process(run_folder: Path, start: Start) -> None:
    write_run(run_folder, 5, outcome="failed")
    assert ended(start())[0] == 0
    write_run(run_folder, 9, attempt=2)
    assert ended(start())[0] == 0
    assert written(run_folder) == list(read_events(run_folder))
    assert outcomes(run_folder) == ["failed", "completed"]


def test_terminated_it_leaves_the_sinks_at_their_cursors(run_folder: Path, start: Start) -> None:
    with Trainer(run_folder) as trainer:
        follower = start()
        trainer.step(10)
        wait_until(lambda: len(written(run_folder)) == 11)
        follower.terminate()
        code, said = ended(follower)
        assert code == 143 and "cursors" in said
        assert outcomes(run_folder) == [None]
        trainer.step(5)
        trainer.end()
    assert ended(start())[0] == 0
    assert written(run_folder) == list(read_events(run_folder))
    assert outcomes(run_folder) == [None, "completed"]


def test_terminated_while_a_sink_hangs_it_ends_all_the_same(run_folder: Path, tmp_path: Path, start: Start) -> None:
    (tmp_path / "hang").touch()
    sinks = {"file": {"hangs_while": str(tmp_path / "hang")}, "other": {"folder": "other"}}
    write_run(run_folder, 3)
    follower = start(sinks)
    wait_until(lambda: outcomes(run_folder, "other") == ["completed"])
    follower.terminate()
    assert ended(follower)[0] == 143


def test_the_end_is_bounded_and_names_who_is_behind(run_folder: Path, tmp_path: Path, start: Start) -> None:
    hang, fail, wrong = tmp_path / "hang", tmp_path / "fail", tmp_path / "wrong"
    for file in (hang, fail, wrong):
        file.touch()
    sinks = {
        "file": {"hangs_while": str(hang)},
        "other": {"folder": "other", "fails_while": str(fail)},
        "third": {"folder": "third", "wrong_while": str(wrong)},
        "fourth": {"folder": "fourth"},
    }
    make_package(tmp_path / "package", dict.fromkeys(("third", "fourth"), SINK), name="more-sinks")
    events = write_run(run_folder, 3)
    begin = time.monotonic()
    code, said = ended(start(sinks, "--drain", "2"))
    assert code == 1
    assert time.monotonic() - begin < 30
    assert "behind when the follower ended: file, other, third" in said
    assert f"toto-pipeline follow {run_folder}" in said
    assert written(run_folder, "fourth") == events and outcomes(run_folder, "fourth") == ["completed"]
    status = read_status(run_folder)
    assert status is not None
    assert {name: sink.state for name, sink in status.sinks.items()} == {
        "file": "ok",
        "other": "retrying",
        "third": "disabled",
        "fourth": "done",
    }
    assert status.sinks["file"].seconds_behind > 0 and status.sinks["file"].bytes_behind > 0
    assert "server is away" in str(status.sinks["other"].error)
    for file in (hang, fail, wrong):
        file.unlink()
    assert ended(start(None))[0] == 0  # the sinks and their settings are kept with the run
    for folder in ("file", "other", "third"):
        assert written(run_folder, folder) == events and outcomes(run_folder, folder) == ["completed"]
    assert outcomes(run_folder, "fourth") == ["completed"]


SINK = "toto_pipeline_tests.monitoring.small_sinks:FileSink"


def test_a_plug_in_that_cannot_be_imported_holds_nobody(run_folder: Path, start: Start) -> None:
    events = write_run(run_folder, 3)
    code, said = ended(start({"broken": {}, "file": {}}))
    assert code == 1
    assert "no_such_module_of_a_plug_in:Sink of small-sinks 1.2 cannot be imported" in said
    assert written(run_folder) == events and outcomes(run_folder) == ["completed"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sinks", '{"tensorbord": {}}'], "did you mean 'tensorboard'"),
        (["--sinks", "tensorboard"], "Expected: JSON such as"),
        (["--sinks", "{}"], "no sinks are named"),
        (["--sinks", '{"file": {}}', "--restart", "other"], "no sink 'other'"),
    ],
)
def test_a_mistake_gets_a_message_and_an_exit_code(
    run_folder: Path, start: Start, words: list[str], expected: str
) -> None:
    code, said = ended(start(None, *words))
    assert code == 2
    assert expected in said and "Traceback" not in said


def test_a_second_follower_waits_and_finds_all_done(run_folder: Path, start: Start) -> None:
    with Trainer(run_folder) as trainer:
        first = start()
        trainer.step(3)
        wait_until(lambda: len(written(run_folder)) == 4)
        second = start()
        wait_until(lambda: _waits_for_a_lock(second.pid))
        code, said = ended(start(FILE, "--no-wait"))
        assert code == 0 and "another process follows this run" in said
        trainer.end()
        assert ended(first)[0] == 0
        assert ended(second)[0] == 0
    assert [call["pid"] for call in calls(run_folder)] == [first.pid, first.pid]
    assert written(run_folder) == list(read_events(run_folder))


def test_a_second_follower_takes_over_when_the_first_is_killed(run_folder: Path, start: Start) -> None:
    with Trainer(run_folder) as trainer:
        first = start()
        trainer.step(3)
        wait_until(lambda: len(written(run_folder)) == 4)
        second = start()
        wait_until(lambda: _waits_for_a_lock(second.pid))
        first.kill()
        trainer.step(3)
        wait_until(lambda: len(written(run_folder)) == 7)
        trainer.end()
        assert ended(second)[0] == 0
    assert written(run_folder) == list(read_events(run_folder))


def _waits_for_a_lock(pid: int) -> bool:
    """Whether the kernel lists the process as one that waits for a lock (`->` in /proc/locks)."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line.split() and str(pid) in line.split() for line in lines)


def test_nothing_heavy_is_imported_by_the_follower_itself(run_folder: Path, start: Start) -> None:
    write_run(run_folder, 3)
    assert ended(start())[0] == 0
    (close,) = [call for call in calls(run_folder) if call["call"] == "close"]
    heavy = ("torch", "mlflow", "tensorboard", "dagster", "pandas", "numpy", "toto2", "prometheus_client", "matplotlib")
    assert [name for name in heavy if name in close["modules"]] == []


def test_a_sink_is_told_the_home_of_a_run_that_lies_in_one(tmp_path: Path, package: Path) -> None:
    home = Home(tmp_path / "home").prepare()
    for folder in (home.run("a"), tmp_path / "runs" / "b"):
        write_run(folder, 1)
        subprocess.run(command(folder, FILE), env=environment(package), check=True)
    assert calls(home.run("a"))[0]["home"] == str(home.root)
    assert calls(tmp_path / "runs" / "b")[0]["home"] == "None"


def test_a_run_that_never_begins_is_left_when_its_starter_is_gone(run_folder: Path, start: Start) -> None:
    starter = subprocess.Popen(["sleep", "600"])
    follower = start(FILE, "--for", process_name(psutil.Process(starter.pid)))
    wait_until(lambda: read_status(run_folder))
    assert follower.poll() is None
    starter.kill()
    starter.wait()
    code, said = ended(follower)
    assert code == 0 and "not begun" in said
    assert calls(run_folder) == []


def test_a_full_disk_delays_and_loses_nothing(run_folder: Path, start: Start) -> None:
    """While no file of the follower may grow, neither its status nor a cursor nor what the sink has can be written."""
    with Trainer(run_folder) as trainer:
        follower = start()
        trainer.step(3)
        wait_until(lambda: len(written(run_folder)) == 4)
        process, before = psutil.Process(follower.pid), psutil.Process(follower.pid).rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
        trainer.step(3)
        assert follower.stderr is not None
        line = follower.stderr.readline()
        while "It is tried again" not in line:
            assert "status is not written" in line
            line = follower.stderr.readline()
        process.rlimit(psutil.RLIMIT_FSIZE, before)
        trainer.end()
        assert ended(follower)[0] == 0
    assert written(run_folder) == list(read_events(run_folder))
    status = read_status(run_folder)
    assert status is not None and status.sinks["file"].failures > 0


# What starts a follower


@pytest.fixture
def visible(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, and those it starts, find the sinks of the package."""
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("PYTHONPATH", environment(package)["PYTHONPATH"])


@pytest.mark.usefixtures("visible")
def test_a_run_is_followed_from_before_it_begins_and_settles(run_folder: Path) -> None:
    with start_follower(run_folder, FILE, drain_seconds=20) as follower:
        wait_until(follower.status)
        with Trainer(run_folder) as trainer:
            trainer.step(10)
            trainer.end()
            assert follower.settle(PATIENCE_SECONDS) == []
            assert written(run_folder) == list(read_events(run_folder))
    assert follower.wait(PATIENCE_SECONDS) and follower.exit_code == 0
    assert outcomes(run_folder) == ["completed"]


@pytest.mark.usefixtures("visible")
def test_a_retry_in_the_same_folder_is_waited_for(run_folder: Path) -> None:
    write_run(run_folder, 3, outcome="failed")
    with start_follower(run_folder, FILE) as follower:
        wait_until(lambda: len(written(run_folder)) == 5)
        with Trainer(run_folder, attempt=2) as trainer:
            trainer.step(10)
            wait_until(lambda: len(written(run_folder)) == 16)
            trainer.end()
            assert follower.settle(PATIENCE_SECONDS) == []
    assert follower.wait(PATIENCE_SECONDS)
    assert outcomes(run_folder) == ["completed"]


@pytest.mark.usefixtures("visible")
def test_a_training_that_does_not_begin_stops_its_follower(run_folder: Path) -> None:
    with pytest.raises(RuntimeError), start_follower(run_folder, FILE) as follower:
        wait_until(follower.status)
        raise RuntimeError("refused")
    assert follower.exit_code == 143


@pytest.mark.usefixtures("visible")
def test_who_is_behind_or_disabled_is_named_with_the_command_that_finishes_it(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    sinks = {"file": {"fails_while": str(tmp_path / "fail")}, "broken": {}, "other": {"folder": "other"}}
    with start_follower(run_folder, sinks, drain_seconds=2) as follower, Trainer(run_folder) as trainer:
        trainer.step(3)
        trainer.end()
        wait_until(lambda: follower.exit_code is not None)
        problems = follower.settle(0)
    assert follower.exit_code == 1
    assert len(problems) == 2
    assert problems[0].startswith("file is ") and "server is away" in problems[0]
    assert problems[1].startswith("broken is disabled.") and "cannot be imported" in problems[1]
    assert all(f"`toto-pipeline follow {run_folder}` finishes it." in problem for problem in problems)


@pytest.mark.usefixtures("visible")
def test_a_follower_that_was_killed_is_started_again_when_the_run_settles(run_folder: Path) -> None:
    with start_follower(run_folder, FILE) as follower, Trainer(run_folder) as trainer:
        trainer.step(3)
        wait_until(lambda: len(written(run_folder)) == 4)
        assert follower.pid is not None
        os.kill(follower.pid, signal.SIGKILL)
        wait_until(lambda: follower.exit_code is not None)
        trainer.end()
        assert follower.settle(PATIENCE_SECONDS) == []
    assert follower.wait(PATIENCE_SECONDS)
    assert written(run_folder) == list(read_events(run_folder))


@pytest.mark.usefixtures("visible")
def test_a_follower_that_cannot_work_is_named_with_its_log(run_folder: Path) -> None:
    with start_follower(run_folder, FILE) as follower:
        follower.stop()
    (run_folder / "monitoring" / "sinks.json").write_text("{")
    follower = Follower(run_folder, [], end_of_log(run_folder))
    assert follower.wait(PATIENCE_SECONDS)
    (problem,) = follower.settle(0)
    assert "exit code 2" in problem and "follower.log" in problem
    assert "sinks.json: is damaged" in follower.said()


def test_without_sinks_there_is_no_process(run_folder: Path) -> None:
    with start_follower(run_folder, {}) as follower:
        assert follower.pid is None
        assert follower.settle(0) == []
    assert follower.wait(0) and follower.exit_code == 0


_STARTER = """
import sys, time
from pathlib import Path
from toto_pipeline.monitoring.start import start_follower
from toto_pipeline_tests.monitoring.small_sinks import Trainer
follower = start_follower(Path(sys.argv[1]), {"file": {}})
trainer = Trainer(Path(sys.argv[1]))
trainer.step(3)
print(follower.pid, trainer._process.pid, flush=True)
time.sleep(600)
"""


def test_the_follower_outlives_its_starter_and_sees_the_trainer_die(run_folder: Path, package: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(run_folder)], env=environment(package), stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    follower, trainer = (psutil.Process(int(word)) for word in starter.stdout.readline().split())
    try:
        name = process_name(follower)
        wait_until(lambda: len(written(run_folder)) == 4)
        assert os.getsid(follower.pid) == follower.pid != os.getsid(0)
        assert follower.nice() == os.nice(0) + 5
        os.killpg(starter.pid, signal.SIGKILL) if os.getpgid(starter.pid) == starter.pid else starter.kill()
        starter.wait()
        trainer.kill()
        wait_until(lambda: not is_alive(name))
    finally:
        for process in (follower, trainer):
            if process.is_running():
                process.kill()
    assert outcomes(run_folder) == ["killed"]
    assert json.loads((run_folder / "monitoring" / "sinks.json").read_text()) == FILE


def test_the_lock_is_free_when_its_holder_is_gone(run_folder: Path) -> None:
    with follower_lock(run_folder, wait=False) as first, follower_lock(run_folder, wait=False) as second:
        assert first and not second
    with follower_lock(run_folder, wait=False) as third:
        assert third
