"""Hugging Face's trainer, watched: what the log holds is what the training did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline_tests.integrations.processes import environment, in_two_processes, install_transformers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_transformers(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, "-m", "toto_pipeline_tests.integrations.transformers_cases", str(folder)],
        env=environment(packages),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def of(folder: Path, kind: str) -> list[Event]:
    return [event for event in read_events(folder) if event["type"] == kind]


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    """What the trainer itself keeps, where it has this number."""
    return [entry for entry in json.loads((folder / "computed.json").read_bytes()) if name in entry]


def test_every_step_is_as_the_trainer_has_it(runs: Path) -> None:
    steps, computed = of(runs / "smooth", "step"), logged(runs / "smooth", "loss")
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert [event["epoch"] for event in steps] == [0] * 6 + [1] * 6
    for ours, theirs in (("loss", "loss"), ("learning_rate", "learning_rate"), ("gradient_norm", "grad_norm")):
        assert [event[ours] for event in steps] == pytest.approx([entry[theirs] for entry in computed])
    assert all(event["seconds"] > 0 for event in steps)


def test_an_epoch_has_its_evaluation_by_the_names_that_tools_show(runs: Path) -> None:
    epochs, computed = of(runs / "smooth", "epoch"), logged(runs / "smooth", "eval_loss")
    assert [(event["epoch"], event["step"]) for event in epochs] == [(1, 6), (2, 12)]
    assert [event["validation_loss"] for event in epochs] == pytest.approx([entry["eval_loss"] for entry in computed])
    assert [event["metrics"] for event in epochs] == [{"accuracy": 0.5}] * 2


def test_what_is_logged_now_and_then_is_recorded_then(runs: Path) -> None:
    steps = of(runs / "sparse", "step")
    assert [event["step"] for event in steps] == [5, 10]
    computed = {entry["step"]: entry["eval_loss"] for entry in logged(runs / "sparse", "eval_loss")}
    assert list(computed) == [4, 8, 12]
    assert [event["eval_loss"] for event in steps] == pytest.approx([computed[4], computed[8]])
    first, second = of(runs / "sparse", "epoch")
    assert "validation_loss" not in first
    assert second["validation_loss"] == pytest.approx(computed[12])


def test_the_settings_are_known_even_where_json_has_no_word_for_them(runs: Path) -> None:
    (started,) = of(runs / "smooth", "run_started")
    assert started["config"]["per_device_train_batch_size"] == 8
    assert started["config"]["note"] == "mine" and "tanh" in started["config"]["odd"]
    assert (started["epochs"], started["steps_per_epoch"], started["total_steps"]) == (2, 6, 12)
    assert "layer" in [module["name"] for module in of(runs / "smooth", "model")[0]["modules"]]


@pytest.mark.parametrize(
    ("run", "outcome", "reason", "steps"),
    [
        ("smooth", "completed", "the loop has ended", 12),
        ("stopped", "stopped", "the trainer was told to stop", 12),
        ("failed", "failed", "RuntimeError: the data ran away", 6),
        ("interrupted", "canceled", "interrupted", 6),
    ],
)
def test_how_it_ended_is_known(runs: Path, run: str, outcome: str, reason: str, steps: int) -> None:
    (ended,) = of(runs / run, "run_ended")
    assert (ended["outcome"], ended["reason"]) == (outcome, reason)
    assert len(of(runs / run, "step")) == steps


def test_a_training_that_goes_on_from_a_checkpoint_is_the_next_attempt(runs: Path) -> None:
    first, second = of(runs / "resumed", "run_started")
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert (first["resumed_from"], second["resumed_from"]) == (None, 6)
    assert [event["step"] for event in of(runs / "resumed", "step")] == list(range(1, 13))
    assert [event["epoch"] for event in of(runs / "resumed", "epoch")] == [1, 2]


def test_the_training_process_imports_no_dagster(runs: Path) -> None:
    modules = json.loads((runs / "modules.json").read_bytes())
    assert not any(name.split(".")[0] == "dagster" for name in modules)


def test_of_two_processes_the_first_records(tmp_path: Path, packages: Path) -> None:
    cases = "toto_pipeline_tests.integrations.transformers_cases"
    run = tmp_path / "run"
    script = f"from pathlib import Path\nfrom {cases} import train\ntrain(Path({str(run)!r}), ddp_backend='gloo')\n"
    in_two_processes(script, tmp_path, packages)
    assert len(of(run, "run_started")) == len(of(run, "run_ended")) == 1
    assert [event["step"] for event in of(run, "step")] == list(range(1, 7))
