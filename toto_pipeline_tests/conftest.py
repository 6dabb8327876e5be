"""Fixtures that many tests share. Nothing heavy is imported until a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from toto_pipeline.home import Home
from toto_pipeline.settings.data import DataSettings, PreparationSettings

if TYPE_CHECKING:
    from toto_pipeline.data.training_data import TrainingData
    from toto_pipeline_tests.nursery import Nursery

CONTEXT_LENGTH, HORIZON = 64, 16


def write_series(folder: Path, *, series: int = 3, steps: int = 600, seed: int = 0) -> Path:
    """A wide CSV file of noisy daily waves at hourly steps."""
    random = np.random.default_rng(seed)
    time = np.arange(steps)
    frame = pd.DataFrame({"timestamp": pd.date_range("2026-01-01", periods=steps, freq="h")})
    for index in range(series):
        wave = 10 * (index + 1) + 3 * np.sin(2 * np.pi * (time + 5 * index) / 24)
        frame[f"sensor_{index}"] = (wave + random.standard_normal(steps)).round(3)
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "series.csv", index=False)
    return folder / "series.csv"


def tiny_preparation() -> PreparationSettings:
    return PreparationSettings(
        context_length=CONTEXT_LENGTH, horizon=HORIZON, season=24, validation_windows=2, test_windows=3
    )


def make_training_data(home: Home, source: Path) -> TrainingData:
    from toto_pipeline.data.snapshot import take_snapshot
    from toto_pipeline.data.training_data import prepare_training_data

    snapshot = take_snapshot(DataSettings(source=str(source)), home.prepare())
    return prepare_training_data(snapshot, tiny_preparation(), home)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").prepare()


@pytest.fixture
def training_data(home: Home, tmp_path: Path) -> TrainingData:
    return make_training_data(home, write_series(tmp_path / "input"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    from toto_pipeline_tests.nursery import Nursery

    with Nursery() as nursery:
        yield nursery
