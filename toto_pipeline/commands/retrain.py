"""`toto-pipeline retrain`: the whole pipeline once, followed live.

validate every setting  ->  make the run folder  ->  start the child that executes the job
follow its stages and the event log  ->  keep the outcome  ->  tell what happened and where to look
"""

from __future__ import annotations

import math
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from toto_pipeline.commands.shared import Json, absolute_source, console, examples, home_of, percent, print_json
from toto_pipeline.home import HOME_VARIABLE, Home

if TYPE_CHECKING:
    from rich.console import Console

    from toto_pipeline.commands.child import Child
    from toto_pipeline.commands.display import Display
    from toto_pipeline.runs import Outcome, Run

REFUSED, CANCELED, FAILED = 10, 130, 1
SETTINGS_FILE = "settings.json"
ENDING_SECONDS = 20.0
"""What the child may take to end when it is interrupted, beyond the grace that its training has."""


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "toto-pipeline retrain",
            "toto-pipeline retrain --set training.epochs=3 --set training.seed=7",
            "toto-pipeline retrain --data 'metrics/*.csv' --set preparation.horizon=48",
            "toto-pipeline retrain --data prices/ --set data.duplicates=mean",
            "toto-pipeline retrain --preset toto2-4m --set training.model.weights=DIR",
            "toto-pipeline retrain --config nightly.yaml --json > result.json",
        )
    )(retrain)


