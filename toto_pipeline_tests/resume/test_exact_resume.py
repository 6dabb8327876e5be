"""A run that was stopped or killed anywhere ends with the weights and the history of one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.home import Home
from toto_pipeline_tests.conftest import make_training_data, write_series
from toto_pipeline_tests.nursery import Nursery
from toto_pipeline_tests.resume.small_runs import history, new_run, of_type, outcomes, weights

KILLED = -signal.SIGKILL
GOLDEN = Path(__file__).resolve().parents[1] / "checkpoints" / "golden"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("runs")
    return make_training_data(Home(folder).prepare(), write_series(folder / "input"))


@pytest.fixture(scope="module")
def runs(data: TrainingData) -> Home:
    return Home(data.folder.parent.parent)


class _Quiet:
    """The runs that nothing happened to, one for each way of training, each made once."""

    def __init__(self, nursery: Nursery, home: Home, data: TrainingData) -> None:
        self._make = (nursery, home, data)
        self._made: dict[str, Path] = {}

    def __call__(self, **changes: Any) -> Path:
        nursery, home, data = self._make
        name = f"quiet-{len(self._made)}"
        key = repr(sorted(changes.items()))
        if key not in self._made:
            run_folder = new_run(home, name, data, **changes)
            assert nursery.train(run_folder)["code"] == 0, (run_folder / "trainer.log").read_text()
            self._made[key] = run_folder
        return self._made[key]


@pytest.fixture(scope="module")
def quiet(nursery: Nursery, runs: Home, data: TrainingData) -> _Quiet:
    return _Quiet(nursery, runs, data)


def _assert_same(run_folder: Path, quiet: Path) -> None:
    assert history(run_folder) == history(quiet)
    assert weights(run_folder) == weights(quiet)


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every_steps": {"checkpoints": {"every_steps": 2}},
    "accumulation": {"accumulation": 2},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "checkpoints": {"every_steps": 4}},
    "lora": {"tune": "lora"},
    "plateau": {"plateau": {"patience": 0, "threshold": 0.5}},
    "worker": {"loader_workers": 1},
    "head": {"tune": "head"},
    "muon": {"optimizer": "muon"},
    "deterministic": {"deterministic": True},
    "random": {"callbacks": {"toto_pipeline_tests.resume.callbacks:DrawNumbers": {}}},
}


@pytest.mark.parametrize("way", WAYS)
def test_stopped_in_mid_epoch_and_gone_on_with(
    nursery: Nursery, runs: Home, data: TrainingData, quiet: _Quiet, way: str
) -> None:
    run_folder = new_run(runs, f"stopped-{way}", data, **WAYS[way])
    epochs = 2 if way == "plateau" else 1  # the rate is lowered for the first time after the second
    calls = (8 * epochs) * WAYS[way].get("accumulation", 1) + 4
    assert nursery.train(run_folder, fault="ask to stop at loss", at=calls)["code"] == 0
    (stopped,) = of_type(run_folder, "run_ended")
    assert stopped["outcome"] == "canceled"
    assert 6 * epochs < stopped["step"] < 6 * epochs + 6
    assert way != "plateau" or [w["name"] for w in of_type(run_folder, "warning")] == ["learning_rate_reduced"]
    assert nursery.train(run_folder)["code"] == 0
    assert [e["resumed_from"] for e in of_type(run_folder, "run_started")] == [None, stopped["step"]]
    _assert_same(run_folder, quiet(**WAYS[way]))


@pytest.mark.parametrize("way", ["plain", "every_steps", "plateau", "muon"])
@pytest.mark.parametrize("call", [2, 9, 14])
def test_killed_in_a_step_and_gone_on_with(
    nursery: Nursery, runs: Home, data: TrainingData, quiet: _Quiet, way: str, call: int
) -> None:
    run_folder = new_run(runs, f"killed-{way}-{call}", data, **WAYS[way])
    assert nursery.train(run_folder, fault="kill at loss", at=call)["code"] == KILLED
    assert nursery.train(run_folder)["code"] == 0
    assert outcomes(run_folder) == ["completed"]
    _assert_same(run_folder, quiet(**WAYS[way]))


@pytest.mark.parametrize("fault", ["ask to stop at loss", "ask to stop in validation"])
def test_told_to_stop_in_the_first_step_or_in_validation(
    nursery: Nursery, runs: Home, data: TrainingData, quiet: _Quiet, fault: str
) -> None:
    run_folder = new_run(runs, fault.replace(" ", "-"), data)
    assert nursery.train(run_folder, fault=fault, at=1)["code"] == 0
    (stopped,) = of_type(run_folder, "run_ended")
    assert (stopped["outcome"], stopped["epoch"]) == ("canceled", 0)
    assert stopped["step"] == (1 if "loss" in fault else 6)
    assert nursery.train(run_folder)["code"] == 0
    _assert_same(run_folder, quiet())


@pytest.mark.parametrize("way", ["lora", "head", "plain"])
def test_what_is_trained_on_random_weights_is_told_at_the_start(quiet: _Quiet, way: str) -> None:
    warnings = [w for w in of_type(quiet(**WAYS[way]), "warning") if w["name"] == "adapters_on_random_weights"]
    assert len(warnings) == (0 if way == "plain" else 1)
    assert all("model.weights" in w["message"] and WAYS[way]["tune"] in w["message"] for w in warnings)


def test_no_warning_of_random_weights_where_there_are_trained_ones(
    nursery: Nursery, runs: Home, data: TrainingData, quiet: _Quiet
) -> None:
    trained = str(quiet() / "model")
    run_folder = new_run(runs, "on-trained", data, tune="lora", model={"weights": trained})
    assert nursery.train(run_folder)["code"] == 0, (run_folder / "trainer.log").read_text()
    assert of_type(run_folder, "warning") == []


def test_a_loss_scale_that_was_lowered_stays_lowered(nursery: Nursery, runs: Home, data: TrainingData) -> None:
    lowered, resumed = (new_run(runs, name, data, precision="fp16") for name in ("lowered", "lowered-resumed"))
    assert nursery.train(lowered, fault="loss is nan", at=4)["code"] == 0
    shutil.copytree(lowered / "checkpoints" / "step_6", resumed / "checkpoints" / "step_6")
    assert nursery.train(resumed)["code"] == 0
    ends = [json.loads((run / "checkpoints" / "step_18" / "state.json").read_bytes()) for run in (lowered, resumed)]
    assert ends[0]["loss_scaler"]["scale"] == 2.0**15  # half of what it starts with
    assert ends[0]["loss_scaler"] == ends[1]["loss_scaler"]
    assert weights(lowered) == weights(resumed)


def test_it_is_saved_whenever_the_minutes_have_passed(nursery: Nursery, runs: Home, data: TrainingData) -> None:
    run_folder = new_run(runs, "minutes", data, checkpoints={"every_epochs": None, "every_minutes": 1e-9})
    assert nursery.train(run_folder)["code"] == 0
    assert [e["step"] for e in of_type(run_folder, "checkpoint_saved")] == list(range(1, 19))
    rarely = new_run(runs, "minutes-rarely", data, checkpoints={"every_epochs": None, "every_minutes": 1e9})
    assert nursery.train(rarely)["code"] == 0
    assert [e["step"] for e in of_type(rarely, "checkpoint_saved")] == [18]  # the end is always saved


def test_a_run_that_was_over_stays_as_it_was(nursery: Nursery, runs: Home, data: TrainingData) -> None:
    run_folder = new_run(runs, "over", data)
    assert nursery.train(run_folder)["code"] == 0
    first = weights(run_folder), history(run_folder)
    assert nursery.train(run_folder)["code"] == 0
    assert outcomes(run_folder) == ["completed", "completed"]
    assert (weights(run_folder), history(run_folder)) == first


def test_a_run_that_was_stopped_early_stays_stopped(nursery: Nursery, runs: Home, data: TrainingData) -> None:
    changes = {"epochs": 20, "early_stopping": {"patience": 1, "min_delta": 10.0}}
    run_folder = new_run(runs, "early", data, **changes)
    assert nursery.train(run_folder)["code"] == 0
    assert nursery.train(run_folder)["code"] == 0
    first, second = of_type(run_folder, "run_ended")
    assert first["outcome"] == second["outcome"] == "stopped"
    assert (first["step"], first["reason"]) == (second["step"], second["reason"])


def test_the_last_weights_are_published_where_the_best_are_not_wanted(
    nursery: Nursery, runs: Home, data: TrainingData
) -> None:
    from safetensors.torch import load_file

    # "best" by the highest loss, so that it is not the last of a run that learns
    changes = {"epochs": 5, "checkpoints": {"mode": "max", "keep_last": 5}}
    folders = {best: new_run(runs, f"restore-{best}", data, restore_best=best, **changes) for best in (True, False)}
    for folder in folders.values():
        assert nursery.train(folder)["code"] == 0
    (ended,) = of_type(folders[True], "run_ended")
    assert ended["best"]["epoch"] < 5
    for best, step in ((True, ended["best"]["step"]), (False, 30)):
        saved = load_file(folders[best] / "checkpoints" / f"step_{step}" / "model.safetensors")
        published = load_file(folders[best] / "model" / "model.safetensors")
        assert all(published[name].equal(saved[name]) for name in published)


def test_a_run_that_an_older_version_saved_goes_on(nursery: Nursery, runs: Home, data: TrainingData) -> None:
    model = {"patch_size": 8, "d_model": 8, "num_heads": 2, "num_layers": 1, "layer_group_size": 1, "d_ff": 8}
    run_folder = new_run(runs, "older", data, model=model, steps_per_epoch=4)
    shutil.copytree(GOLDEN / "schema_1", run_folder / "checkpoints")
    assert nursery.train(run_folder)["code"] == 0, (run_folder / "trainer.log").read_text()
    (started,) = of_type(run_folder, "run_started")
    assert started["resumed_from"] == 8
    (epoch,) = of_type(run_folder, "epoch")
    assert (epoch["epoch"], epoch["step"]) == (3, 12)
    assert epoch["validation_loss"] < 0.2696  # it was that when it was saved


@pytest.mark.slow
def test_killed_at_fifty_random_instants(nursery: Nursery, runs: Home, data: TrainingData, quiet: _Quiet) -> None:
    changes = {"epochs": 4, "steps_per_epoch": 12, "checkpoints": {"every_steps": 5}}
    reference = quiet(**changes)
    longest = nursery.train(new_run(runs, "random-measured", data, **changes))["seconds"]
    instants = random.Random(0)
    kills = attempts = 0
    while kills < 50:
        run_folder = new_run(runs, f"random-{attempts}", data, **changes)
        while (ended := nursery.train(run_folder, kill_after=instants.uniform(0.0, longest))["code"]) == KILLED:
            kills += 1
        assert ended == 0, (run_folder / "trainer.log").read_text()
        _assert_same(run_folder, reference)
        attempts += 1
        assert attempts < 200, "the trainers end before they are killed"


@pytest.mark.slow
def test_killed_at_every_file_operation_of_its_first_saves(
    nursery: Nursery, runs: Home, data: TrainingData, quiet: _Quiet
) -> None:
    operation, code = 0, KILLED
    while code == KILLED and operation < 60:
        operation += 1
        run_folder = new_run(runs, f"operation-{operation}", data)
        code = nursery.train(run_folder, fault="kill at file operation", at=operation)["code"]
        if code == KILLED:
            assert nursery.train(run_folder)["code"] == 0
        _assert_same(run_folder, quiet())
    assert operation > 10
