"""`toto-pipeline checkpoints`: which checkpoints a run has, whether their files are whole, how far two are apart.

Everything here only reads: a damaged checkpoint is named and left where it is. The training sets it aside by itself
when it comes to load it.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toto_pipeline.commands.history import RunName
from toto_pipeline.commands.shared import Json, console, examples, figure, home_of, print_json, table, when
from toto_pipeline.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from toto_pipeline.checkpoints.comparison import Difference
    from toto_pipeline.checkpoints.manifest import Manifest
    from toto_pipeline.settings.training import CheckpointSettings

LOSS = "validation_loss"
SHOWN_DIFFERENCES = 20
_NAME = re.compile(r"step_\d+")
_NAME_IN_QUARANTINE = re.compile(r"step_\d+(\.\d+)?")  # the second one of a step is called step_<n>.2


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A checkpoint folder. problem: what is wrong with it, as far as was looked; checked: its hashes were."""

    folder: Path
    manifest: Manifest | None
    problem: str | None
    checked: bool = False
    newest: bool = False
    best: bool = False
    pinned: str | None = None
    backup: Path | None = None

    @property
    def step(self) -> int:
        return int(self.folder.name.removeprefix("step_").partition(".")[0])

    @property
    def condition(self) -> str:
        """unreadable (its manifest), damaged (a file), ok (after all files were checked), or nothing."""
        if self.problem is not None:
            return "unreadable" if self.manifest is None else "damaged"
        return "ok" if self.checked else ""

    @property
    def metrics(self) -> dict[str, float]:
        return {} if self.manifest is None else self.manifest.metrics


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "toto-pipeline checkpoints latest",
            "toto-pipeline checkpoints 3f2a --verify",
            "toto-pipeline checkpoints latest --compare 300 600",
            "toto-pipeline checkpoints latest --json | jq '.checkpoints[] | select(.best).folder'",
        )
    )(checkpoints)


def checkpoints(
    context: typer.Context,
    run: RunName = "latest",
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash of every file; nothing is moved.")] = False,
    compare: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="STEP STEP", help="Show instead in which tensors two checkpoints differ most."),
    ] = None,
    json: Json = False,
) -> None:
    """List the checkpoints of a run: the newest, the best, those that are pinned, backed up or set aside.

    Exit code 5: with --verify, a checkpoint is damaged or cannot be read.
    """
    folder = home_of(context).find_run(run)
    if compare is not None:
        show_differences(folder, compare, json=json)
        return
    settings = settings_of(folder)
    found = list_checkpoints(folder, settings)
    if verify:
        found = verify_all(found)
    if json:
        print_json(describe_all(folder, found))
    else:
        print_all(folder, found, settings, console())
    if verify and any(each.problem for each in found):
        raise typer.Exit(CheckpointError.exit_code)


def settings_of(run_folder: Path) -> CheckpointSettings | None:
    """How the run keeps checkpoints; None, said on stderr, where that is not known."""
    from toto_pipeline.training.run_files import read_order

    try:
        return read_order(run_folder).settings.checkpoints
    except TrainingError as error:
        message = f"warning: {error}; the best checkpoint and backups are not marked"
        console(stderr=True).print(message, style="yellow", markup=False, soft_wrap=True)
        return None


def list_checkpoints(run_folder: Path, settings: CheckpointSettings | None) -> list[Listed]:
    """The checkpoints of a run with their marks, oldest first. Only manifests are read, no other file."""
    from toto_pipeline.checkpoints.pins import FOLDER, read_pins

    pinned = read_pins(run_folder)
    found = read_folders(run_folder / FOLDER)
    readable = [each for each in found if each.manifest is not None]
    newest = readable[-1].folder if readable else None
    best = _best(readable, settings)
    return [
        replace(
            each,
            newest=each.folder == newest,
            best=each.folder.name == best,
            pinned=pinned.get(each.folder.name),
            backup=_backup(run_folder, each, settings),
        )
        for each in found
    ]


