"""`toto-pipeline follow`: feed the sinks of a run, and show how far each is.

The command starts a follower and shows the status of the run's follower until its own has ended. Where another one is
at work, that one's is shown, and its own waits: should the other be killed, it takes over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toto_pipeline.commands.shared import Json, console, examples, home_of, print_json, table
from toto_pipeline.errors import PipelineError
from toto_pipeline.home import Home

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from toto_pipeline.monitoring.start import Follower
    from toto_pipeline.monitoring.status import FollowerStatus

POLL_SECONDS = 0.1
STATES = {
    "ok": ("fed", "cyan"),
    "done": ("done", "green"),
    "retrying": ("retrying", "yellow"),
    "open": ("down", "red"),
    "disabled": ("disabled", "red"),
}
"""What a person calls each state, and its colour."""


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "toto-pipeline follow latest[/]                   catch up, or watch a run under way[cyan]",
            "toto-pipeline follow 3f2a --sinks tensorboard[/] feed one sink only[cyan]",
            "toto-pipeline follow 3f2a --restart mlflow[/]    feed a sink from the start[cyan]",
            "toto-pipeline follow runs/mine --sinks mlflow[/] any folder with an event log[cyan]",
        )
    )(follow)


def follow(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(help="A run's id, an unambiguous beginning of it, 'latest', or a run folder.")
    ] = "latest",
    sinks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Feed only these. Default: all that the run was started with.")
    ] = None,
    restart: Annotated[
        list[str] | None,
        typer.Option(metavar="SINK", help="Forget how far this sink is: feed it from the start. May be given often."),
    ] = None,
    json: Json = False,
) -> None:
    """Feed the sinks of a run from its event log, until the run has ended and each of them has all.

    Of a run that has ended it finishes what is behind. Exit code 0: every sink has everything. 1: one is behind, and
    the same command goes on where it stopped. 2: a sink's name or settings are wrong. 130: interrupted.
    """
    from toto_pipeline.monitoring.start import follow_again

    folder = folder_of(home_of(context), run)
    refuse_restart_of_a_followed_run(folder, restart or [])
    out = console(stderr=json)
    names = [] if sinks is None else [name.strip() for name in sinks.split(",") if name.strip()]
    follower = follow_again(folder, only=names, restart=restart or [])
    try:
        watch(follower, out)
    except KeyboardInterrupt:
        follower.stop()
        raise
    code, status = follower.exit_code or 0, follower.status()
    if code > 1 or code < 0 or status is None:  # a mistake that it names, or a crash
        typer.echo(follower.said(), err=True)
        raise typer.Exit(code if code > 1 else 1)
    if json:
        print_json(describe(folder, status))
    else:
        out.print(status_table(status))
        out.print(in_one_line(status), soft_wrap=True, markup=False)
    raise typer.Exit(code)


def folder_of(home: Home, run: str) -> Path:
    """The folder of a run in the home, or any that is named and holds an event log.

    Raises:
        PipelineError: there is no such run, or it ended before its training began.
    """
    from toto_pipeline.events.segments import log_files
    from toto_pipeline.runs import OUTCOME_FILE

    named = Path(run).expanduser().absolute()
    folder = named if log_files(named) else home.find_run(run)
    if not log_files(folder) and (folder / OUTCOME_FILE).exists():
        raise PipelineError(
            f"{folder}: holds no event log. Expected: a run whose training has begun. "
            "What to do: `toto-pipeline show` tells how this one ended."
        )
    return folder


def refuse_restart_of_a_followed_run(folder: Path, names: list[str]) -> None:
    """
    Raises:
        PipelineError: a process that is at work keeps the cursors of these sinks.
    """
    from toto_pipeline.monitoring.follower import follower_lock
    from toto_pipeline.monitoring.status import read_status

    if not names:
        return
    with follower_lock(folder, wait=False) as is_free:
        if not is_free:
            status = read_status(folder)
            process = "another process" if status is None else f"process {status.process.split('@')[0]}"
            raise PipelineError(
                f"{folder}: {process} follows this run. Expected: nobody, so that {', '.join(names)} can be restarted. "
                "What to do: wait until the run has ended, or end that process (SIGTERM), and try again."
            )


def watch(follower: Follower, out: Console) -> None:
    """Show the status until the follower has ended."""
    if not out.is_terminal or out.is_dumb_terminal:
        _watch(follower, _StateChanges(out))
        return
    from rich.live import Live

    with Live(console=out, refresh_per_second=4, transient=True) as live:
        _watch(follower, lambda status: live.update(status_table(status)))


def _watch(follower: Follower, show: Callable[[FollowerStatus], None]) -> None:
    while follower.exit_code is None:
        status = follower.status()
        if status is not None:
            show(status)
        time.sleep(POLL_SECONDS)


class _StateChanges:
    """One plain line for each sink whose state has changed; for logs, pipes and CI."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._states: dict[str, str] = {}

    def __call__(self, status: FollowerStatus) -> None:
        for name, sink in status.sinks.items():
            if self._states.get(name) != sink.state:
                self._states[name] = sink.state
                error = f": {sink.error}" if sink.error and sink.state not in ("ok", "done") else ""
                self._out.print(f"{name}: {STATES[sink.state][0]}{error}", markup=False, soft_wrap=True)
                self._out.file.flush()


def status_table(status: FollowerStatus) -> Table:
    from rich.markup import escape

    numbers = ("Events", "Behind", "Since")
    view = table("Sink", "State", *numbers, "Last error", right=numbers)
    for name, sink in status.sinks.items():
        word, style = STATES[sink.state]
        view.add_row(
            escape(name),
            f"[{style}]{word}[/]",
            f"{sink.events:,}".replace(",", " "),
            size(sink.bytes_behind),
            f"{sink.seconds_behind:.0f} s" if sink.seconds_behind else "-",
            escape(sink.error or ""),
        )
    return view


def in_one_line(status: FollowerStatus) -> str:
    if status.outcome is None:
        return "The run has not begun."
    behind = [name for name, sink in status.sinks.items() if sink.state != "done"]
    end = f"{', '.join(behind)} behind; the same command goes on" if behind else "every sink has everything"
    return f"The run has ended: {status.outcome}; {end}."


def describe(folder: Path, status: FollowerStatus) -> dict[str, Any]:
    from toto_pipeline.monitoring.status import to_json

    return {"run": folder.name, "folder": str(folder), **to_json(status)}


def size(count: int) -> str:
    """Bytes for a table cell."""
    if count < 1000:
        return f"{count} B" if count else "-"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
