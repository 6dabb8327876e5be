"""Scores that are there already are used again, and never in the wrong place."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from toto_pipeline.evaluation.backtest import Evaluation, backtest
from toto_pipeline.evaluation.parts import FOLDER, Part, Parts
from toto_pipeline.models.baselines import SeasonalNaive
from toto_pipeline.models.statistical import OutOfTimeError
from toto_pipeline.settings.promotion import EvaluationSettings
from toto_pipeline_tests.evaluation.small_data import SEASON, SmallData, Steady, small_data, wave

SETTINGS = EvaluationSettings(pictures=0, worst_pictures=0)
SERIES = {f"s{i}": wave(300, i) for i in range(4)}


def evaluate(
    data: SmallData, cache: Path, model: Steady, identity: object = "A", settings: EvaluationSettings = SETTINGS
) -> Evaluation:
    return backtest({"candidate": model}, data, settings, cache=cache, identities={"candidate": identity})


def dying(folder: Path, log: Path, die_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toto_pipeline_tests.evaluation.dying_backtest", folder, log, die_at]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def test_a_killed_evaluation_goes_on_with_what_is_not_done(tmp_path: Path) -> None:
    """Three chunks of two series; killed with -9 in the third."""
    log = tmp_path / "log"
    killed = dying(tmp_path / "home", log, die_at=3)
    assert killed.returncode == -9, killed.stderr
    assert log.read_text().split() == ["8", "8"]
    resumed = dying(tmp_path / "home", log, die_at=0)
    assert resumed.returncode == 0, resumed.stderr
    assert log.read_text().split() == ["8", "8", "8"], "only the third chunk was left to do"
    whole = dying(tmp_path / "other", tmp_path / "other.log", die_at=0)
    assert resumed.stdout == whole.stdout


def test_the_same_model_on_the_same_windows_is_not_asked_again(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", SERIES)
    first, second = Steady(), Steady()
    one = evaluate(data, tmp_path / "cache", first)
    again = evaluate(data, tmp_path / "cache", second)
    assert first.batches
    assert second.batches == []
    assert again.scores.equals(one.scores)
    assert again.by_series.equals(one.by_series)
    assert again.by_step.equals(one.by_step)
    assert again.seconds == one.seconds


@pytest.mark.parametrize("change", ["weights", "history", "actual", "batch_size", "season", "context", "code"])
def test_whatever_changes_a_score_makes_it_anew(tmp_path: Path, change: str) -> None:
    evaluate(small_data(tmp_path / "before", SERIES), tmp_path / "cache", Steady())
    series = {name: values.copy() for name, values in SERIES.items()}
    series["s1"][{"history": 240, "actual": 299}.get(change, 0)] += change in ("history", "actual")
    data = small_data(tmp_path / "after", series)
    if change == "season":
        data.manifest.season = 12
    if change == "context":
        data.manifest.context_length = 60
    model = Other() if change == "code" else Steady()
    settings = SETTINGS.model_copy(update={"batch_size": 3}) if change == "batch_size" else SETTINGS
    evaluate(data, tmp_path / "cache", model, "B" if change == "weights" else "A", settings)
    assert model.batches


class Other(Steady):
    """Another class of forecaster, with the same identity."""


def test_a_model_without_an_identity_is_not_kept(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", SERIES)
    evaluate(data, tmp_path / "cache", Steady(), None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", SERIES)
    expected = evaluate(data, tmp_path / "cache", Steady())
    (file,) = (tmp_path / "cache" / FOLDER).iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
        file.write_bytes(damaged)
        model = Steady()
        assert evaluate(data, tmp_path / "cache", model).scores.equals(expected.scores)
        assert model.batches
        assert len(file.read_bytes()) == len(whole)


def test_parts_that_nobody_wants_are_removed_after_a_month(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    part = Part({"MASE": np.ones(1)}, *(np.ones((1, 1, 1)),) * 2, *(np.ones((1, 1)),) * 2, 1.0)
    for name in ("old", "new", "asked"):
        parts.save(name, part)
    month_ago = time.time() - 31 * 86400
    for name in ("old", "asked"):
        os.utime(tmp_path / f"{name}.part", (month_ago, month_ago))
    assert parts.load("asked") is not None
    parts.remove_unused()
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["asked", "new"]


class Slow(Steady):
    """Runs out of its time at the third forecast."""

    def forecast(self, history_BVT: np.ndarray, horizon: int) -> np.ndarray:
        if len(self.batches) == 2:
            raise OutOfTimeError("AutoETS exceeded evaluation.baseline_seconds (9 s)")
        return super().forecast(history_BVT, horizon)


def test_a_baseline_that_runs_out_of_time_is_left_out_by_name_and_goes_on_the_next_time(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", SERIES, chunk=1)

    def run(slow: Steady) -> Evaluation:
        models = {"candidate": Steady(), "seasonal_naive": SeasonalNaive(SEASON), "AutoETS": slow}
        return backtest(models, data, SETTINGS, cache=tmp_path / "cache", identities={"AutoETS": "AutoETS"})

    first = run(Slow())
    assert list(first.aggregates) == ["candidate", "seasonal_naive"]
    assert first.notes[0] == (
        "AutoETS is left out: AutoETS exceeded evaluation.baseline_seconds (9 s) after 8 of 16 forecasts."
    )
    second = run(Slow())
    assert list(second.aggregates) == ["candidate", "seasonal_naive", "AutoETS"]
    assert second.notes == ()
