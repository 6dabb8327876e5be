"""Several training processes, started by torch elastic over gloo, and what is the same as in one."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.events.log import epochs, latest_attempt, read_events
from toto_pipeline.home import Home
from toto_pipeline.training.launcher import Training
from toto_pipeline_tests.conftest import make_training_data, write_series
from toto_pipeline_tests.resume.small_runs import history, new_run, of_type, order, settings, weights

pytestmark = pytest.mark.slow
TWO: dict[str, Any] = {"distributed": {"processes": 2, "timeout_seconds": 60}}
FSDP: dict[str, Any] = {"distributed": {"processes": 2, "strategy": "fsdp", "timeout_seconds": 60}}
MUON: dict[str, Any] = {"optimizer": "muon"}


class Runs:
    """The runs of this module, each trained once through the launcher."""

    def __init__(self, home: Home, data: TrainingData) -> None:
        self.home = home
        self.data = data

    def train(self, name: str, **changes: Any) -> Path:
        """Train to the end, in a new run or going on in one that is there."""
        run_folder = self.home.run(name)
        run_folder.mkdir(parents=True, exist_ok=True)
        with Training(run_folder, order(self.data, **changes)) as training:
            for _ in training.events():
                pass
            assert training.ending()["outcome"] == "completed"
        return run_folder

    def quiet(self, **changes: Any) -> Path:
        """The run that nothing happened to."""
        name = "quiet-" + hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:12]
        done = self.home.run(name)
        return done if done.exists() else self.train(name, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    home = Home(folder / "home").prepare()
    return Runs(home, make_training_data(home, write_series(folder / "input")))


def _assert_close(run_folder: Path, other: Path) -> None:
    """The same course and the same weights, but for the order in which floats are added up.

    Where a gradient is almost zero AdamW still takes a whole step, so single weights may be some steps apart.
    """
    one, two = (epochs(read_events(folder)) for folder in (run_folder, other))
    assert [e["step"] for e in one] == [e["step"] for e in two]
    for name in ("train_loss", "validation_loss", "gradient_norm"):
        assert [e[name] for e in one] == pytest.approx([e[name] for e in two], rel=1e-5)
    mine, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run_folder, other))
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-2)


@pytest.mark.parametrize("way", [TWO, FSDP, {**TWO, "accumulation": 2}], ids=["ddp", "fsdp", "ddp-accumulation"])
def test_two_processes_train_as_one_does(runs: Runs, way: dict[str, Any]) -> None:
    run_folder = runs.quiet(**way)
    (started,) = of_type(run_folder, "run_started")
    assert started["processes"] == 2
    _assert_close(run_folder, runs.quiet())
    steps = [event["step"] for event in latest_attempt(read_events(run_folder)) if event["type"] == "step"]
    assert steps == list(range(1, 19))


@pytest.mark.parametrize("way", [TWO, FSDP], ids=["ddp", "fsdp"])
def test_two_processes_train_with_muon_as_one_does(runs: Runs, way: dict[str, Any]) -> None:
    _assert_close(runs.quiet(**way, **MUON), runs.quiet(**MUON))


def test_a_sharded_run_with_muon_goes_on_in_one_process(runs: Runs) -> None:
    run_folder = new_run(runs.home, "moved-muon", runs.data)
    with Training(run_folder, order(runs.data, **FSDP, **MUON)) as training:
        next(event for event in training.events() if event["type"] == "epoch")
    assert of_type(run_folder, "run_ended")[-1]["outcome"] == "canceled"
    runs.train(run_folder.name, **MUON)
    _assert_close(run_folder, runs.quiet(**MUON))


@pytest.mark.parametrize(
    ("way", "when", "saved"),
    [
        pytest.param(TWO, {"step": 15}, {12}, id="ddp-in-a-step"),
        pytest.param(FSDP, {"step": 15}, {12}, id="fsdp-in-a-step"),
        # Rank 0 holds all there is to save, so it may finish the save before it learns of the death.
        pytest.param(TWO, {"save": 2}, {6, 12}, id="ddp-in-a-save"),
        pytest.param(FSDP, {"save": 2}, {6}, id="fsdp-in-a-save"),
    ],
)
def test_a_rank_that_is_killed_takes_the_others_along_and_all_go_on(
    runs: Runs, tmp_path: Path, way: dict[str, Any], when: dict[str, int], saved: set[int]
) -> None:
    killer = {"marker": str(tmp_path / "killed"), "rank": 1, **when}
    callbacks = {"toto_pipeline_tests.faults.callbacks:KillRank": killer}
    hurt = runs.train(f"hurt-{tmp_path.name}", callbacks=callbacks, checkpoints={"asynchronous": False}, **way)
    assert (tmp_path / "killed").exists()
    _, again = of_type(hurt, "run_started")
    assert again["resumed_from"] in saved
    assert history(hurt) == history(runs.quiet(**way))
    assert weights(hurt) == weights(runs.quiet(**way))


@pytest.mark.parametrize(("first", "then"), [(FSDP, {}), (FSDP, TWO), (TWO, {}), ({}, FSDP)])
def test_a_run_goes_on_with_another_number_of_processes(
    runs: Runs, tmp_path: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    run_folder = new_run(runs.home, f"moved-{tmp_path.name}", runs.data)
    with Training(run_folder, order(runs.data, **first)) as training:
        next(event for event in training.events() if event["type"] == "epoch")
    stopped = of_type(run_folder, "run_ended")[-1]
    assert stopped["outcome"] == "canceled"
    runs.train(run_folder.name, **then)
    assert of_type(run_folder, "run_started")[-1]["resumed_from"] == stopped["step"]
    _assert_close(run_folder, runs.quiet())


def test_two_machines_meet_at_the_rendezvous(runs: Runs) -> None:
    meeting = {"processes": 1, "nodes": 2, "rendezvous": f"127.0.0.1:{_free_port()}", "timeout_seconds": 60}
    joining = "import sys, pathlib; from toto_pipeline.training.launcher import take_part; "
    joining += "sys.exit(take_part(pathlib.Path(sys.argv[1])))"
    with subprocess.Popen([sys.executable, "-c", joining, str(runs.home.run("machines"))]) as second:
        run_folder = runs.train("machines", distributed=meeting)
        assert second.wait(60) == 0
    (started,) = of_type(run_folder, "run_started")
    assert started["processes"] == 2
    _assert_close(run_folder, runs.quiet())


def test_what_does_not_fit_together_is_said_when_the_settings_are_read() -> None:
    for changes, message in (
        ({"batch_size": 5, **TWO}, "multiple of processes"),
        ({"distributed": {"nodes": 2}}, "rendezvous"),
        ({"precision": "fp16", **FSDP}, "bf16"),
        ({"tune": "lora", **FSDP}, "lora"),
        ({"tune": "lora", **MUON}, "set tune to full"),
        ({"tune": "head", **MUON}, "use optimizer adamw"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(**changes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
