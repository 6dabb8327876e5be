"""`toto-pipeline compare`: what differs between runs, on the terminal, as JSON, and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toto_pipeline.commands.history import STATE_STYLES
from toto_pipeline.commands.shared import Json, console, examples, home_of, print_json, table, when
from toto_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from toto_pipeline.dashboards.comparison import Comparison, Subject
    from toto_pipeline.dashboards.facts import Fact, Section
    from toto_pipeline.home import Home

NUMBERS = frozenset({"scores", "training"})
VERDICT_STYLES = {"better": "green", "worse": "red", None: "dim"}


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "toto-pipeline compare 3f2a latest[/]               what differs between two[cyan]",
            "toto-pipeline compare 3f2a 9b1c latest --all[/]    and what is equal[cyan]",
            "toto-pipeline compare 3f2a latest --html c.html[/] and how the losses fell[cyan]",
        )
    )(compare)


def compare(
    context: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Two runs or more: an id, an unambiguous beginning of it, or 'latest'. The first is the one that the "
            "others are measured against.",
            show_default=False,
        ),
    ],
    everything: Annotated[bool, typer.Option("--all", help="Show also the settings and data that are equal.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the losses of all runs overlaid.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare runs: their settings, data, code, scores, training and decision."""
    from toto_pipeline.dashboards.comparison import compare as compared
    from toto_pipeline.dashboards.comparison import describe

    subjects = find_subjects(home_of(context), runs)
    comparison = compared(subjects)
    page = None if html is None else write_page(subjects, html)
    if json:
        described = describe(comparison, everything=everything)
        print_json(described if page is None else {**described, "page": str(page)})
        return
    out = console()
    print_comparison(comparison, out, everything=everything)
    if page is not None:
        out.print(f"Page: {page}", soft_wrap=True, markup=False)


def find_subjects(home: Home, names: list[str]) -> list[Subject]:
    """The runs that are meant.

    Raises:
        PipelineError: there is one only, one is named twice, is not there or holds nothing.
    """
    from toto_pipeline.dashboards.comparison import read_subject

    subjects = [read_subject(home, name) for name in names]
    ids = [subject.run.run for subject in subjects]
    twice = [f"{name!r} is run {run}" for name, run in zip(names, ids, strict=True) if ids.count(run) > 1]
    if twice or len(ids) < 2:
        problem = ", ".join(twice) if twice else f"{names[0]!r} is one run"
        raise PipelineError(
            f"{problem}. Expected: two different runs, or more. What to do: `toto-pipeline runs` lists them."
        )
    return subjects


def write_page(subjects: list[Subject], html: Path) -> Path:
    """
    Raises:
        PipelineError: a folder has that name.
        StorageError: the file cannot be written.
    """
    from toto_pipeline.dashboards.html.comparison import write_comparison

    file = html.expanduser().absolute()
    if file.is_dir():
        raise PipelineError(f"{file}: is a folder. Expected: a file for the page. What to do: --html {html}/runs.html")
    return write_comparison(subjects, file)


def print_comparison(comparison: Comparison, out: Console, *, everything: bool = False) -> None:
    """A comparison as a person wants to see it on a terminal."""
    from rich.markup import escape

    for run, label, state, created in zip(
        comparison.runs, comparison.labels, comparison.states, comparison.created, strict=True
    ):
        rest = escape(run.removeprefix(label))
        out.print(
            f"[bold]{escape(label)}[/][dim]{rest}[/]  [{STATE_STYLES[state]}]{state}[/]  {when(created)}",
            soft_wrap=True,
        )
    for label, missing in zip(comparison.labels, comparison.missing, strict=True):
        for line in missing:
            out.print(f"[yellow]{escape(label)}[/]  {escape(line)}", soft_wrap=True)
    for note in comparison.notes:
        out.print(f"[yellow]note[/]  {escape(note)}", soft_wrap=True)
    for section in comparison.sections:
        print_section(section, comparison, out, everything=everything)


def print_section(section: Section, comparison: Comparison, out: Console, *, everything: bool) -> None:
    known = [fact for fact in section.facts if any(value is not None for value in fact.values)]
    shown = [fact for fact in section.shown(everything=everything) if fact in known]
    if shown:
        out.print(section_table(section, shown, comparison))
    equal = len(known) - len(shown)
    if equal or not shown:
        nothing = f"{section.title}: nothing {'differs' if known else 'is known'}. "
        count = f"{equal} without a known difference; --all shows them." if equal else ""
        out.print(("" if shown else nothing) + count, style="dim", markup=False)


def section_table(section: Section, facts: list[Fact], comparison: Comparison) -> Table:
    from rich.markup import escape
    from rich.text import Text

    labels = tuple(map(escape, comparison.labels))
    view = table(section.title, *labels, right=labels if section.name in NUMBERS else ())
    for column in view.columns:
        column.overflow, column.no_wrap = "fold", False
    for fact in facts:
        view.add_row(Text(fact.title), *(cell(fact, index) for index in range(len(comparison.runs))))
    return view


def cell(fact: Fact, index: int) -> Any:
    """The value of a run, and its change against the first."""
    from rich.text import Text

    from toto_pipeline.dashboards.facts import change_written, verdict, written

    value, change = written(fact, fact.values[index]), change_written(fact, index)
    return Text.assemble(value, (f"  {change}", VERDICT_STYLES[verdict(fact, index)])) if change else Text(value)