def read_folders(folder: Path, names: re.Pattern[str] = _NAME) -> list[Listed]:
    """The checkpoint folders in `folder`, by their steps, whether their manifests can be read or not."""
    if not folder.is_dir():
        return []
    found = [_read(each) for each in folder.iterdir() if names.fullmatch(each.name)]
    return sorted((each for each in found if each is not None), key=lambda each: (each.step, each.folder.name))


def _read(folder: Path) -> Listed | None:
    """A folder with its manifest; None where the retention of the training has just removed it."""
    from toto_pipeline.checkpoints.manifest import read_manifest

    try:
        return Listed(folder=folder, manifest=read_manifest(folder), problem=None)
    except CheckpointError as error:
        return Listed(folder=folder, manifest=None, problem=str(error)) if folder.exists() else None


def _best(readable: list[Listed], settings: CheckpointSettings | None) -> str | None:
    from toto_pipeline.checkpoints.retention import Kept, best

    if settings is None:
        return None
    kept = [Kept(each.folder.name, each.step, each.metrics) for each in readable]
    return next((each.name for each in best(kept, metric=settings.metric, mode=settings.mode)), None)


def _backup(run_folder: Path, each: Listed, settings: CheckpointSettings | None) -> Path | None:
    """Where a copy of a checkpoint is, if there is one of these very files."""
    if settings is None or settings.backup_folder is None or each.manifest is None:
        return None
    copy = _read(Path(settings.backup_folder).expanduser() / run_folder.name / each.folder.name)
    return copy.folder if copy is not None and copy.manifest == each.manifest else None


