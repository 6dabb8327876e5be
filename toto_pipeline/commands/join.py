"""`toto-pipeline join`: take part, as a further machine, in a training that several machines do together."""

from __future__ import annotations

from typing import Annotated

import typer

from toto_pipeline.commands.shared import console, examples, home_of


def register(app: typer.Typer) -> None:
    app.command(epilog=examples("toto-pipeline join 5e1f0c9a-6d0b-4b7e-9a43-0d3c9a1f6b52"))(join)


def join(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="The run's whole id, as given to `retrain --run-id`.")],
) -> None:
    """Train with this machine too in a run that another has started, or is about to start.

    The home must be on a disk that the machines share. Ends with the training: exit code 0 where it ended in order.
    """
    from toto_pipeline.training.launcher import take_part

    folder = home_of(context).run(run)
    out = console(stderr=True)
    with out.status(f"waiting for {folder}"):
        code = take_part(folder)
    raise typer.Exit(code)
