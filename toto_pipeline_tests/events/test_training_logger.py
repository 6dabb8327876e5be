from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toto_pipeline.errors import ConfigError
from toto_pipeline.events import TrainingLogger, figures, read_events, read_run
from toto_pipeline.events.log import EventWriter
from toto_pipeline.events.narrator import Narrator
from toto_pipeline.events.schema import Event


def _logger(folder: Path, **options: Any) -> TrainingLogger:
    return TrainingLogger(folder, **{"system_seconds": None, "console": False, **options})


def _events(folder: Path, kind: str) -> list[Event]:
    return [event for event in read_events(folder) if event["type"] == kind]


def test_a_plain_loop_leaves_a_whole_log(tmp_path: Path) -> None:
    with _logger(tmp_path / "run", config={"lr": 0.1}, epochs=2, steps_per_epoch=3) as log:
        for _ in range(2):
            for step in range(3):
                log.step(loss=1.0 / (step + 1), lr=0.1)
            log.epoch(validation_loss=0.5, metrics={"MASE": 0.9})
    (started,) = _events(tmp_path / "run", "run_started")
    assert started["config"] == {"lr": 0.1} and started["total_steps"] == 6
    steps = _events(tmp_path / "run", "step")
    assert [(event["step"], event["epoch"]) for event in steps] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)]
    assert all(event["learning_rate"] == 0.1 and event["seconds"] >= 0 and "lr" not in event for event in steps)
    assert [event["epoch"] for event in _events(tmp_path / "run", "epoch")] == [1, 2]
    (ended,) = _events(tmp_path / "run", "run_ended")
    assert ended["outcome"] == "completed"
    assert set(read_run(tmp_path / "run")["name"]) == {
        "train/loss",
        "train/learning_rate",
        "speed/step_seconds",
        "validation/loss",
        "validation/MASE",
    }


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError("no"), "failed"), (KeyboardInterrupt(), "canceled"), (SystemExit(0), "completed")],
)
def test_the_end_is_told_as_it_was(tmp_path: Path, error: BaseException, outcome: str) -> None:
    with pytest.raises(type(error)), _logger(tmp_path):
        raise error
    (ended,) = _events(tmp_path, "run_ended")
    assert ended["outcome"] == outcome
    assert outcome != "failed" or ended["reason"] == "ValueError: no"


def test_an_early_stop_is_told(tmp_path: Path) -> None:
    with _logger(tmp_path) as log:
        log.stop("good enough")
    assert [(e["outcome"], e["reason"]) for e in _events(tmp_path, "run_ended")] == [("stopped", "good enough")]


def test_a_validation_is_no_part_of_the_step_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with TrainingLogger(tmp_path, system_seconds=None, console=False) as log:
        for passed in (1.0, 2.0):
            now[0] += passed
            log.step(loss=1.0)
        now[0] += 50.0  # the validation
        log.epoch(validation_loss=1.0)
        now[0] += 3.0
        log.step(loss=1.0)
    assert [event["seconds"] for event in read_events(tmp_path) if event["type"] == "step"] == [1.0, 2.0, 3.0]


def test_tensors_are_logged_as_they_are_now(tmp_path: Path) -> None:
    import torch

    with _logger(tmp_path) as log:
        loss = torch.tensor(2.0, requires_grad=True)
        log.step(loss=loss * 1.5, norm=np.float32(0.5), accuracy=torch.tensor([1]))
        total = torch.tensor(1.0)
        log.step(loss=total)
        total += 5
        with pytest.raises(ValueError, match=r"loss has the shape \(3,\)"):
            log.step(loss=torch.zeros(3))
    first, second = _events(tmp_path, "step")[:2]
    assert (first["loss"], first["norm"], first["accuracy"]) == (3.0, 0.5, 1)
    assert second["loss"] == 1.0


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_histogram_is_of_the_values_at_its_time(tmp_path: Path, kind: str) -> None:
    import torch

    values: Any = torch.linspace(-1, 1, 1001) if kind == "tensor" else np.linspace(-1, 1, 1001)
    values[0] = math.inf
    with _logger(tmp_path) as log:
        log.histogram("weights/a", values)
        values[:] = 0
    (event,) = _events(tmp_path, "histogram")
    assert event["name"] == "weights/a" and event["not_finite"] == 1
    assert sum(event["counts"]) == 1000 and len(event["edges"]) == len(event["counts"]) + 1
    assert event["edges"] == sorted(event["edges"])
    assert event["minimum"] == pytest.approx(-0.998) and event["maximum"] == 1
    assert event["mean"] == pytest.approx(0.001, abs=1e-6) and event["deviation"] == pytest.approx(0.577, abs=0.01)


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [0.0, 0.0], [1e30, 1e30]])
def test_a_histogram_of_hardly_anything_is_written(tmp_path: Path, values: list[float]) -> None:
    with _logger(tmp_path) as log:
        log.histogram("h", np.array(values))
    (event,) = _events(tmp_path, "histogram")
    assert sum(event["counts"]) == sum(map(math.isfinite, values))
    assert event["edges"] == sorted(set(event["edges"]))