def verify_all(found: list[Listed]) -> list[Listed]:
    """Each checkpoint with what the hashes of its files say, under a progress bar on stderr."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    err = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    sizes = [0 if each.manifest is None else each.manifest.size_bytes for each in found]
    checked = []
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=sum(sizes))
        for each, size in zip(found, sizes, strict=True):
            bar.update(task, description=f"Verifying {each.folder.name}")
            checked.append(_verified(each))
            bar.advance(task, size)
    return [each for each in checked if each is not None]


def _verified(each: Listed) -> Listed | None:
    """None where the retention of the training has removed it since it was listed."""
    from toto_pipeline.checkpoints.manifest import verify

    try:
        verify(each.folder)
    except (CheckpointError, OSError) as error:
        return replace(each, checked=True, problem=str(error)) if each.folder.exists() else None
    return replace(each, checked=True)


def show_differences(run_folder: Path, steps: tuple[int, int], *, json: bool) -> None:
    folders = [_folder_of(run_folder, step) for step in steps]  # a wrong step is told before torch is imported
    from toto_pipeline.checkpoints.comparison import compare
    from toto_pipeline.checkpoints.manager import Checkpoint
    from toto_pipeline.checkpoints.manifest import verify

    one, other = (Checkpoint(folder, verify(folder)) for folder in folders)
    differences = compare(one, other)
    if json:
        listed = [asdict(each) for each in differences]
        print_json({"run": run_folder.name, "steps": list(steps), "differences": listed})
    else:
        print_differences(differences, steps, console())


def _folder_of(run_folder: Path, step: int) -> Path:
    """
    Raises:
        CheckpointError: the run has no checkpoint of this step.
    """
    from toto_pipeline.checkpoints.pins import FOLDER

    steps = {each.step: each.folder for each in read_folders(run_folder / FOLDER)}
    if step not in steps:
        there = f"one of the steps {', '.join(map(str, steps))}" if steps else "a run that has saved checkpoints"
        raise CheckpointError(f"{run_folder}: has no checkpoint of step {step}. Expected: {there}.")
    return steps[step]


def describe_all(run_folder: Path, found: list[Listed]) -> dict[str, Any]:
    reasons = reasons_of_quarantine(run_folder)
    return {
        "run": run_folder.name,
        "checkpoints": [describe(each) for each in found],
        "quarantine": [
            {"name": each.folder.name, "folder": str(each.folder), "reason": reasons.get(each.folder.name)}
            for each in quarantined(run_folder)
        ],
    }


def describe(each: Listed) -> dict[str, Any]:
    """A checkpoint as JSON. ok: null where its hashes were not checked."""
    manifest = each.manifest
    return {
        "name": each.folder.name,
        "step": each.step,
        "epoch": None if manifest is None else manifest.epoch,
        "created": None if manifest is None else manifest.created,
        "bytes": None if manifest is None else manifest.size_bytes,
        "format": None if manifest is None else manifest.format,
        "validation_loss": each.metrics.get(LOSS),
        "metrics": each.metrics,
        "newest": each.newest,
        "best": each.best,
        "pinned": each.pinned,
        "backup": None if each.backup is None else str(each.backup),
        "ok": each.problem is None if each.checked else None,
        "problem": each.problem,
        "folder": str(each.folder),
    }


def quarantined(run_folder: Path) -> list[Listed]:
    from toto_pipeline.checkpoints.pins import FOLDER

    return read_folders(run_folder / FOLDER / "quarantine", _NAME_IN_QUARANTINE)


def reasons_of_quarantine(run_folder: Path) -> dict[str, str]:
    """Why each checkpoint was set aside, by its name there, as the event log tells it."""
    from toto_pipeline.events.log import read_events

    events = [event for event in read_events(run_folder) if event["type"] == "checkpoint_quarantined"]
    return {Path(event["moved_to"]).name: str(event["reason"]) for event in events}


def print_all(run_folder: Path, found: list[Listed], settings: CheckpointSettings | None, out: Console) -> None:
    from rich.markup import escape

    if found:
        out.print(checkpoints_table(found, settings))
    else:
        out.print(f"Run {run_folder.name} has no checkpoints.", soft_wrap=True, markup=False)
    for each in found:
        if each.problem is not None:
            out.print(f"[red]{each.condition}[/]  {each.folder.name}: {escape(each.problem)}", soft_wrap=True)
    reasons = reasons_of_quarantine(run_folder)
    for each in quarantined(run_folder):
        reason = escape(reasons.get(each.folder.name, "the event log does not say why"))
        out.print(f"[yellow]quarantine[/]  {each.folder.name}: {reason}", soft_wrap=True)
    if found:
        out.print(f"Files: {found[0].folder.parent}", soft_wrap=True, markup=False)


def checkpoints_table(found: list[Listed], settings: CheckpointSettings | None) -> Table:
    from rich.filesize import decimal

    metrics = list(dict.fromkeys([LOSS] if settings is None else [LOSS, settings.metric]))
    titles = ["Val. loss", *metrics[1:]]
    view = table("Name", "Step", "Epoch", "When", "Size", *titles, "Marks", right=("Step", "Epoch", "Size", *titles))
    for each in found:
        manifest = each.manifest
        view.add_row(
            each.folder.name,
            str(each.step),
            "-" if manifest is None else str(manifest.epoch),
            when(math.nan if manifest is None else manifest.created),
            "-" if manifest is None else decimal(manifest.size_bytes),
            *(figure(each.metrics.get(name)) for name in metrics),
            marks(each),
        )
    return view


def marks(each: Listed) -> str:
    from rich.markup import escape

    found = {
        f"[{'red' if each.problem else 'green'}]{each.condition}[/]": bool(each.condition),
        "newest": each.newest,
        "[green]best[/]": each.best,
        "backup": each.backup is not None,
        f"pinned: {escape(each.pinned or '')}": each.pinned is not None,
    }
    return ", ".join(mark for mark, holds in found.items() if holds)


def print_differences(differences: list[Difference], steps: tuple[int, int], out: Console) -> None:
    from rich.markup import escape

    unequal = [each for each in differences if each.absolute != 0]
    out.print(f"Steps {steps[0]} and {steps[1]}: {len(unequal)} of {len(differences)} tensors differ.")
    if not unequal:
        return
    numbers = ("Largest difference", "Relative")
    view = table("Group", *numbers, "Tensor", right=numbers)
    for each in unequal[:SHOWN_DIFFERENCES]:
        view.add_row(each.group, f"{each.absolute:.3g}", f"{each.relative:.3g}", escape(each.name))
    out.print(view)
    if len(unequal) > SHOWN_DIFFERENCES:
        out.print(f"The {SHOWN_DIFFERENCES} largest are shown; --json gives all.")
