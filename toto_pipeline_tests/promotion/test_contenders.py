"""Who forecasts in an evaluation, on real weights: above all the weights that the training started from."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import torch

from toto_pipeline.data.snapshot import take_snapshot
from toto_pipeline.data.training_data import TrainingData, prepare_training_data
from toto_pipeline.evaluation.report import load_report
from toto_pipeline.home import Home
from toto_pipeline.models import families
from toto_pipeline.promotion.contenders import weights_digest
from toto_pipeline.promotion.verdict import Verdict, evaluate
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline.settings.promotion import EvaluationSettings, PromotionSettings
from toto_pipeline.settings.training import ModelSettings, TrainingSettings
from toto_pipeline.training.run_files import TrainingOrder, write_order
from toto_pipeline_tests.evaluation.test_on_training_data import long

MODEL = ModelSettings(d_model=16, num_heads=2, num_layers=4)
SETTINGS = EvaluationSettings(pictures=1, worst_pictures=1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Home(tmp_path / "home").prepare()


@pytest.fixture
def data(home: Home, tmp_path: Path) -> TrainingData:
    snapshot = take_snapshot(DataSettings(source=str(long(tmp_path / "source")), layout="long"), home)
    settings = PreparationSettings(context_length=48, horizon=12, season=24, test_windows=3, validation_windows=1)
    return prepare_training_data(snapshot, settings, home)


def weights(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    families.save(families.build_for_training(TrainingSettings(model=MODEL), None), folder)
    return folder


def judge(home: Home, data: TrainingData, start: str | None, settings: EvaluationSettings = SETTINGS) -> Verdict:
    run_folder = home.run("r1")
    if not (run_folder / "model").exists():
        weights(run_folder / "model", seed=1)
    model = MODEL.model_copy(update={"weights": start})
    order = TrainingOrder(TrainingSettings(model=model), f"training_data/{data.fingerprint}", data.fingerprint)
    write_order(run_folder, order)
    return evaluate(home, run_folder, data.fingerprint, settings, PromotionSettings(resamples=200))


def test_the_starting_weights_are_compared_on_the_same_windows(home: Home, data: TrainingData, tmp_path: Path) -> None:
    start = weights(tmp_path / "released", seed=2)
    verdict = judge(home, data, str(start))
    assert list(verdict.models) == ["candidate", "seasonal_naive", "zero_shot", "drift"]
    report = load_report(home.run("r1"))
    assert report["identities"]["zero_shot"] == {"name": "toto2", "weights": str(start)}
    assert report["models"]["zero_shot"]["MASE"] != report["models"]["candidate"]["MASE"]
    gain = 1 - verdict.models["candidate"]["SQL"] / verdict.models["zero_shot"]["SQL"]
    assert report["fine_tuning"]["SQL"]["value"] == pytest.approx(gain)
    assert (home.run("r1") / "evaluation" / "worst_1.png").is_file()


def test_from_scratch_there_is_no_zero_shot_and_the_report_says_so(home: Home, data: TrainingData) -> None:
    assert "zero_shot" not in judge(home, data, None).models
    report = load_report(home.run("r1"))
    assert report["fine_tuning"] is None
    assert "The model was trained from scratch: no zero-shot comparison." in report["notes"]


def test_starting_weights_that_are_gone_are_told(home: Home, data: TrainingData, tmp_path: Path) -> None:
    assert "zero_shot" not in judge(home, data, str(tmp_path / "gone")).models
    (note,) = [note for note in load_report(home.run("r1"))["notes"] if "zero-shot" in note]
    assert "gone" in note


def test_a_second_evaluation_gives_the_same_and_keeps_the_scores(home: Home, data: TrainingData) -> None:
    first = judge(home, data, None)
    (part,) = (home.cache / "evaluation-parts").iterdir()
    written = part.stat().st_ino
    assert judge(home, data, None).models == first.models
    assert [file.stat().st_ino for file in (home.cache / "evaluation-parts").iterdir()] == [written]


def test_other_weights_under_the_same_name_are_scored_anew(home: Home, data: TrainingData, tmp_path: Path) -> None:
    first = judge(home, data, None)
    other = weights(tmp_path / "other", seed=7)
    (home.run("r1") / "model" / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert judge(home, data, None).models["candidate"]["MASE"] != first.models["candidate"]["MASE"]


def test_the_digest_follows_weights_and_description(tmp_path: Path) -> None:
    folder = weights(tmp_path / "w", seed=1)
    before = weights_digest(folder)
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({**config, "norm_eps": 1e-3}))
    assert weights_digest(folder) != before
