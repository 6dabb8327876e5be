"""`toto-pipeline why`: why the model changed last night, or did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from toto_pipeline.commands.shared import Json, console, examples, figure, home_of, print_json, table

if TYPE_CHECKING:
    from rich.console import Console

    from toto_pipeline.promotion.why import Why


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples("toto-pipeline why", "toto-pipeline why 7", "toto-pipeline why 3f2a --markdown > why.md")
    )(why)


def why(
    context: typer.Context,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|VERSION]",
            help="A run's id or its beginning, 'latest', or the number of a version. Default: what happened last.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the registered model.")] = "toto",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json: Json = False,
) -> None:
    """Say why the champion changed, or did not: what data came, what was trained, how the scores compared, which rule
    decided.

    Without a name it tells of the last change of champion, or of a run that ended since then and changed nothing.
    """
    from toto_pipeline.promotion.why import as_markdown, as_plain, explain, gather

    answer = explain(gather(home_of(context), model, subject))
    if json:
        print_json(as_plain(answer))
    elif markdown:
        typer.echo(as_markdown(answer))
    else:
        _print(answer, console())


def _print(answer: Why, out: Console) -> None:
    from rich.markup import escape

    from toto_pipeline.runs import METRIC_TITLES, MODEL_NAMES

    out.print(f"[bold]{escape(answer.headline)}[/]", soft_wrap=True)
    out.print(escape(answer.decided), soft_wrap=True)
    for title, lines in (("Data", answer.data), ("Training", answer.training)):
        for line in lines:
            out.print(f"[cyan]{title:<9}[/] {escape(line)}", soft_wrap=True)
    if answer.scores:
        metrics = list(dict.fromkeys(metric for scores in answer.scores.values() for metric in scores))
        titles = [METRIC_TITLES.get(metric, metric) for metric in metrics]
        view = table("Test windows", *titles, right=tuple(titles))
        for key, scores in answer.scores.items():
            view.add_row(MODEL_NAMES.get(key, key), *(figure(scores.get(metric)) for metric in metrics))
        out.print(view)
    for rule in answer.rules:
        mark = "[green]passed[/]" if rule.passed else "[red]failed[/]"
        out.print(f"{mark}  {escape(rule.text)}", soft_wrap=True)
