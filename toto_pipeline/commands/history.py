"""What happened: `runs`, `show`, `report` and `champion`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from toto_pipeline.commands.shared import Json, console, examples, figure, home_of, percent, print_json, table, when

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from toto_pipeline.runs import Run

STATE_STYLES = {
    "promoted": "green",
    "refused": "yellow",
    "failed": "red",
    "canceled": "red",
    "interrupted": "red",
    "trained": "cyan",
    "unfinished": "cyan",
}
RunName = Annotated[str, typer.Argument(help="A run's id, an unambiguous beginning of it, or 'latest'.")]


def register(app: typer.Typer) -> None:
    app.command(epilog=examples("toto-pipeline runs --limit 5", "toto-pipeline runs --json | jq '.[0].scores'"))(runs)
    app.command(epilog=examples("toto-pipeline show latest", "toto-pipeline show 3f2a --json"))(show)
    app.command(epilog=examples("toto-pipeline report latest"))(report)
    app.command(epilog=examples("toto-pipeline champion", "toto-pipeline champion --json | jq -r .path"))(champion)


def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many runs.")] = 20,
    json: Json = False,
) -> None:
    """List the retraining runs of this home, newest first."""
    from toto_pipeline.runs import BASELINE, current_state, describe, list_runs, planned_epochs

    found = list_runs(home_of(context), limit)
    if json:
        print_json([describe(run) for run in found])
        return
    out = console()
    if not found:
        out.print(f"No runs in {home_of(context).runs}. Start one with: toto-pipeline retrain")
        return
    numbers = ("Epochs", "Val. loss", "vs naive")
    view = table("Run", "When", "Outcome", *numbers, "Decision", right=numbers)
    for run in found:
        state = current_state(run)
        view.add_row(
            run.run[:8],
            when(run.created)[5:],
            f"[{STATE_STYLES[state]}]{state}[/]",
            f"{len(run.progress.finished_epochs)}/{planned_epochs(run)}",
            figure(run.progress.best_validation_loss),
            percent(run.gain(BASELINE)),
            decision_in_short(run),
        )
    out.print(view)


def show(context: typer.Context, run: RunName = "latest", json: Json = False) -> None:
    """Show one run: its scores, the decision and why, its epochs, and where its files are."""
    from toto_pipeline.runs import describe, read_run

    found = read_run(home_of(context).find_run(run))
    if json:
        print_json(describe(found))
    else:
        print_run(found, console())


def report(context: typer.Context, run: RunName = "latest") -> None:
    """Write a run's HTML report anew from its event log, and print where it is."""
    from toto_pipeline.dashboards.html.report import write_report

    typer.echo(write_report(home_of(context).find_run(run)))


def champion(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Name of the registered model.")] = "toto",
    json: Json = False,
) -> None:
    """Show the model in production: the one with the alias `champion`."""
    from toto_pipeline.promotion.champion import find_champion

    current = find_champion(home_of(context), model)
    value = {
        "model": model,
        "version": str(current.version),
        "path": str(current.path),
        "metrics": dict(current.metrics),
        "run": current.run,
        "created": current.created,
        "aliases": list(current.aliases),
        "tags": dict(current.tags),
    }
    if json:
        print_json(value)
        return
    out = console()
    out.print(f"[bold]{model} version {current.version}[/] is the champion, from run {current.run}", soft_wrap=True)
    view = table("Metric", "Value", right=("Value",))
    for name, metric in current.metrics.items():
        view.add_row(name, figure(metric))
    out.print(view)
    out.print(f"Files: {current.path}", soft_wrap=True, markup=False)


def print_run(run: Run, out: Console) -> None:
    """A run as a person wants to see it on a terminal."""
    from rich.markup import escape

    from toto_pipeline.runs import HTML_FILE, current_state

    state = current_state(run)
    out.print(f"[bold]Run {escape(run.run)}[/]  [{STATE_STYLES[state]}]{state}[/]  {when(run.created)}")
    if run.reason:
        out.print(escape(run.reason), soft_wrap=True)
    if run.scores:
        out.print(scores_table(run))
    for rule in [] if run.decision is None else run.decision.rules:
        mark = "[green]passed[/]" if rule.passed else "[red]failed[/]"
        out.print(f"{mark}  {escape(rule.text)}", soft_wrap=True)
    if run.progress.finished_epochs:
        out.print(epochs_table(run))
    for warning in (*run.progress.warnings, *run.problems):
        out.print(f"[yellow]warning[/]  {escape(warning)}", soft_wrap=True)
    for name, place in (("Files", run.folder), ("Report", run.folder / HTML_FILE)):
        if place.exists():
            out.print(f"{name}: {place}", soft_wrap=True, markup=False)


def scores_table(run: Run) -> Table:
    from toto_pipeline.runs import METRIC_TITLES, MODEL_NAMES

    metrics = list(dict.fromkeys(metric for scores in run.scores.values() for metric in scores))
    titles = [METRIC_TITLES.get(metric, metric) for metric in metrics]
    view = table("Test windows", *titles, right=tuple(titles))
    for model, values in run.scores.items():
        view.add_row(MODEL_NAMES.get(model, model), *(figure(values.get(metric)) for metric in metrics))
    return view


def epochs_table(run: Run) -> Table:
    numbers = ("Epoch", "Train loss", "Validation loss", "Windows/s", "Seconds")
    view = table(*numbers, "", right=numbers)
    for epoch in run.progress.finished_epochs:
        view.add_row(
            str(epoch.epoch),
            figure(epoch.train_loss),
            figure(epoch.validation_loss),
            figure(epoch.windows_per_second, 0),
            figure(epoch.seconds, 1),
            "[green]best[/]" if epoch.epoch == run.progress.best_epoch else "",
        )
    return view


def decision_in_short(run: Run) -> Any:
    from rich.text import Text

    if run.decision is None:
        return Text(run.reason[:60], style="dim")
    if run.decision.promote:
        return Text(f"version {run.decision.version}")
    return Text(", ".join(rule.name for rule in run.decision.rules if not rule.passed))
