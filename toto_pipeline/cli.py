"""`toto-pipeline`: everything a person does without a browser.

    retrain                             data -> training -> evaluation -> promotion, followed live
    join                                take part, as a further machine, in a training
    runs, show, report, champion        what happened
    versions, why                       every version and alias; why the champion changed, or did not
    promote, rollback                   a person's decision about the champion
    compare                             what differs between runs, in settings, data and outcome
    checkpoints                         what a run has saved, and whether it is whole
    follow                              the tools that a run feeds, and how far behind they are
    forecast                            the champion's forecasts of your series
    dev                                 the Dagster UI
    exporter                            the outcomes of all runs, for Prometheus
    doctor, settings                    what is installed, what can be set

Exit codes: 0 done, 1 something is wrong, 2-9 a mistake that the message explains (errors.py), 10 the promotion gate
refused the new model, 130 interrupted. With `--json`, standard output holds JSON and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from toto_pipeline import __version__
from toto_pipeline.commands import (
    checkpoints,
    compare,
    environment,
    exporter,
    follow,
    forecast,
    history,
    join,
    promotion,
    retrain,
    why,
)
from toto_pipeline.commands.shared import examples
from toto_pipeline.errors import PipelineError
from toto_pipeline.home import HOME_VARIABLE, Home

INTERRUPTED = 130

app = typer.Typer(
    name="toto-pipeline",
    help="Retrain Toto time-series models: from data to a promoted checkpoint, observed throughout.",
    epilog=examples(
        "toto-pipeline doctor[/]                          is all here that is needed?[cyan]",
        "toto-pipeline retrain[/]                         on the bundled sample[cyan]",
        "toto-pipeline retrain --data 'metrics/*.csv'[/]  on your own data[cyan]",
        "toto-pipeline show latest[/]                     what came out, and why[cyan]",
        "toto-pipeline forecast --data metrics/ --horizon 96 --output f.csv",
    ),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"toto-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option("--home", help=f"Where runs, data and models are kept. Default: ${HOME_VARIABLE}, else ./.toto"),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    context.obj = Home.from_environment() if home is None else Home(home.expanduser().absolute())


retrain.register(app)
join.register(app)
history.register(app)
compare.register(app)
promotion.register(app)
why.register(app)
checkpoints.register(app)
forecast.register(app)
environment.register(app)
exporter.register(app)
follow.register(app)


def main() -> None:
    """The entry point: a user's mistake becomes a message and an exit code, a fault of ours keeps its traceback."""
    try:
        app()
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
