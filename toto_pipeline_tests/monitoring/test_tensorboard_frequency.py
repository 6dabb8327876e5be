"""How much of a run is shown, and how large that makes the files of a run of three weeks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.events import figures
from toto_pipeline.events.histograms import describe
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.tensorboard_frequency import (
    MOST_PICTURES,
    MOST_POINTS,
    Length,
    part_of_run,
    shows_reading,
    shows_step,
)
from toto_pipeline_tests.monitoring.tensorboard_reading import event_files, feed, shown, tensors

MEGABYTE = 1_000_000


@given(epochs=st.integers(1, 3000), steps_per_epoch=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_steps_are_thinned_to_what_can_be_looked_at(epochs: int, steps_per_epoch: int) -> None:
    total = epochs * steps_per_epoch
    kept = [step for step in range(1, total + 1) if shows_step(step, Length(total, steps_per_epoch))]
    assert len(kept) <= MOST_POINTS + epochs + 1
    assert kept[-1] == total
    assert set(range(steps_per_epoch, total + 1, steps_per_epoch)) <= set(kept)
    if total <= MOST_POINTS:
        assert len(kept) == total
    else:
        assert len(kept) > MOST_POINTS / 2


def test_epochs_without_end_are_thinned_too() -> None:
    total = 1_000_000
    assert sum(shows_step(step, Length(total, 2)) for step in range(1, total + 1)) <= 2 * MOST_POINTS + 1


@given(st.integers(1, 300_000))
@settings(max_examples=30, deadline=None)
def test_readings_become_sparser_but_never_stop(count: int) -> None:
    kept = [index for index in range(count) if shows_reading(index)]
    assert len(kept) <= 18_000
    assert kept[: min(count, 4096)] == list(range(min(count, 4096)))
    assert count - kept[-1] <= max(1, count / 2048)


@given(total=st.integers(1, 10**7), every=st.integers(1, 10**5))
@settings(max_examples=60, deadline=None)
def test_pictures_are_at_most_about_sixty_and_the_last_is_one(total: int, every: int) -> None:
    every = max(every, total // 5000)
    steps = range(every, total + 1, every)
    shown_parts = {part_of_run(step, Length(total)) for step in steps}
    assert len(shown_parts) <= MOST_PICTURES + 1
    assert len(shown_parts) >= min(len(steps), MOST_PICTURES) - 1
    assert part_of_run(total, Length(total)) == MOST_PICTURES
    assert MOST_PICTURES not in {part_of_run(step, Length(total)) for step in steps if step < total}


def test_a_run_of_unknown_length_has_no_end_of_pictures() -> None:
    parts = [part_of_run(step, Length()) for step in range(1, 1_000_000)]
    assert parts == sorted(parts)
    assert 60 <= len(set(parts)) <= 90


def test_the_last_step_is_shown_when_the_run_ends_early(tmp_path: Path) -> None:
    started = {"type": "run_started", "time": 1.0, "total_steps": 1_000_000, "steps_per_epoch": 500_000}
    steps: list[Event] = [{"type": "step", "time": 1.0, "step": step, "loss": float(step)} for step in range(1, 124)]
    feed(tmp_path, [started, *steps])
    assert [step for _, step, _ in shown(tmp_path)] == [50, 100]
    feed(tmp_path, [started, *steps, {"type": "run_ended", "time": 2.0, "step": 123, "outcome": "canceled"}])
    assert [step for _, step, _ in shown(tmp_path)] == [50, 100, 123]


def test_a_step_that_is_not_finite_is_shown_off_the_stride(tmp_path: Path) -> None:
    started = {"type": "run_started", "time": 1.0, "total_steps": 1_000_000, "steps_per_epoch": 500_000}
    steps: list[Event] = [
        {"type": "step", "time": 1.0, "step": step, "loss": "nan" if step == 7 else 1.0} for step in range(1, 51)
    ]
    feed(tmp_path, [started, *steps])
    assert [step for _, step, _ in shown(tmp_path)] == [7, 50]


def test_each_name_has_pictures_of_its_own(tmp_path: Path) -> None:
    events: list[Event] = [{"type": "run_started", "time": 1.0, "total_steps": 600, "steps_per_epoch": 100}]
    fields = describe(np.arange(9.0))
    for step in range(1, 601):
        events += [{"type": "histogram", "time": 1.0, "step": step, "name": name, **fields} for name in ("a", "b")]
    feed(tmp_path, events)
    a, b = ([step for step, _ in tensors(tmp_path, name)] for name in ("a", "b"))
    assert a == b == [1, *range(10, 601, 10)]


# A run of three weeks: 2 000 000 steps in 300 epochs, a reading of the machine with eight GPUs every 10 seconds,
# 60 histograms and 6 figures an epoch. What one of each takes is measured, how many are shown is counted.

TOTAL, EPOCHS = 2_000_000, 300
READINGS = 3 * 7 * 24 * 3600 // 10
HISTOGRAMS, FIGURES = 60, 6


def _size(folder: Path, events: list[Event]) -> float:
    """Bytes that each of the events adds."""
    started = {"type": "run_started", "time": 1.0, "total_steps": len(events)}
    feed(folder / "none", [started])
    feed(folder / "all", [started, *events])
    none, all_ = (sum(path.stat().st_size for path in event_files(folder / name)) for name in ("none", "all"))
    return (all_ - none) / len(events)


def _event(kind: str, **fields: Any) -> Event:
    return {"type": kind, "time": 1_780_000_000.123, "step": TOTAL, **fields}


def test_three_weeks_stay_under_200_megabytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    number = float(random.standard_normal())
    gpu = {f"{name}_percent_or_bytes": number for name in "abcdefgh"}
    step = _event("step", **{f"name_of_a_number_{index}": number for index in range(10)})
    epoch = _event("epoch", metrics={f"metric_{index}": number for index in range(60)})
    system = _event("system", host=gpu, process=gpu, gpus=[gpu] * 8)
    histogram = _event("histogram", name="weights/layers.10.attention.query", **describe(random.standard_normal(9999)))
    forecast = figures.forecast(
        "forecast",
        random.standard_normal(512),
        random.standard_normal(96),
        {level / 10: level + random.standard_normal(96) for level in range(1, 10)},
    )
    length = Length(TOTAL, TOTAL // EPOCHS)
    steps = sum(shows_step(step, length) for step in range(1, TOTAL + 1))
    readings = sum(map(shows_reading, range(READINGS)))
    pictures = len({part_of_run(number * TOTAL // EPOCHS, length) for number in range(1, EPOCHS + 1)})
    assert steps <= MOST_POINTS + EPOCHS and pictures <= MOST_PICTURES + 1
    bytes_of = {
        "steps": steps * _size(tmp_path / "step", [step]),
        "epochs": EPOCHS * _size(tmp_path / "epoch", [epoch]),
        "readings": readings * _size(tmp_path / "system", [system]),
        "histograms": HISTOGRAMS * pictures * _size(tmp_path / "histogram", [histogram]),
        "figures": FIGURES * pictures * _size(tmp_path / "figure", [_event("figure", name="f", figure=forecast)]),
    }
    assert sum(bytes_of.values()) < 200 * MEGABYTE, bytes_of
    assert min(bytes_of.values()) > 0
