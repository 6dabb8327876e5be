"""A loop of any kind gets the sinks by naming them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from toto_pipeline.errors import ConfigError
from toto_pipeline.events import TrainingLogger, read_events
from toto_pipeline.monitoring.status import read_status
from toto_pipeline_tests.monitoring.tensorboard_reading import measured, shown

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
PATIENCE_SECONDS = 120


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    reading, writing = (next(b for b in blocks if name in b) for name in ("import read_run", "import TrainingLogger"))
    exec(writing, {})  # noqa: S102 - the guide's code is what is tested
    found: dict[str, Any] = {}
    exec(reading.replace(".toto/runs/<run>", "runs/mine"), found)  # noqa: S102
    losses = found["frame"].query("name == 'train/loss'")
    assert list(losses["step"]) == list(range(1, 301))
    _wait_for_the_follower(tmp_path / "runs" / "mine")


def test_a_plain_loop_is_seen_in_tensorboard(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    with TrainingLogger(run, epochs=1, steps_per_epoch=20, sinks=["tensorboard"], console=False) as log:
        for step in range(20):
            log.step(loss=1.0 / (step + 1), lr=0.1)
        log.epoch(validation_loss=0.5)
    _wait_for_the_follower(run)
    assert shown(run) == sorted(measured(list(read_events(run))))
    assert [step for name, step, _ in shown(run) if name == "train/loss"] == list(range(1, 21))


def test_a_sink_that_is_not_there_is_refused_before_the_loop_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        TrainingLogger(tmp_path, sinks=["tensorbord"])
    assert list(tmp_path.iterdir()) == []


def _wait_for_the_follower(run: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (status := read_status(run)) is None or status.sinks["tensorboard"].state != "done":
        assert time.monotonic() < deadline, (run / "monitoring" / "follower.log").read_text()
        time.sleep(0.05)
