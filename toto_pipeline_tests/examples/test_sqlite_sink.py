"""The example of a sink, as a package that is built and installed: found by its name, each event in it once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from toto_pipeline.config import load_settings
from toto_pipeline.errors import ConfigError
from toto_pipeline.events.log import read_events
from toto_pipeline.monitoring.feed import read_record
from toto_pipeline.monitoring.sink import FollowedRun
from toto_pipeline_tests.contracts.tools import TOOLS, every_number, query
from toto_pipeline_tests.fixtures.recorded_run import Recording, record
from toto_pipeline_tests.monitoring.small_sinks import environment, make_package

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sqlite_sink"
TOOL = TOOLS["sqlite"]
LOOP = """
import sys
from toto_pipeline.events import TrainingLogger
with TrainingLogger(sys.argv[1], sinks=["sqlite"], console=False) as log:
    for step in range(1, 21):
        log.step(loss=1.0 / step)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the path of modules, with the package built and installed as pip does it."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(EXAMPLE, folder / "source")  # a build leaves files beside what it builds
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--python", sys.executable, "--target", str(folder / "packages"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "packages"


def recorded(folder: Path, **course: int) -> FollowedRun:
    recording = Recording(**{"epochs": 2, "steps_per_epoch": 8, **course})
    return FollowedRun(record(folder, recording, evaluated=False, promoted=None))


def follow(run: FollowedRun, packages: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toto_pipeline.cli", "follow", str(run.folder), *words],
        env=environment(packages),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_installed_sink_is_found_by_its_name_and_has_each_event_once(tmp_path: Path, installed: Path) -> None:
    run = recorded(tmp_path, dies_after=13)
    done = follow(run, installed, "--sinks", "sqlite")
    assert done.returncode == 0, done.stderr
    assert "every sink has everything" in done.stdout
    events = list(read_events(run.folder))
    assert TOOL.shown(run) == every_number(events)
    assert query(run, "SELECT run, events, outcome FROM runs") == [(run.name, len(events), "completed")]


def test_a_follower_killed_between_write_and_cursor_doubles_nothing(tmp_path: Path, installed: Path) -> None:
    run = recorded(tmp_path)
    dying = make_package(tmp_path / "dying", {"sqlite": "toto_pipeline_tests.examples.dying_sqlite:DyingSqliteSink"})
    killed = subprocess.run(
        [sys.executable, "-m", "toto_pipeline.monitoring", str(run.folder), "--sinks", '{"sqlite": {}}'],
        env=environment(Path(f"{installed}{os.pathsep}{dying}")),  # of two of one name the later is taken
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert TOOL.shown(run) != []
    assert read_record(run.folder, "sqlite").events == 0  # the follower knows of nothing that was written
    done = follow(run, installed, "--sinks", "sqlite")
    assert done.returncode == 0, done.stderr
    assert TOOL.shown(run) == every_number(list(read_events(run.folder)))


def test_a_plain_loop_feeds_it_by_its_name(tmp_path: Path, installed: Path) -> None:
    run = FollowedRun(tmp_path / "mine")
    subprocess.run([sys.executable, "-c", LOOP, str(run.folder)], env=environment(installed), check=True, timeout=120)
    assert follow(run, installed).returncode == 0  # waits for the loop's own follower
    losses = query(run, "SELECT step, value FROM current WHERE name = 'train/loss' ORDER BY step")
    assert losses == [(step, 1.0 / step) for step in range(1, 21)]


def test_what_a_later_attempt_has_done_again_is_not_current(tmp_path: Path) -> None:
    run = recorded(tmp_path, dies_after=13)
    sink = TOOL.make()
    sink.open(run, {})
    sink.write(list(read_events(run.folder)))
    sink.close("completed")
    attempts = dict(query(run, "SELECT step, attempt FROM current WHERE name = 'train/loss'"))
    assert attempts == {step: 1 if step <= 8 else 2 for step in range(1, 17)}
    assert query(run, "SELECT COUNT(*) FROM measurements WHERE name = 'train/loss'") == [(13 + 8,)]


def test_two_names_that_are_alike_are_both_kept(tmp_path: Path) -> None:
    run = FollowedRun(tmp_path)
    sink = TOOL.make()
    sink.open(run, {})
    sink.write([{"type": "epoch", "time": 1.0, "step": 1, "validation_loss": 0.5, "metrics": {"loss": 0.25}}])
    sink.close(None)
    assert sorted(TOOL.shown(run)) == [("validation/loss", 1, 0.25), ("validation/loss", 1, 0.5)]


def test_runs_share_a_database_and_keep_out_of_each_others_way(tmp_path: Path, installed: Path) -> None:
    runs = [recorded(tmp_path / name, epochs=epochs) for name, epochs in (("a", 2), ("b", 3))]
    runs = [FollowedRun(run.folder.rename(run.folder.with_name(f"run_{k}"))) for k, run in enumerate(runs)]
    file = tmp_path / "all.db"
    settings = f'{{"sqlite": {{"database": "{file}"}}}}'
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "toto_pipeline.monitoring", str(run.folder), "--sinks", settings],
            env=environment(installed),
        )
        for run in runs
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    with closing(sqlite3.connect(file)) as database:
        steps = database.execute("SELECT run, COUNT(*) FROM current WHERE name = 'train/loss' GROUP BY run").fetchall()
    assert sorted(steps) == [("run_0", 16), ("run_1", 24)]


def test_a_database_that_was_lost_is_named_and_filled_anew(tmp_path: Path, installed: Path) -> None:
    run = recorded(tmp_path)
    assert follow(run, installed, "--sinks", "sqlite").returncode == 0
    state = read_record(run.folder, "sqlite").state
    shutil.rmtree(run.folder / "sqlite")
    with pytest.raises(ConfigError, match=r"holds 0 events .* Expected: the 22 .*--restart sqlite"):
        TOOL.make().open(run, state)
    assert follow(run, installed, "--restart", "sqlite").returncode == 0
    assert TOOL.shown(run) == every_number(list(read_events(run.folder)))


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sqlite" / "measurements.db"
    file.parent.mkdir()
    file.write_text("this is a letter, and no database, as everybody sees " * 20)
    with pytest.raises(ConfigError, match="is not a SQLite database"):
        TOOL.make().open(FollowedRun(tmp_path), {})


def test_what_the_readme_says_works(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands are those of the tests above, and what is given to them is this."""
    monkeypatch.syspath_prepend(str(installed))
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    (assignment,) = re.findall(r"retrain --set '(.*)'", text)
    assert load_settings(assignments=[assignment]).monitoring.sinks == {"sqlite": {}, "mlflow": {}}
    (assignment,) = re.findall(r"`(monitoring\.sinks=[^`]*)`", text)
    assert load_settings(assignments=[assignment]).monitoring.sinks == {"sqlite": {"database": "runs.db"}}
    (select,) = re.findall(r'"(SELECT .*)"', text)
    run = recorded(tmp_path)
    assert follow(run, installed, "--sinks", "sqlite").returncode == 0
    assert [step for step, _ in query(run, select)] == list(range(1, 17))


def test_what_came_after_the_state_is_gone_as_soon_as_the_sink_is_open(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    events = list(read_events(run.folder))
    for state in ({}, {"events": 5}):
        sink = TOOL.make()
        sink.open(run, state)
        if not state:
            sink.write(events)
        sink.close(None)
    assert TOOL.shown(run) == every_number(events[:5])
    assert query(run, "SELECT events FROM runs") == [(5,)]
