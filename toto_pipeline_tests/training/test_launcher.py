"""The training as it really runs: child processes under torch elastic, killed, stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from toto_pipeline.config import ModelSettings, TrainingSettings
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import TrainingError, WeightsError
from toto_pipeline.events.log import epochs, read_events
from toto_pipeline.home import Home
from toto_pipeline.training.launcher import Training
from toto_pipeline.training.process import lock_run
from toto_pipeline.training.run_files import TrainingOrder

pytestmark = pytest.mark.slow

TINY = ModelSettings(patch_size=8, d_model=16, num_heads=2, num_layers=4, layer_group_size=4)


def _settings(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {"model": TINY, "epochs": 3, "steps_per_epoch": 6, "batch_size": 4, "max_restarts": 1, **changes}
    )


def _order(data: TrainingData, **changes: object) -> TrainingOrder:
    return TrainingOrder(_settings(**changes), f"training_data/{data.folder.name}", data.fingerprint)


def _run(home: Home, name: str) -> Path:
    home.run(name).mkdir(parents=True)
    return home.run(name)


def _weights(run_folder: Path) -> dict[str, object]:
    return {name: tensor.tolist() for name, tensor in load_file(run_folder / "model" / "model.safetensors").items()}


def _history(run_folder: Path) -> list[tuple[object, ...]]:
    return [(e["epoch"], e["train_loss"], e["validation_loss"]) for e in epochs(read_events(run_folder))]


def test_a_trainer_killed_in_an_epoch_goes_on_and_ends_with_the_same_weights(
    home: Home, training_data: TrainingData
) -> None:
    quiet, killed = _run(home, "quiet"), _run(home, "killed")
    with Training(quiet, _order(training_data)) as training:
        list(training.events())
        assert training.ending()["outcome"] == "completed"

    victims = 0
    with Training(killed, _order(training_data)) as training:
        for event in training.events():
            if event["type"] == "run_started" and event["attempt"] == 1:
                trainer = event["pid"]
            if event["type"] == "epoch" and event["epoch"] == 2 and not victims:
                os.kill(trainer, signal.SIGKILL)
                victims += 1
        assert training.ending()["outcome"] == "completed"

    assert victims == 1
    starts = [e for e in read_events(killed) if e["type"] == "run_started"]
    assert [(e["attempt"], e["resumed_from"]) for e in starts] == [(1, None), (2, 12)]
    assert _weights(killed) == _weights(quiet)
    history = [
        [(e["epoch"], e["train_loss"], e["validation_loss"]) for e in epochs(read_events(r))] for r in (quiet, killed)
    ]
    assert history[0] == history[1]


def test_leaving_the_block_stops_the_training_at_once(home: Home, training_data: TrainingData) -> None:
    run_folder = _run(home, "stopped")
    with Training(run_folder, _order(training_data, epochs=1000)) as training:
        for event in training.events():
            if event["type"] == "run_started":
                trainer = psutil.Process(event["pid"])
            if event["type"] == "epoch":
                break
    assert not trainer.is_running()
    ended = [e for e in read_events(run_folder) if e["type"] == "run_ended"]
    assert [e["outcome"] for e in ended] == ["canceled"]


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
    from toto_pipeline.training.run_files import write_order

    run_folder = _run(home, "orphan")
    write_order(run_folder, _order(training_data, epochs=100_000))
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(run_folder)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        trainer = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    trainer.wait(timeout=60)
    assert not trainer.is_running()


def test_a_mistake_of_the_user_ends_the_run_with_its_own_error(home: Home, training_data: TrainingData) -> None:
    run_folder = _run(home, "wrong")
    order = _order(training_data, model=TINY.model_copy(update={"weights": str(home.root)}))
    with Training(run_folder, order) as training:
        list(training.events())
        with pytest.raises(WeightsError, match=r"config\.json"):
            training.ending()
    assert sum(e["type"] == "run_started" for e in read_events(run_folder)) == 0


def test_two_trainers_never_share_a_run(home: Home, training_data: TrainingData) -> None:
    run_folder = _run(home, "shared")
    lock = lock_run(run_folder)
    with Training(run_folder, _order(training_data, max_restarts=0)) as training:
        list(training.events())
        with pytest.raises(TrainingError, match="already training in this run"):
            training.ending()
    os.close(lock)


def test_early_stopping_ends_the_run_in_order(home: Home, training_data: TrainingData) -> None:
    run_folder = _run(home, "early")
    with Training(run_folder, _order(training_data, epochs=50, patience=1, learning_rate=5.0)) as training:
        list(training.events())
        ending = training.ending()
    assert ending["outcome"] == "stopped"
    assert "validation loss" in ending["reason"] or "not finite" in ending["reason"]
    assert (run_folder / "model" / "model.safetensors").is_file()