def retrain(
    context: typer.Context,
    preset: Annotated[str | None, typer.Option(help="Settings to start from: sample or toto2-4m.")] = None,
    data: Annotated[
        str | None, typer.Option(help="File, folder or glob of CSV or Parquet; short for data.source.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings. Default: $TOTO_CONFIG, else toto.yaml here, if there is one."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given often. Wins over all."),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(help="A new UUID to call the run by, so that other machines can `join` it. Default: made up."),
    ] = None,
    json: Json = False,
) -> None:
    """Retrain a model on your data, compare it, and promote it if it is better.

    Exit code 0: promoted. 10: the gate refused it, and the reason is printed. 2-8: something in settings or data is to
    be mended, as the message says. 130: interrupted. 1: anything else.
    """
    from toto_pipeline.config import default_settings_file, load_settings

    source = [] if data is None else [f"data.source={orjson.dumps(absolute_source(data)).decode()}"]
    settings = load_settings(preset, config or default_settings_file(), [*source, *(assignments or [])])
    home = home_of(context).prepare()
    out = console(stderr=json)
    run = _new_run(home, run_id)
    outcome = launch(home, run, settings.model_dump(mode="json"), out)
    finish(home.run(run), outcome, out, json=json)
    raise typer.Exit(outcome.exit_code)


def _new_run(home: Home, run_id: str | None) -> str:
    """The id of a run that does not exist yet.

    Raises:
        ConfigError: it is no UUID, or there is such a run already.
    """
    from toto_pipeline.errors import ConfigError

    if run_id is None:
        return str(uuid.uuid4())
    try:
        run = str(uuid.UUID(run_id))
    except ValueError:
        raise ConfigError(f"--run-id {run_id!r}: is no UUID. What to do: make one with `uuidgen`.") from None
    if (home.run(run) / SETTINGS_FILE).exists():
        raise ConfigError(f"--run-id {run}: there is such a run already. Expected: a new one, made with `uuidgen`.")
    return run


def launch_command(settings_file: Path, run: str) -> list[str]:
    return [
        sys.executable, "-m", "toto_pipeline.automation.launch", "--settings", str(settings_file), "--run-id", run,
    ]  # fmt: skip


def launch(
    home: Home, run: str, settings: dict[str, Any], out: Console, command: Sequence[str] | None = None
) -> Outcome:
    """Execute the job in a child process, show it as it goes, and keep how it ended in the run folder."""
    from toto_pipeline.checkpoints.store import write_file
    from toto_pipeline.commands.child import Child
    from toto_pipeline.commands.display import display_for
    from toto_pipeline.runs import write_config, write_outcome

    folder = home.run(run)
    write_config(folder, settings, time.time())
    settings_file = folder / SETTINGS_FILE
    write_file(settings_file, orjson.dumps(settings, option=orjson.OPT_INDENT_2))
    out.print(f"Run {run}", markup=False)
    environment = {HOME_VARIABLE: str(home.root), "DAGSTER_HOME": str(home.dagster), "PYTHONUNBUFFERED": "1"}
    child = Child(command or launch_command(settings_file, run), folder, environment)
    grace_seconds = settings["training"]["checkpoints"]["grace_seconds"] + ENDING_SECONDS
    outcome = _watch(child, display_for(out), grace_seconds)
    write_outcome(folder, outcome)
    return outcome


def _watch(child: Child, display: Display, grace_seconds: float) -> Outcome:
    from toto_pipeline.runs import Outcome

    watcher = Watcher(display)
    try:
        with display, _terminated_is_interrupted():
            for message in child.follow():
                watcher.see(message)
        status = child.wait()
    except KeyboardInterrupt:
        child.stop(grace_seconds)
        return Outcome(
            outcome="canceled",
            message="interrupted; checkpoints saved so far are kept",
            exit_code=CANCELED,
            stages=tuple(watcher.stages.values()),
        )
    except BaseException:
        child.stop(grace_seconds=0)
        raise
    return watcher.outcome(status, child)


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Let SIGTERM (a CI timeout, a service being stopped) end the child as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Watcher:
    """Folds what a child reports into the display and, at the end, the outcome."""

    def __init__(self, display: Display) -> None:
        from toto_pipeline.monitoring.progress import Progress
        from toto_pipeline.runs import Stage

        self.display = display
        self.stages: dict[str, Stage] = {}
        self._progress = Progress()
        self._shown = self._progress
        self._ended: dict[str, Any] | None = None

    def see(self, message: dict[str, Any] | None) -> None:
        if message is None:
            self._show_progress()
        elif "type" in message:
            self._event(message)
        elif "stage" in message:
            self._stage(message)
        else:
            self._ended = message

    def _show_progress(self) -> None:
        """Show the newest progress; not at every step, since thousands arrive in a second."""
        if self._progress is not self._shown:
            self._shown = self._progress
            self.display.progress(self._progress)

    def outcome(self, status: int, child: Child) -> Outcome:
        from toto_pipeline.runs import Outcome

        stages = tuple(self.stages.values())
        if self._ended is None:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            message = (
                f"the process that ran the job {how} before it said how it went. "
                f"Its last words, from {child.log_path}:\n{child.last_words()}"
            )
            return Outcome(outcome="failed", message=message, exit_code=FAILED, stages=stages)
        return Outcome(
            outcome=str(self._ended["outcome"]),
            message=str(self._ended.get("message") or ""),
            exit_code=int(self._ended.get("exit_code", status)),
            stages=stages,
        )

    def _event(self, event: dict[str, Any]) -> None:
        from toto_pipeline.monitoring.progress import advance

        before, self._progress = self._progress, advance(self._progress, event)
        for warning in self._progress.warnings[len(before.warnings) :]:
            self.display.warning(warning)
        if event["type"] == "epoch":
            self.display.epoch(self._progress.finished_epochs[-1], self._progress)

    def _stage(self, message: dict[str, Any]) -> None:
        from toto_pipeline.runs import Stage

        stage = Stage(
            stage=str(message["stage"]),
            state=str(message["state"]),
            seconds=float(message.get("seconds") or 0.0),
            message=str(message.get("message") or ""),
        )
        self.stages[stage.stage] = stage
        self._show_progress()
        self.display.stage(stage)


def finish(folder: Path, outcome: Outcome, out: Console, *, json: bool) -> None:
    """Write the report with the outcome in it, and tell what happened and where to look."""
    from toto_pipeline.dashboards.html.report import write_report
    from toto_pipeline.runs import describe, read_run

    write_report(folder)
    run = read_run(folder)
    if json:
        print_json(
            {**describe(run), "outcome": outcome.outcome, "message": outcome.message, "exit_code": outcome.exit_code}
        )
    else:
        _tell(run, outcome, out)


def _tell(run: Run, outcome: Outcome, out: Console) -> None:
    from rich.markup import escape

    from toto_pipeline.commands.history import STATE_STYLES, scores_table
    from toto_pipeline.runs import BASELINE, CANDIDATE, CHAMPION, MODEL_NAMES

    if run.scores:
        out.print(scores_table(run))
    style = STATE_STYLES.get(outcome.outcome, "red")
    version = f" as version {run.decision.version}" if run.decision and run.decision.version else ""
    out.print(f"[bold {style}]{outcome.outcome.capitalize()}{version if outcome.outcome == 'promoted' else ''}[/]")
    for reference in (BASELINE, CHAMPION):
        gain = run.gain(reference)
        if math.isfinite(gain) and CANDIDATE in run.scores:
            better = "better" if gain >= 0 else "worse"
            out.print(f"  {run.metric} {percent(abs(gain))[1:]} {better} than the {MODEL_NAMES[reference].lower()}")
    rules = [] if run.decision is None else run.decision.rules
    for rule in rules:
        out.print(f"  {'passed' if rule.passed else 'failed'}: {escape(rule.text)}", soft_wrap=True)
    if outcome.message and (outcome.outcome in ("failed", "canceled") or not rules):
        out.print(f"  {escape(outcome.message)}", soft_wrap=True)
    out.print("\n".join(_places(run)), markup=False, soft_wrap=True)


def _dev_command(home: Path) -> str:
    """How to open this home's history in the UI from here, in a checkout or without one."""
    variable = "" if home == Home.from_environment().root else f"{HOME_VARIABLE}={shlex.quote(str(home))} "
    if Path("Makefile").is_file():
        return f"{variable}toto-pipeline dev   (in a checkout: make dev)"
    return f"{variable}toto-pipeline dev"


def _places(run: Run) -> list[str]:
    """Where to look next, as far as the run came."""
    home = run.folder.parent.parent
    mlflow = f"sqlite:///{home / 'registry' / 'mlflow.db'}"
    places = [
        ("Report", run.folder / "report.html", str(run.folder / "report.html")),
        ("Model", run.folder / "model", str(run.folder / "model")),
        ("Checkpoints", run.folder / "checkpoints", str(run.folder / "checkpoints")),
        ("Logs", run.folder / "dagster.log", str(run.folder / "dagster.log")),
        ("TensorBoard", run.folder / "tensorboard", f"tensorboard --logdir {shlex.quote(str(home / 'runs'))}"),
        ("MLflow", home / "registry" / "mlflow.db", f"mlflow ui --backend-store-uri {shlex.quote(mlflow)}"),
        ("Dagster", home, _dev_command(home)),
    ]
    return [f"  {name:<13}{words}" for name, path, words in places if path.exists()]
