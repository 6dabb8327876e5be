"""Faults of a training, caused for real in real training processes."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toto_pipeline.checkpoints.manager import CheckpointManager
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import StorageError, TrainingError
from toto_pipeline.events.log import epochs, read_events
from toto_pipeline.events.processes import process_name
from toto_pipeline.events.schema import number
from toto_pipeline.home import Home
from toto_pipeline.training.launcher import Training
from toto_pipeline.training.process import LAUNCHER_VARIABLE, lock_run
from toto_pipeline.training.run_files import read_order, write_order
from toto_pipeline_tests.nursery import Nursery
from toto_pipeline_tests.resume.small_runs import history, new_run, of_type, order, outcomes, weights


def _train(run_folder: Path, data: TrainingData, **changes: Any) -> dict[str, Any]:
    """A run as the pipeline makes it: through the launcher, to its end."""
    with Training(run_folder, order(data, **changes)) as training:
        for _ in training.events():
            pass
        return training.ending()


def test_a_step_with_a_loss_that_is_not_finite_is_skipped_counted_and_told(
    nursery: Nursery, home: Home, training_data: TrainingData
) -> None:
    run_folder = new_run(home, "spoiled", training_data)
    assert nursery.train(run_folder, fault="loss is nan", at=4)["code"] == 0
    assert outcomes(run_folder) == ["completed"]
    losses = [number(event["loss"]) for event in of_type(run_folder, "step")]
    assert [step for step, loss in enumerate(losses, start=1) if math.isnan(loss)] == [4]
    assert [e["skipped_steps"] for e in of_type(run_folder, "epoch")] == [1, 0, 0]
    assert all(math.isfinite(number(e["train_loss"])) for e in of_type(run_folder, "epoch"))
    (warning,) = [e for e in of_type(run_folder, "warning") if e["name"] == "steps_skipped"]
    assert "4" in warning["message"]


def test_too_many_of_them_in_a_row_end_the_run_and_no_such_state_is_kept(
    nursery: Nursery, home: Home, training_data: TrainingData
) -> None:
    run_folder = new_run(home, "diverged", training_data, max_skipped_steps=5)
    assert nursery.train(run_folder, fault="loss is nan from", at=8)["code"] == 0
    (ended,) = of_type(run_folder, "run_ended")
    assert ended["outcome"] == "stopped"
    assert "learning_rate" in ended["reason"]
    assert ended["best"]["epoch"] == 1
    assert [c.name for c in CheckpointManager(run_folder).checkpoints()] == ["step_6"]
    assert (run_folder / "model" / "model.safetensors").is_file()


def test_a_run_without_a_single_good_step_fails_with_the_way_out(
    nursery: Nursery, home: Home, training_data: TrainingData
) -> None:
    run_folder = new_run(home, "hopeless", training_data, max_skipped_steps=3)
    assert nursery.train(run_folder, fault="loss is nan from", at=1)["code"] == 0
    (ended,) = of_type(run_folder, "run_ended")
    assert (ended["outcome"], ended["error"]) == ("failed", "TrainingError")
    assert "learning_rate" in ended["reason"]
    assert not (run_folder / "model").exists()


def test_a_disk_that_fills_up_ends_the_run_with_a_reason_and_what_was_saved_stays(
    nursery: Nursery, home: Home, training_data: TrainingData
) -> None:
    run_folder = new_run(home, "full", training_data)
    write_order(run_folder, replace(order(training_data), observations=0))  # a log that is smaller than a checkpoint
    assert nursery.train(run_folder, fault="full disk", at=2)["code"] == 0
    (failed,) = of_type(run_folder, "checkpoint_failed")
    assert failed["step"] == 12 and "disk is full" in failed["reason"]
    (ended,) = of_type(run_folder, "run_ended")
    assert (ended["outcome"], ended["error"]) == ("failed", "StorageError")
    assert nursery.train(run_folder)["code"] == 0
    assert [e["resumed_from"] for e in of_type(run_folder, "run_started")] == [None, 6]
    quiet = new_run(home, "roomy", training_data)
    assert nursery.train(quiet)["code"] == 0
    assert (history(run_folder), weights(run_folder)) == (history(quiet), weights(quiet))


@pytest.mark.slow
def test_the_error_of_a_full_disk_reaches_who_started_the_run(home: Home, training_data: TrainingData) -> None:
    changes = {"checkpoints": {"reserve_gib": 1e9}}
    run_folder = new_run(home, "reserved", training_data, **changes)
    with pytest.raises(StorageError, match="free"):
        _train(run_folder, training_data, **changes)


def test_a_clock_that_is_set_back_changes_nothing(nursery: Nursery, home: Home, training_data: TrainingData) -> None:
    run_folder, quiet = new_run(home, "back", training_data), new_run(home, "quiet", training_data)
    assert nursery.train(run_folder, fault="kill at loss", at=17)["code"] == -signal.SIGKILL
    assert nursery.train(run_folder, fault="clock runs backwards")["code"] == 0
    assert nursery.train(quiet)["code"] == 0
    times = [event["time"] for event in epochs(read_events(run_folder))]
    assert times[-1] < times[-2] < times[0]
    assert (history(run_folder), weights(run_folder)) == (history(quiet), weights(quiet))


def test_two_trainers_never_share_a_run(nursery: Nursery, home: Home, training_data: TrainingData) -> None:
    run_folder = new_run(home, "shared", training_data)
    os.environ[LAUNCHER_VARIABLE] = process_name()  # a trainer whose launcher lives is not waited for
    try:
        lock = lock_run(run_folder)
    finally:
        del os.environ[LAUNCHER_VARIABLE]
    assert nursery.train(run_folder)["code"] == 1
    assert "already training in this run" in (run_folder / "trainer.log").read_text()
    assert not of_type(run_folder, "run_started")
    os.close(lock)


def test_a_trainer_whose_launcher_is_gone_is_waited_for(home: Home, training_data: TrainingData) -> None:
    run_folder = new_run(home, "orphan", training_data)
    lock = lock_run(run_folder)
    with pytest.raises(TrainingError, match="already training"):
        lock_run(run_folder, patience_seconds=0.3)
    os.close(lock)
    os.close(lock_run(run_folder, patience_seconds=0.3))


@pytest.mark.slow
def test_two_launchers_on_one_run_leave_one_training(home: Home, training_data: TrainingData) -> None:
    run_folder = new_run(home, "twice", training_data)
    long = order(training_data, epochs=200, max_restarts=0)
    with Training(run_folder, long) as first:
        events = first.events()
        next(event for event in events if event["type"] == "epoch")
        other = order(training_data, epochs=3)
        with pytest.raises(TrainingError, match="already training in this run"), Training(run_folder, other):
            pass
        assert read_order(run_folder) == long  # what the first would read when it is started again
        next(event for event in events if event["type"] == "epoch")
    assert len(of_type(run_folder, "run_started")) == 1


@pytest.mark.slow
def test_a_loader_worker_that_dies_costs_a_restart_and_nothing_else(home: Home, training_data: TrainingData) -> None:
    changes: dict[str, Any] = {"loader_workers": 1, "epochs": 2, "steps_per_epoch": 30}
    quiet, hurt = new_run(home, "quiet", training_data), new_run(home, "hurt", training_data)
    _train(quiet, training_data, **changes)
    killer = {"toto_pipeline_tests.faults.callbacks:KillLoaderWorker": {"marker": str(home.root / "killed")}}
    _train(hurt, training_data, callbacks=killer, **changes)
    assert (home.root / "killed").exists()
    assert len(of_type(hurt, "run_started")) == 2
    assert (history(hurt), weights(hurt)) == (history(quiet), weights(quiet))
