"""Each family through the whole pipeline by the command line, and over two processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.events.log import epochs, read_events
from toto_pipeline.home import Home
from toto_pipeline.models.families import FAMILY_FILE
from toto_pipeline.promotion.registry import Registry
from toto_pipeline.training.launcher import Training
from toto_pipeline_tests.conftest import make_training_data, write_series
from toto_pipeline_tests.contracts.libraries import Libraries
from toto_pipeline_tests.resume.small_runs import order

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PREPARATION = ["context_length=64", "horizon=16", "season=24", "validation_windows=2", "test_windows=6"]
TINY = {"patch_size": 8, "d_model": 16, "num_heads": 2, "num_layers": 4}
MODELS: dict[str, dict[str, Any]] = {
    "toto2": TINY,
    "chronos": TINY,
    "toto1": TINY,
    "linear": {"options": {"context": 64, "most_steps": 16, "d_model": 32}},
}


class Pipeline:
    """A home and data in which families are retrained, by the command of a user."""

    def __init__(self, folder: Path, libraries: Libraries) -> None:
        self.home = Home(folder / "home")
        self.data = write_series(folder / "input", series=6, steps=900)
        self._libraries = libraries

    def retrain(self, family: str, *others: str) -> dict[str, Any]:
        """The printed JSON of a retraining, whether promoted or refused."""
        model = {"family": family, **MODELS[family]}
        settings = [
            f"training.model={json.dumps(model)}",
            *(f"preparation.{each}" for each in PREPARATION),
            "training.epochs=2",
            "training.steps_per_epoch=150",
            "training.validation_batches=2",
            *([] if family == "toto2" else ["training.learning_rate=5e-3"]),
        ]
        words = [word for setting in settings for word in ("--set", setting)]
        done = self.run(("retrain", "--data", str(self.data), "--json", *words), family, *others)
        assert done.returncode in (0, 10), done.stderr + done.stdout
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed

    def run(self, words: tuple[str, ...], *families: str) -> subprocess.CompletedProcess[str]:
        paths = [self._libraries.environment(family) for family in families]
        environment = paths[0] | {"PYTHONPATH": ":".join(each["PYTHONPATH"] for each in paths)}
        command = [sys.executable, "-m", "toto_pipeline.cli", "--home", str(self.home.root), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1500)


@pytest.mark.parametrize(("family", "challenger"), [("linear", "toto2"), ("chronos", "linear"), ("toto1", "linear")])
def test_a_family_is_trained_evaluated_registered_and_forecasts(
    family: str, challenger: str, libraries: Libraries, tmp_path: Path
) -> None:
    pipeline = Pipeline(tmp_path, libraries)
    printed = pipeline.retrain(family)
    run_folder = pipeline.home.run(printed["run"])
    assert json.loads((run_folder / "model" / FAMILY_FILE).read_text()) == {"family": family}
    config = json.loads((run_folder / "config.json").read_text())
    assert config["training"]["model"]["family"] == family
    last = list(epochs(read_events(run_folder)))[-1]
    assert math.isfinite(last["validation_loss"]) and last["metrics"]["MASE"] < 1

    # Its forecasts beat the seasonal naive with confidence, so it is the champion.
    champion = Registry(pipeline.home, "toto").champion()
    assert champion is not None and champion.run == printed["run"]
    assert json.loads((Path(champion.path) / FAMILY_FILE).read_text()) == {"family": family}
    words = ("forecast", "--data", str(pipeline.data), "--horizon", "8", "--json")
    done = pipeline.run(words, family)
    assert done.returncode == 0, done.stderr
    forecasts = json.loads(done.stdout)
    assert len(forecasts) == 6
    assert all(len(forecast["quantiles"]["0.5"]) == 8 for forecast in forecasts)

    # A model of another family is compared with it on the same windows.
    against = pipeline.retrain(challenger, family)
    decision = json.loads((pipeline.home.run(against["run"]) / "decision.json").read_text())
    assert decision["champion"] == champion.version


class Runs:
    """Trainings of one family through the launcher, in this process's environment."""

    def __init__(self, home: Home, data: TrainingData, family: str) -> None:
        self._home, self._data, self._family = home, data, family

    def train(self, name: str, **changes: Any) -> Path:
        run_folder = self._home.run(name)
        run_folder.mkdir(parents=True)
        model = {"family": self._family, **TINY}
        settings = order(self._data, model=model, learning_rate=1e-3, epochs=2, steps_per_epoch=5, **changes)
        with Training(run_folder, settings) as training:
            for _ in training.events():
                pass
            assert training.ending()["outcome"] == "completed"
        return run_folder


@pytest.mark.parametrize("family", ["chronos", "toto1"])
def test_two_processes_train_as_one_does(
    family: str, libraries: Libraries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in libraries.environment(family).items():
        monkeypatch.setenv(name, value)
    home = Home(tmp_path / "home").prepare()
    runs = Runs(home, make_training_data(home, write_series(tmp_path / "input")), family)
    one = runs.train("one")
    for strategy in ("ddp", "fsdp") if family == "chronos" else ("ddp",):
        two = runs.train(strategy, distributed={"processes": 2, "strategy": strategy, "timeout_seconds": 60})
        course = [[event["validation_loss"] for event in epochs(read_events(run))] for run in (one, two)]
        assert course[0] == pytest.approx(course[1], rel=1e-3)
        mine, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, two))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-2)
