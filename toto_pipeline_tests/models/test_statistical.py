"""AutoETS and AutoTheta on the real statsforecast, installed into a folder of its own where it is not there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from toto_pipeline.errors import ConfigError
from toto_pipeline.models.statistical import StatisticalBaseline

SCRIPT = """
import sys, time
import numpy as np, orjson
from toto_pipeline.models.baselines import SeasonalNaive
from toto_pipeline.models.statistical import OutOfTimeError, StatisticalBaseline

def main():
    t = np.arange(120)
    random = np.random.default_rng(0)
    wave = (10 + 5 * np.sin(2 * np.pi * t / 12) + random.normal(0, 0.5, 120)).astype(np.float32)
    gaps = wave.copy(); gaps[:30] = np.nan; gaps[[50, 51]] = np.nan; gaps[-2:] = np.nan
    short = np.full(120, np.nan, np.float32); short[-1] = 4
    history = np.stack([wave, gaps, short, np.full(120, 3.0, np.float32), np.full(120, np.nan, np.float32)])[:, None]
    answers = {}
    for name in ("AutoETS", "AutoTheta"):
        model = StatisticalBaseline(name, 12, seconds=300, processes=2)
        one = model.forecast(history, 6)
        answers[name] = {"forecast": one.tolist(), "again": bool((model.forecast(history, 6) == one).all())}
        model.close()
    tight = StatisticalBaseline("AutoETS", 12, seconds=0.01, processes=1)
    try:
        tight.forecast(history, 6)
    except OutOfTimeError as error:
        answers["late"] = str(error)
    answers["naive"] = SeasonalNaive(12).forecast(history, 6).tolist()
    answers["future"] = (10 + 5 * np.sin(2 * np.pi * np.arange(120, 126) / 12)).tolist()
    import multiprocessing
    answers["left"] = len(multiprocessing.active_children())
    sys.stdout.buffer.write(orjson.dumps(answers))

if __name__ == "__main__":
    main()
"""


def test_a_baseline_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"statistical_baselines: AutoETS needs .* pip install 'toto-pipeline\[stat"):
        StatisticalBaseline("AutoETS", 12, seconds=1)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder to add to the path; empty where statsforecast is installed."""
    if importlib.util.find_spec("statsforecast") is not None:
        return ""
    folder = tmp_path_factory.mktemp("statsforecast")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(folder), "statsforecast>=2"]
    subprocess.run(command, check=True)
    return str(folder)


@pytest.mark.slow
def test_both_models_forecast_whatever_history_they_are_given(packages: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).resolve().parent.parent.parent)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{root}:{packages}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    answers = orjson.loads(done.stdout)
    naive, future = answers["naive"], answers["future"]
    for name in ("AutoETS", "AutoTheta"):
        wave, gaps, short, flat, nothing = (series[0] for series in answers[name]["forecast"])
        assert answers[name]["again"], "the same history gives the same forecast"
        for series in (wave, gaps):
            medians = [step[4] for step in series]
            assert max(abs(a - b) for a, b in zip(medians, future, strict=True)) < 2.0, name
            assert all(step == sorted(step) and step[-1] - step[0] > 0.3 for step in series)
        assert short == naive[2][0]
        assert nothing == naive[4][0]
        assert all(abs(value - 3) < 0.01 for step in flat for value in step)
    assert answers["late"] == "AutoETS exceeded evaluation.baseline_seconds (0.01 s)"
    assert answers["left"] == 0
