"""What a person sees while a retraining runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text

from toto_pipeline.monitoring.progress import EpochProgress, Progress, clock, epoch_line, live_view
from toto_pipeline.runs import STAGES, Stage

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

TRAINING = "trained_model"
MARKS = {"succeeded": "[green]done[/]   ", "failed": "[red]failed[/] ", "skipped": "[yellow]skipped[/]"}


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stage(self, stage: Stage) -> None: ...
    def epoch(self, epoch: EpochProgress, state: Progress) -> None: ...
    def progress(self, state: Progress) -> None: ...
    def warning(self, message: str) -> None: ...


class PlainDisplay:
    """One line for each thing that happened; for logs, pipes and CI."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def stage(self, stage: Stage) -> None:
        name = STAGES.get(stage.stage, stage.stage)
        ended = f" ({stage.seconds:.1f} s)" if stage.state in ("succeeded", "failed") else ""
        message = f": {stage.message}" if stage.message else ""
        self._say(f"{name}: {stage.state}{ended}{message}")

    def epoch(self, epoch: EpochProgress, state: Progress) -> None:
        self._say("  " + epoch_line(epoch, state))

    def progress(self, state: Progress) -> None:
        pass

    def warning(self, message: str) -> None:
        self._say(f"  warning: {message}")

    def _say(self, line: str) -> None:
        self._out.print(line, markup=False, soft_wrap=True)
        self._out.file.flush()


class LiveDisplay:
    """Finished stages above, and at the bottom what runs now, with the bar of the training."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._live = Live(console=out, refresh_per_second=8, transient=True)
        self._running: str | None = None
        self._progress = Progress()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def stage(self, stage: Stage) -> None:
        name = STAGES.get(stage.stage, stage.stage)
        if stage.state == "started":
            self._running = stage.stage
        else:
            self._running = None if self._running == stage.stage else self._running
            seconds = "" if stage.state == "skipped" else clock(stage.seconds)
            line = f"{MARKS.get(stage.state, stage.state)} {name:<20} {seconds:>7}  [dim]{escape(stage.message)}[/]"
            self._out.print(line, soft_wrap=True)
        self._live.update(self._view())

    def epoch(self, epoch: EpochProgress, state: Progress) -> None:
        self._out.print(Text("        " + epoch_line(epoch, state), style="dim"), soft_wrap=True)

    def progress(self, state: Progress) -> None:
        self._progress = state
        self._live.update(self._view())

    def warning(self, message: str) -> None:
        self._out.print(f"[yellow]warning[/] {escape(message)}", soft_wrap=True)

    def _view(self) -> RenderableType:
        if self._running is None:
            return Text("")
        spinner = Spinner("line", text=f"   {STAGES.get(self._running, self._running)}", style="cyan")
        return Group(spinner, live_view(self._progress)) if self._running == TRAINING else spinner


def display_for(out: Console) -> Display:
    return LiveDisplay(out) if out.is_terminal and not out.is_dumb_terminal else PlainDisplay(out)
