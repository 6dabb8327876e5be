"""No window that a model is trained or validated on reaches into the test span, on real prepared data of all sizes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.data.snapshot import take_snapshot
from toto_pipeline.data.training_data import TrainingData, prepare_training_data
from toto_pipeline.home import Home
from toto_pipeline.models.patches import PatchedWindows
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline.training.windows import TrainingWindows, validation_places

MARK = 1e6
"""What every value of the test span is moved by, so that one that leaks is seen."""


def prepared(folder: Path, lengths: list[int], ends: list[int], sizes: PreparationSettings) -> TrainingData:
    """Series of hourly values; each ends `ends` steps before the newest, and all of the test span is above MARK."""
    newest = 1000
    first_test = newest - sizes.test_windows * sizes.horizon
    frames = []
    for number, (length, early) in enumerate(zip(lengths, ends, strict=True)):
        steps = np.arange(newest - early - length, newest - early)
        values = np.sin(steps) + MARK * (steps >= first_test)
        times = pd.Timestamp("2024-01-01") + pd.to_timedelta(steps, unit="h")
        frames.append(pd.DataFrame({"item_id": f"s{number}", "timestamp": times, "target": values}))
    (folder / "source").mkdir()
    pd.concat(frames).to_csv(folder / "source" / "data.csv", index=False)
    home = Home(folder / "home").prepare()
    snapshot = take_snapshot(DataSettings(source=str(folder / "source"), layout="long"), home)
    return prepare_training_data(snapshot, sizes, home)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(300, 420), min_size=1, max_size=3),
    early=st.integers(0, 40),
    context=st.sampled_from([16, 48, 64]),
    horizon=st.integers(1, 16),
    test_windows=st.integers(1, 4),
    validation_windows=st.integers(1, 3),
    patch=st.sampled_from([4, 16]),
)
def test_no_window_of_training_or_validation_reaches_the_test_span(
    lengths: list[int],
    early: int,
    context: int,
    horizon: int,
    test_windows: int,
    validation_windows: int,
    patch: int,
) -> None:
    sizes = PreparationSettings(
        context_length=context,
        horizon=horizon,
        season=24,
        test_windows=test_windows,
        validation_windows=validation_windows,
    )
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(folder), lengths, [0, *[early] * (len(lengths) - 1)], sizes)
        shape = PatchedWindows(patch)
        windows = TrainingWindows(data, shape, batch_size=64, steps_per_epoch=4, epochs=1, seed=0)
        for step in range(len(windows)):
            assert np.nanmax(windows[step].values_BVT.numpy()) < MARK / 2
        test_start = np.datetime64(data.manifest.test_start)
        validation_start = np.datetime64(data.manifest.validation_start)
        for series, name in enumerate(data.ids):
            times = data.timestamps(series)
            last_trained = times[int(data.train_ends[series]) - 1]
            assert last_trained < validation_start <= test_start, name
        length = shape.length(context, horizon)
        for place in validation_places(data, most=10_000, seed=0):
            assert data.timestamps(place.series)[place.end - 1] < test_start
            assert np.nanmax(data.window(place.series, place.end, length)) < MARK / 2
