"""The back-test on prepared data: its windows are the test span that preparation held out, and nothing before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toto_pipeline.data.snapshot import take_snapshot
from toto_pipeline.data.training_data import TrainingData, prepare_training_data
from toto_pipeline.evaluation.backtest import backtest
from toto_pipeline.evaluation.metrics import METRICS, aggregate
from toto_pipeline.home import Home
from toto_pipeline.models.baselines import SeasonalNaive
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline.settings.promotion import EvaluationSettings
from toto_pipeline_tests.evaluation.small_data import Steady, wave

CONTEXT, HORIZON, WINDOWS = 48, 12, 3
EVALUATION = EvaluationSettings(pictures=2)


def prepare(tmp_path: Path, source: Path, layout: str) -> TrainingData:
    home = Home(tmp_path / "home").prepare()
    snapshot = take_snapshot(DataSettings(source=str(source), layout=layout), home)
    settings = PreparationSettings(
        context_length=CONTEXT, horizon=HORIZON, season=24, test_windows=WINDOWS, validation_windows=1
    )
    return prepare_training_data(snapshot, settings, home)


def symbols(folder: Path) -> Path:
    """One file a symbol, two variates each; the second symbol begins later."""
    folder.mkdir()
    for number, (name, rows) in enumerate({"AAA": 400, "BBB": 300}.items()):
        grid = pd.date_range("2024-01-01", periods=400, freq="h")[-rows:]
        frame = pd.DataFrame({"timestamp": grid, "Open": wave(rows, number), "Volume": 100 * wave(rows, number + 5)})
        frame.to_csv(folder / f"{name}.csv", index=False)
    return folder


def long(folder: Path) -> Path:
    """Two series, one with a gap and one beginning later."""
    folder.mkdir()
    grid = pd.date_range("2024-01-01", periods=400, freq="h")
    whole = pd.DataFrame({"item_id": "b", "timestamp": grid, "target": wave(400, 1)}).drop(index=[200, 380, 381])
    late = pd.DataFrame({"item_id": "a", "timestamp": grid[150:], "target": wave(250, 2)})
    pd.concat([whole, late]).to_csv(folder / "data.csv", index=False)
    return folder


@pytest.mark.parametrize("source", [symbols, long])
def test_models_see_the_history_before_each_test_window_and_no_more(
    tmp_path: Path, source: Callable[[Path], Path]
) -> None:
    data = prepare(tmp_path, source(tmp_path / "source"), source.__name__)
    model = Steady()
    evaluation = backtest(
        {"candidate": model, "seasonal_naive": SeasonalNaive(24)}, data, EVALUATION, cache=tmp_path / "cache"
    )
    seen = iter(model.batches[0])
    for window in range(WINDOWS):
        for series in range(len(data.ids)):
            end = int(data.validation_ends[series]) + window * HORIZON
            np.testing.assert_array_equal(next(seen), data.window(series, end, CONTEXT))
    assert next(seen, None) is None
    rows = evaluation.scores.to_pandas()
    assert set(rows["series"]) == set(data.ids)
    assert set(rows["variate"]) == set(data.manifest.variates)
    future = np.stack([data.window(s, int(data.lengths[s]), WINDOWS * HORIZON) for s in range(len(data.ids))])
    assert rows[rows["model"] == "candidate"]["steps"].sum() == (~np.isnan(future)).sum()
    assert rows[rows["model"] == "candidate"]["WAPE_denominator"].sum() == pytest.approx(
        np.nansum(np.abs(future)), rel=1e-5
    )
    assert pd.Timestamp(evaluation.cutoffs[0]) < pd.Timestamp(data.manifest.test_start)
    own = aggregate(evaluation.scores)
    for name, values in evaluation.aggregates.items():
        assert {m: own[name][m] for m in METRICS} == pytest.approx({m: values[m] for m in METRICS}, rel=1e-9)
