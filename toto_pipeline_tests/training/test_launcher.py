"""The training as it really runs: child processes under torch elastic, killed, stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import WeightsError
from toto_pipeline.events.log import read_events
from toto_pipeline.home import Home
from toto_pipeline.training.launcher import Training
from toto_pipeline_tests.resume.small_runs import TINY, history, new_run, of_type, order, outcomes, weights

pytestmark = pytest.mark.slow


def test_a_trainer_killed_in_an_epoch_goes_on_and_ends_with_the_sameweights(
    home: Home, training_data: TrainingData
) -> None:
    quiet, killed = new_run(home, "quiet", training_data), new_run(home, "killed", training_data)
    with Training(quiet, order(training_data, epochs=20)) as training:
        list(training.events())
        assert training.ending()["outcome"] == "completed"

    victims = 0
    with Training(killed, order(training_data, epochs=20)) as training:
        for event in training.events():
            if event["type"] == "run_started" and event["attempt"] == 1:
                trainer = event["pid"]
            if event["type"] == "epoch" and event["epoch"] == 2 and not victims:
                os.kill(trainer, signal.SIGKILL)
                victims += 1
        assert training.ending()["outcome"] == "completed"

    assert victims == 1
    starts = of_type(killed, "run_started")
    assert [e["attempt"] for e in starts] == [1, 2]
    assert starts[1]["resumed_from"] >= 6  # the save of the second epoch may have been under way
    assert weights(killed) == weights(quiet)
    assert history(killed) == history(quiet)


def test_leaving_the_block_stops_the_training_at_once(home: Home, training_data: TrainingData) -> None:
    run_folder = new_run(home, "stopped", training_data)
    with Training(run_folder, order(training_data, epochs=1000)) as training:
        for event in training.events():
            if event["type"] == "run_started":
                trainer = psutil.Process(event["pid"])
            if event["type"] == "epoch":
                break
    assert not trainer.is_running()
    assert outcomes(run_folder) == ["canceled"]
    saved = of_type(run_folder, "checkpoint_saved")[-1]
    assert saved["step"] == of_type(run_folder, "run_ended")[0]["step"]


_PARENT = """
import sys
from pathlib import Path
from toto_pipeline.training.launcher import Training
from toto_pipeline.training.run_files import read_order
run = Path(sys.argv[1])
with Training(run, read_order(run)) as training:
    for event in training.events():
        if event["type"] == "run_started":
            print(event["pid"], flush=True)
"""


def test_a_trainer_dies_with_the_step_that_started_it(home: Home, training_data: TrainingData) -> None:
    run_folder = new_run(home, "orphan", training_data, epochs=100_000)
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(run_folder)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        trainer = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    trainer.wait(timeout=60)
    assert not trainer.is_running()


def test_a_mistake_of_the_user_ends_the_run_with_its_own_error(home: Home, training_data: TrainingData) -> None:
    run_folder = new_run(home, "wrong", training_data)
    model = TINY.model_copy(update={"weights": str(home.root)})
    with Training(run_folder, order(training_data, model=model)) as training:
        list(training.events())
        with pytest.raises(WeightsError, match=r"config\.json"):
            training.ending()
    assert sum(e["type"] == "run_started" for e in read_events(run_folder)) == 0


def test_early_stopping_ends_the_run_in_order(home: Home, training_data: TrainingData) -> None:
    run_folder = new_run(home, "early", training_data)
    with Training(
        run_folder, order(training_data, epochs=50, early_stopping={"patience": 1, "min_delta": 10.0})
    ) as training:
        list(training.events())
        ending = training.ending()
    assert ending["outcome"] == "stopped"
    assert "validation_loss" in ending["reason"]
    assert (run_folder / "model" / "model.safetensors").is_file()