def test_figures_texts_and_models_are_data(tmp_path: Path) -> None:
    import torch
    from matplotlib.figure import Figure

    with _logger(tmp_path) as log:
        log.figure("a", figures.scatter("t", [1, math.nan], iter([0.1, math.inf]), diagonal=True))
        log.figure("b", figures.forecast("t", np.arange(3), np.arange(2), {0.1: [0, 1], 0.5: [1, 2]}))
        log.figure("c", Figure())
        log.text("note", "**hello**")
        log.model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))
    drawn = {event["name"]: event["figure"] for event in _events(tmp_path, "figure")}
    assert drawn["a"]["x"] == [1, None] and drawn["a"]["y"] == [0.1, None]
    assert drawn["b"]["quantiles"] == {"0.1": [0, 1], "0.5": [1, 2]}
    assert drawn["c"]["kind"] == "image" and len(drawn["c"]["png"]) > 100
    assert [event["text"] for event in _events(tmp_path, "text")] == ["**hello**"]
    (model,) = _events(tmp_path, "model")
    assert model["modules"] == [
        {"name": "0", "kind": "Linear", "parameters": {"weight": [3, 2], "bias": [3]}, "trained": 9},
        {"name": "1", "kind": "ReLU", "parameters": {}, "trained": 0},
    ]


def test_statistics_tell_where_a_metric_goes_and_go_on_after_a_restart(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with _logger(tmp_path / "a") as log:
        for step in range(200):
            log.step(loss=10 - 0.03 * step + 0.1 * random.normal(), flat=random.normal(), seconds=1.0)
        log.step(loss=math.nan, flat=0, seconds=1.0)
        found = log.statistics()
        state = json.loads(json.dumps(log.state_dict()))
    assert found["train/loss"]["trend"] == "falling" and found["train/flat"]["trend"] == "flat"
    assert found["train/loss"]["slope"] == pytest.approx(-0.03, rel=0.1)
    assert found["train/loss"]["count"] == 200 and found["train/loss"]["not_finite"] == 1
    with _logger(tmp_path / "b") as log:
        log.load_state_dict(state)
        again = log.statistics()
        log.step(loss=0.0)
    np.testing.assert_equal(again, found)
    assert _events(tmp_path / "b", "step")[0]["step"] == 202


def test_a_second_start_is_the_next_attempt_and_stands_for_what_it_repeats(tmp_path: Path) -> None:
    for resumed_from, steps in ((None, 4), (2, 1)):
        with _logger(tmp_path, resumed_from=resumed_from, steps_per_epoch=2) as log:
            for _ in range(steps):
                log.step(loss=1.0)
    assert [event["attempt"] for event in _events(tmp_path, "run_started")] == [1, 2]
    frame = read_run(tmp_path, types=("step",))
    assert list(frame[frame["name"] == "train/loss"]["step"]) == [1, 2, 3]
    assert _events(tmp_path, "step")[-1]["epoch"] == 1


def test_a_value_that_cannot_be_written_is_told_and_takes_nothing_with_it(tmp_path: Path) -> None:
    with _logger(tmp_path) as log:
        log.step(loss=1.0)
        log.step(loss={1, 2})
        log.step(loss=3.0)
    assert [event["loss"] for event in _events(tmp_path, "step")] == [1.0, 3.0]
    (warning,) = _events(tmp_path, "warning")
    assert warning["name"] == "event_not_written" and warning["step"] == 2


def test_a_loop_that_is_killed_has_lost_nothing_that_was_flushed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from toto_pipeline.events import TrainingLogger\n"
        "with TrainingLogger(sys.argv[1], console=False) as log:\n"
        "    for _ in range(50): log.step(loss=1.0)\n"
        "    log.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(_events(tmp_path, "step")) == 50 and not _events(tmp_path, "run_ended")


def test_logging_needs_neither_torch_nor_dagster_nor_a_tool(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from toto_pipeline.events import TrainingLogger\n"
        "with TrainingLogger(sys.argv[1]) as log: log.step(loss=1.0)\n"
        "print([m for m in "
        "('torch', 'dagster', 'mlflow', 'tensorboard', 'pandas', 'matplotlib', 'toto2') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def _narrated(format: str) -> str:
    stream = io.StringIO()
    narrate = Narrator(format, stream)
    narrate(
        [
            {"type": "step", "step": 1, "loss": 0.5},
            {"type": "epoch", "epoch": 1, "step": 5, "validation_loss": 0.123456, "metrics": {"MASE": 0.987654}},
            {"type": "warning", "name": "explosion", "message": "the gradient explodes"},
            {"type": "run_ended", "outcome": "failed", "reason": "disk"},
        ]
    )
    return stream.getvalue()


def test_machines_read_one_object_a_line() -> None:
    lines = [json.loads(line) for line in _narrated("json").splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("epoch", "info"),
        ("warning", "warning"),
        ("run_ended", "error"),
    ]
    assert lines[0]["validation_loss"] == 0.1235 and lines[0]["metrics"] == {"MASE": 0.9877}


def test_people_read_lines() -> None:
    text = _narrated("console")
    assert "validation_loss=0.1235" in text and "the gradient explodes" in text and "\x1b" not in text


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTO_LOG_FORMAT", "xml")
    with pytest.raises(ConfigError, match="console or json"):
        Narrator()


def test_events_of_another_thread_and_a_soon_flush_are_written(tmp_path: Path) -> None:
    with EventWriter(tmp_path, flush_seconds=3600) as log:
        log.append("step", step=1)
        log.flush_soon()
        while not _events(tmp_path, "step"):
            pass
