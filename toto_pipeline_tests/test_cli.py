"""The command line, through its entry point: what it prints, what it exits with, and what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from toto_pipeline import __version__, cli
from toto_pipeline.commands.child import Child
from toto_pipeline.commands.display import LiveDisplay
from toto_pipeline.commands.retrain import finish, launch
from toto_pipeline.config import load_settings, setting_names
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.runs import Outcome, Stage, read_run
from toto_pipeline_tests.fixtures.recorded_run import RUN, Recording, record

HEAVY = ("torch", "mlflow", "pandas", "pyarrow", "dagster", "toto2", "numpy", "matplotlib")
COMMAND = [sys.executable, "-m", "toto_pipeline.cli"]


def run(*words: str, home: Path | None = None, width: int = 200) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it."""
    where = [] if home is None else ["--home", str(home)]
    environment = {**os.environ, "COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("TOTO_HOME", None)
    return subprocess.run(
        [*COMMAND, *where, *words], check=False, capture_output=True, text=True, timeout=120, env=environment
    )


def stand_in(scenario: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "toto_pipeline_tests.fixtures.stand_in", scenario, str(folder)]


def launched(tmp_path: Path, scenario: str) -> tuple[Outcome, str, Path]:
    """The outcome of a run whose job is a stand-in, what was printed, and the run's folder."""
    home = Home(tmp_path).prepare()
    folder = home.run("run-1")
    out = Console(file=io.StringIO(), width=200)
    settings = load_settings("sample", None, ["training.epochs=3", "training.steps_per_epoch=40"])
    outcome = launch(home, "run-1", settings.model_dump(mode="json"), out, stand_in(scenario, folder))
    finish(folder, outcome, out, json=False)
    return outcome, out.file.getvalue(), folder  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", [["--help"], ["retrain", "--help"], ["settings", "--json"], ["runs"], ["--version"]])
def test_starting_is_light(tmp_path: Path, words: list[str]) -> None:
    script = (
        "import sys; from toto_pipeline.cli import main\n"
        f"sys.argv = ['toto-pipeline', '--home', {str(tmp_path)!r}, *{words!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_help_teaches_with_examples_that_fit_a_terminal() -> None:
    shown = run("--help", width=80).stdout
    assert "Examples" in shown
    for line in ("toto-pipeline doctor", "toto-pipeline retrain --data 'metrics/*.csv'", "toto-pipeline show latest"):
        assert line in shown
    for command in (
        "retrain",
        "runs",
        "show",
        "compare",
        "forecast",
        "champion",
        "report",
        "doctor",
        "settings",
        "checkpoints",
        "join",
    ):
        assert "Examples" in CliRunner().invoke(cli.app, [command, "--help"]).output


def test_version() -> None:
    assert run("--version").stdout == f"toto-pipeline {__version__}\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["retrain", "--set", "training.epohcs=3"], 2, "did you mean 'training.epochs'"),
        (["retrain", "--set", "preparation.horizon=0"], 2, "preparation.horizon"),
        (["retrain", "--preset", "smaple"], 2, "did you mean 'sample'"),
        (["retrain", "--config", "no-such.yaml"], 2, "no-such.yaml: cannot be read"),
        (["show", "latest"], 1, "toto-pipeline retrain"),
        (["report", "abc"], 1, "No runs in"),
        (["champion"], 1, "There is no champion"),
        (["champion", "--json"], 1, "There is no champion"),
        (["forecast", "--data", "no-such.csv", "--horizon", "4"], 1, "There is no champion"),
        (["forecast", "--data", "sample", "--horizon", "0"], 2, "--horizon"),
    ],
)
def test_a_mistake_gets_a_message_and_an_exit_code(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    done = run(*words, home=tmp_path / "home")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_mistake_in_the_settings_starts_and_leaves_nothing(tmp_path: Path) -> None:
    run("retrain", "--set", "training.epohcs=3", home=tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    done = run("retrain", home=tmp_path / "home")
    assert done.returncode == 6
    assert "TOTO_HOME" in done.stderr


def test_runs_and_show_tell_what_happened(tmp_path: Path) -> None:
    folder = record(tmp_path / "runs", Recording(epochs=3))
    listed = run("runs", home=tmp_path).stdout
    assert re.search(rf"{RUN[:8]} .* promoted +3/3 +0\.\d{{4}} +\+50\.3 % +version 4", listed)
    shown = run("show", RUN[:4], home=tmp_path).stdout
    assert "0.5871" in shown
    assert str(folder) in shown
    assert "passed  SQL is 2.3 % lower than the champion's 0.6012." in shown


def test_json_is_alone_on_standard_output(tmp_path: Path) -> None:
    record(tmp_path / "runs", Recording(epochs=3), promoted=False)
    listed = json.loads(run("runs", "--json", home=tmp_path).stdout)
    assert [one["run"] for one in listed] == [RUN]
    shown = json.loads(run("show", "latest", "--json", home=tmp_path).stdout)
    assert shown["state"] == "refused"
    assert shown["scores"]["candidate"]["SQL"] == 0.5871
    assert shown["rules"][1]["passed"] is False


def test_report_is_written_anew(tmp_path: Path) -> None:
    folder = record(tmp_path / "runs")
    assert run("report", "latest", home=tmp_path).stdout.strip() == str(folder / "report.html")
    assert "Promoted as version 4" in (folder / "report.html").read_text()


def test_settings_lists_every_setting_with_its_meaning() -> None:
    listed = json.loads(run("settings", "--json").stdout)
    assert [row["name"] for row in listed["settings"]] == setting_names()
    assert all(row["description"] and row["type"] for row in listed["settings"])
    assert set(listed["presets"]) == {"sample", "toto2-4m"}
    shown = run("settings", width=100).stdout
    assert "training.learning_rate" in shown
    assert "error | first | last | mean" in shown


def test_doctor_reports_as_json_and_by_its_exit_code(tmp_path: Path) -> None:
    done = run("doctor", "--json", home=tmp_path / "home")
    value = json.loads(done.stdout)
    assert done.returncode == (0 if value["ok"] else 1)
    assert {"python", "gpus", "home", "disk"} <= {check["name"] for check in value["checks"]}
    (tmp_path / "file").write_text("")
    broken = run("doctor", home=tmp_path / "file")
    assert broken.returncode == 1
    assert "wrong" in broken.stdout


def test_champion_tells_where_the_model_in_production_is(tmp_path: Path) -> None:
    from toto_pipeline.promotion.registry import Registry

    home = Home(tmp_path / "home").prepare()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    registry = Registry(home, "toto")
    version = registry.register(model, run=RUN, metrics={"SQL": 0.5}, tags={"code_version": "0.1.0"})
    registry.promote(version.version, expected_champion=None)
    value = json.loads(run("champion", "--json", home=home.root).stdout)
    assert {key: value[key] for key in ("version", "metrics", "run")} == {
        "version": version.version,
        "metrics": {"SQL": 0.5},
        "run": RUN,
    }
    assert (Path(value["path"]) / "model.safetensors").read_bytes() == b"weights"


def test_the_home_is_the_option_then_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTO_HOME", str(tmp_path / "variable"))
    assert str(tmp_path / "variable") in CliRunner().invoke(cli.app, ["runs"]).output.replace("\n", "")
    chosen = CliRunner().invoke(cli.app, ["--home", str(tmp_path / "option"), "runs"])
    assert str(tmp_path / "option") in chosen.output.replace("\n", "")


def test_a_promoted_run_tells_what_happened_and_where_to_look(tmp_path: Path) -> None:
    outcome, printed, folder = launched(tmp_path, "promoted")
    assert (outcome.outcome, outcome.exit_code) == ("promoted", 0)
    assert [stage.state for stage in outcome.stages] == ["succeeded"] * 6
    assert "Promoted as version 4" in printed
    assert "SQL 50.3 % better than the seasonal naive" in printed
    assert "SQL 2.3 % better than the champion" in printed
    assert str(folder / "report.html") in printed
    assert re.search(rf"TOTO_HOME={tmp_path} .*(make dev|dagster dev)", printed)
    assert (folder / "report.html").read_text().count("promoted_checkpoint is done") == 1
    assert read_run(folder).outcome == outcome


def test_epochs_are_told_between_the_start_and_the_end_of_training(tmp_path: Path) -> None:
    _, printed, _ = launched(tmp_path, "promoted")
    lines = printed.splitlines()
    start, end = lines.index("Train: started"), lines.index("Train: succeeded (1.5 s): trained_model is done")
    assert [line.split(":")[0].strip() for line in lines[start + 1 : end]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_a_refused_run_says_why(tmp_path: Path) -> None:
    outcome, printed, _ = launched(tmp_path, "refused")
    assert outcome.exit_code == 10
    assert "Refused" in printed
    assert "failed: SQL may be up to 4.1 % higher than the champion's 0.6012." in printed


def test_a_failed_stage_passes_its_message_and_exit_code_on(tmp_path: Path) -> None:
    outcome, printed, folder = launched(tmp_path, "broken")
    assert outcome.exit_code == 3
    assert "prices.csv, row 3: found 'x'" in printed
    assert read_run(folder).state == "failed"


def test_a_child_that_dies_without_a_word_is_told_with_its_log(tmp_path: Path) -> None:
    outcome, printed, folder = launched(tmp_path, "crash")
    assert (outcome.outcome, outcome.exit_code) == ("failed", 1)
    assert "was ended by signal 9" in printed
    assert "out of memory, said the child" in printed
    assert "the child's own log" in (folder / "dagster.log").read_text()


def test_json_of_a_retraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome, _, folder = launched(tmp_path, "refused")
    capsys.readouterr()
    finish(folder, outcome, Console(stderr=True), json=True)
    value = json.loads(capsys.readouterr().out)
    assert (value["outcome"], value["exit_code"], value["promoted"]) == ("refused", 10, False)


def waiting_child(tmp_path: Path, scenario: str) -> tuple[Child, int]:
    folder = tmp_path / "run"
    folder.mkdir()
    child = Child(stand_in(scenario, folder), folder, {})
    for message in child.follow():
        if message is not None and message.get("stage") == "waiting":
            break
    return child, int((folder / "child.pid").read_text())


def test_stopping_lets_the_child_clean_up(tmp_path: Path) -> None:
    child, _ = waiting_child(tmp_path, "hang")
    child.stop(grace_seconds=30)
    assert child.wait() == 130
    assert (tmp_path / "run" / "child.cleaned_up").exists()


def test_stopping_ends_a_child_that_does_not_listen(tmp_path: Path) -> None:
    child, pid = waiting_child(tmp_path, "deaf")
    child.stop(grace_seconds=0.05)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_stops_the_child_and_keeps_the_run(tmp_path: Path, how: signal.Signals) -> None:
    script = (
        "import sys; from toto_pipeline.commands import retrain; from toto_pipeline.cli import main\n"
        "from toto_pipeline_tests.test_cli import stand_in\n"
        "retrain.launch_command = lambda settings, run: stand_in('hang', settings.parent)\n"
        f"sys.argv = ['toto-pipeline', '--home', {str(tmp_path)!r}, 'retrain']\n"
        "main()"
    )
    command = subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    for line in command.stdout:
        if line.startswith("waiting"):
            break
    command.send_signal(how)
    rest = command.stdout.read()
    assert command.wait(60) == 130
    assert "Canceled" in rest
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "child.cleaned_up").exists()
    assert read_run(folder).state == "canceled"
    assert (folder / "report.html").exists()


def test_the_live_display_shows_stages_the_bar_and_epochs(tmp_path: Path) -> None:
    from toto_pipeline.events.log import read_events
    from toto_pipeline.monitoring.progress import progress

    folder = record(tmp_path, Recording(stops_after=130), evaluated=False, promoted=None)
    events: list[Event] = list(read_events(folder))
    state = progress(events)
    out = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with LiveDisplay(out) as display:
        display.stage(Stage(stage="training_data", state="succeeded", seconds=2.0, message="26 series [made up]"))
        display.stage(Stage(stage="trained_model", state="started", seconds=0.0, message=""))
        display.epoch(state.finished_epochs[0], state)
        display.progress(state)
        display.warning("slow [disk]")
    shown: str = out.file.getvalue()  # type: ignore[attr-defined]
    for words in ("Prepare windows", "26 series [made up]", "epoch 4/9", "130/360", "slow [disk]", "windows/s"):
        assert words in shown
