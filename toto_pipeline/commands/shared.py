"""What the commands have in common: where the home is, where output goes, how numbers are written."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from toto_pipeline.home import Home

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output; everything else goes to stderr.")]


def examples(*lines: str) -> str:
    """An epilog that shows commands, one a line."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


def home_of(context: typer.Context) -> Home:
    """The home that `--home` or the environment names."""
    home: Home = context.obj
    return home


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_json(value: Any) -> None:
    from toto_pipeline.runs import without_nan

    typer.echo(orjson.dumps(without_nan(value), option=orjson.OPT_INDENT_2).decode())


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A table whose last column takes the rest of the line and folds; the others stay whole as long as they fit."""
    from rich import box
    from rich.table import Table

    result = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )
    for name in columns:
        last = name == columns[-1]
        result.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=not last,
            overflow="fold" if last else "ellipsis",
        )
    return result


def figure(value: float | None, digits: int = 4) -> str:
    """A score for a table cell; a dash where it is unknown."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(share: float) -> str:
    """A gain in words: `+12.3 %` is better, `-4.0 %` worse."""
    return "-" if math.isnan(share) else f"{100 * share:+.1f} %"


def when(seconds: float) -> str:
    """Unix seconds as local date and time."""
    if math.isnan(seconds):
        return "-"
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def absolute_source(data: str) -> str:
    """A data source that means the same in a process with another working folder; `sample` stays a name."""
    return data if data == "sample" else str(Path(data).expanduser().absolute())
