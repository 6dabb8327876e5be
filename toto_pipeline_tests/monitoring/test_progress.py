"""Progress as a projection of the event log, and what a person sees of it."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from toto_pipeline.events.log import read_events
from toto_pipeline.monitoring.progress import Progress, advance, clock, epoch_line, live_view, progress
from toto_pipeline_tests.fixtures.recorded_run import Recording, record


def recorded(tmp_path: Path, **how: int) -> Progress:
    return progress(read_events(record(tmp_path, Recording(**how), evaluated=False, promoted=None)))  # type: ignore[arg-type]


def shown(state: Progress, width: int = 80) -> str:
    out = Console(file=io.StringIO(), width=width, force_terminal=False)
    out.print(live_view(state))
    text: str = out.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_nothing_yet(tmp_path: Path) -> None:
    assert progress([]) == Progress()
    assert "waiting" in shown(Progress())


def test_a_finished_run(tmp_path: Path) -> None:
    state = recorded(tmp_path)
    assert (state.step, state.epoch, state.share, state.outcome) == (360, 9, 1.0, "completed")
    assert state.seconds_remaining == 0.0
    assert len(state.finished_epochs) == 9
    assert state.best_validation_loss == min(epoch.validation_loss for epoch in state.finished_epochs)


def test_the_time_remaining_is_at_the_pace_of_the_log(tmp_path: Path) -> None:
    folder = record(tmp_path, Recording(stops_after=130), evaluated=False, promoted=None)
    steps = [event for event in read_events(folder) if event["type"] == "step"]
    state = progress(read_events(folder))
    pace = (steps[-1]["monotonic"] - steps[0]["monotonic"]) / 129
    assert state.seconds_remaining == pytest.approx(230 * pace)
    assert state.windows_per_second == pytest.approx(16 / state.step_seconds)


def test_a_restart_goes_back_and_forgets_the_old_pace(tmp_path: Path) -> None:
    folder = record(tmp_path, Recording(dies_after=130), evaluated=False, promoted=None)
    state = Progress()
    for event in read_events(folder):
        state = advance(state, event)
        if event["type"] == "run_started" and event["attempt"] == 2:
            break
    assert (state.step, state.attempt, state.resumed_from) == (120, 2, 120)
    assert math.isnan(state.seconds_remaining)
    assert [epoch.epoch for epoch in state.finished_epochs] == [1, 2, 3]
    assert [epoch.epoch for epoch in recorded(tmp_path / "again", dies_after=130).finished_epochs] == list(range(1, 10))


def test_a_loss_that_is_not_a_number_recovers_in_the_smoothing(tmp_path: Path) -> None:
    state = Progress()
    for step, loss in enumerate((1.0, "nan", 2.0), start=1):
        state = advance(state, {"type": "step", "step": step, "monotonic": float(step), "loss": loss, "seconds": 1.0})
    assert state.loss == 2.0


def test_unknown_events_change_nothing() -> None:
    state = Progress(step=3)
    assert advance(state, {"type": "from_the_future", "step": 9}) is state


def test_warnings_are_kept_in_words(tmp_path: Path) -> None:
    folder = record(tmp_path, Recording(warnings=("slow disk",)), evaluated=False, promoted=None)
    assert progress(read_events(folder)).warnings == ("slow disk",)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_view_fits_a_terminal(tmp_path: Path, width: int) -> None:
    text = shown(recorded(tmp_path, stops_after=130), width)
    assert max(map(len, text.splitlines())) <= width
    assert "epoch 4/9" in text
    assert "130/360" in text


def test_an_epoch_in_one_line(tmp_path: Path) -> None:
    state = recorded(tmp_path, stops_after=80)
    line = epoch_line(state.finished_epochs[0], state)
    assert line.startswith("epoch 1/9: train loss 0.5")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (42.4, "0:42"), (725, "12:05"), (11229, "3:07:09"), (math.nan, "-:--")]
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words
