from __future__ import annotations

import math
from pathlib import Path

import pytest

from toto_pipeline.errors import ConfigError
from toto_pipeline.events import read_run
from toto_pipeline.events.log import EventWriter
from toto_pipeline.events.measurements import measurements


def _restarted(folder: Path) -> None:
    """Four steps, a death, and an attempt that goes on from step 2."""
    with EventWriter(folder, segment_bytes=300, clock=lambda: 86_400.0) as log:
        log.append("run_started", resumed_from=None, config={"epochs": 3})
        for step in (1, 2, 3, 4):
            log.append("step", step=step, epoch=0, loss=float(step), name="ignored", flag=True)
            log.flush()
    with EventWriter(folder, attempt=2) as log:
        log.append("run_started", resumed_from=2)
        log.append("step", step=3, epoch=0, loss=math.nan)
        log.append(
            "epoch", step=3, epoch=1, validation_loss=0.5, metrics={"MASE": 0.9}, checkpoint="checkpoints/step_3"
        )
        log.append("system", step=3, host={"cpu_percents": [1.0, 2.0]}, gpus=[{"name": "H100", "power_watts": 300}])
        log.append("warning", name="w", message="no number")


def test_a_run_is_a_tidy_frame_without_what_a_restart_went_back_on(tmp_path: Path) -> None:
    _restarted(tmp_path)
    frame = read_run(tmp_path)
    assert list(frame.columns) == ["time", "type", "attempt", "step", "epoch", "name", "value"]
    losses = frame[frame["name"] == "train/loss"]
    assert list(losses["step"]) == [1, 2, 3]
    assert list(losses["attempt"]) == [1, 1, 2]
    assert list(losses["value"])[:2] == [1.0, 2.0] and math.isnan(losses["value"].iloc[2])
    assert set(frame["name"]) == {
        "train/loss",
        "validation/loss",
        "validation/MASE",
        "host/cpu_percents/0",
        "host/cpu_percents/1",
        "gpu/0/power_watts",
    }
    assert str(frame["time"].iloc[0]) == "1970-01-02 00:00:00+00:00"


def test_every_attempt_can_be_kept_and_types_chosen(tmp_path: Path) -> None:
    _restarted(tmp_path)
    steps = read_run(tmp_path, types=("step",), every_attempt=True)
    assert list(steps["step"]) == [1, 2, 3, 4, 3]
    assert set(steps["type"]) == {"step"}


def test_a_number_without_a_step_has_none(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as log:
        log.append("checkpoint_saved", bytes=5)
    frame = read_run(tmp_path)
    assert frame["step"].isna().all() and frame["epoch"].isna().all()


def test_a_folder_without_a_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no event log"):
        read_run(tmp_path)


def test_an_empty_log_is_an_empty_frame(tmp_path: Path) -> None:
    EventWriter(tmp_path).close()
    assert read_run(tmp_path).empty


def test_events_that_measure_nothing_have_no_measurements() -> None:
    assert list(measurements({"type": "run_started", "pid": 5})) == []
    assert list(measurements({"type": "of_tomorrow", "value": 5})) == []
