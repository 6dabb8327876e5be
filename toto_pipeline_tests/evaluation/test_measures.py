"""Bias, calibration, coverage and sharpness, by series and by step, against what can be reckoned by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toto_pipeline.evaluation.backtest import Evaluation, backtest
from toto_pipeline.evaluation.bootstrap import Resampling
from toto_pipeline.evaluation.metrics import INTERVALS, MEASURES, measures
from toto_pipeline.evaluation.report import report
from toto_pipeline.models.baselines import SeasonalNaive
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.settings.promotion import EvaluationSettings
from toto_pipeline_tests.evaluation.small_data import HORIZON, SEASON, WINDOWS, Steady, small_data, wave


def told(actual: list[float], scale: float = 2.0) -> dict[str, np.ndarray]:
    """Measures (H,) of a forecast whose quantiles are 1 to 9 at every step."""
    forecast = np.tile(np.arange(1, 10, dtype=np.float32), (1, 1, len(actual), 1))
    values = measures(np.array(actual)[None, None], forecast, np.array([[scale]]))
    assert values.shape == (len(MEASURES), 1, 1, len(actual))
    return dict(zip(MEASURES, values[:, 0, 0], strict=True))


def test_the_central_intervals_are_those_between_the_quantiles() -> None:
    assert INTERVALS == {80: (0.1, 0.9), 60: (0.2, 0.8), 40: (0.3, 0.7), 20: (0.4, 0.6)}


def test_measures_by_hand() -> None:
    values = told([5, 1, 9, 2.5, 10, np.nan])
    assert values["MASE"][:5].tolist() == [0, 2, 2, 1.25, 2.5]
    assert values["bias"][:5].tolist() == [0, 2, -2, 1.25, -2.5]
    assert values["coverage_80"][:5].tolist() == [1, 1, 1, 1, 0]
    assert values["coverage_60"][:5].tolist() == [1, 0, 0, 1, 0]
    assert values["coverage_20"][:5].tolist() == [1, 0, 0, 0, 0]
    assert [values[f"interval_width_{p}"][0] for p in INTERVALS] == [4, 3, 2, 1]
    assert [values[f"below_{level}"][3] for level in QUANTILES] == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert all(np.isnan(row[5]) for row in values.values())


def test_a_series_without_a_scale_has_coverage_but_no_error_in_scales() -> None:
    values = told([5.0], scale=0.0)
    assert np.isnan([values["MASE"][0], values["SQL"][0], values["bias"][0], values["interval_width_80"][0]]).all()
    assert values["coverage_80"][0] == 1


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("measures")
    gaps = wave(300, 5)
    gaps[[260, -1]] = np.nan
    wild = wave(300, 3) + 40 * ((np.arange(300) >= 264) & (np.arange(300) < 276))
    data = small_data(folder, {"calm": wave(300, 1), "gaps": gaps, "wild": wild, "flat": np.full(300, 2.0)}, chunk=2)
    models = {"candidate": Steady(bias=1.0), "seasonal_naive": SeasonalNaive(SEASON), "zero_shot": Steady(bias=3.0)}
    return backtest(models, data, EvaluationSettings(pictures=1, worst_pictures=2), cache=folder / "cache")


def test_series_and_steps_add_up_to_the_aggregates(evaluation: Evaluation) -> None:
    series, steps = evaluation.by_series.to_pandas(), evaluation.by_step.to_pandas()
    rows = evaluation.scores.to_pandas()
    assert steps.groupby("model", observed=True)["step"].apply(list)["candidate"] == list(range(1, HORIZON + 1))
    for model, values in evaluation.aggregates.items():
        own, ahead = series[series["model"] == model], steps[steps["model"] == model]
        for name in ("coverage_80", "interval_width_80"):
            expected = values[name.removesuffix("_80") if name.startswith("interval") else name]
            weights = np.where(own[name].isna(), 0, own["steps"])
            assert np.average(own[name].fillna(0), weights=weights) == pytest.approx(expected)
        assert np.average(ahead["coverage_80"], weights=ahead["values"]) == pytest.approx(values["coverage_80"])
        assert own["steps"].sum() == ahead["values"].sum() == rows[rows["model"] == model]["steps"].sum()
        for name in own["series"]:
            mine = rows[(rows["model"] == model) & (rows["series"] == name)]
            row = own[own["series"] == name].iloc[0]
            wape = mine["WAPE_numerator"].sum() / mine["WAPE_denominator"].sum()
            assert row["WAPE"] == pytest.approx(wape), name
            if name != "flat":
                assert row["MASE"] == pytest.approx(np.average(mine["MASE"], weights=mine["steps"])), name


def test_bias_and_calibration_tell_a_forecast_that_is_too_high(evaluation: Evaluation) -> None:
    high, higher = evaluation.quality["candidate"], evaluation.quality["zero_shot"]
    assert high["bias"] < higher["bias"]
    series = evaluation.by_series.to_pandas().set_index(["model", "series"])
    calm, calmer = series.loc[("candidate", "calm")], series.loc[("zero_shot", "calm")]
    assert 0 < calm["bias"] < calmer["bias"]
    assert calm["below_0.1"] < calmer["below_0.1"]
    assert list(high["coverage"]) == ["80", "60", "40", "20"]
    assert high["coverage"]["80"] == pytest.approx(evaluation.aggregates["candidate"]["coverage_80"])
    widths = list(high["interval_width"].values())
    assert widths == sorted(widths, reverse=True)


def test_the_worst_series_are_drawn_where_they_were_worst(evaluation: Evaluation) -> None:
    worst = evaluation.worst_pictures[0]
    assert worst.series == "wild"
    assert worst.history_times[-1] == evaluation.cutoffs[1]
    assert worst.actual_H.mean() > 40
    assert set(worst.forecasts_HQ) == {"candidate", "seasonal_naive", "zero_shot"}
    assert len(evaluation.worst_pictures) == 2


def test_the_report_tells_skill_and_whether_fine_tuning_helped(evaluation: Evaluation) -> None:
    values = report(evaluation, {}, Resampling(resamples=200))
    own = evaluation.aggregates
    skill = values["skill"]["candidate"]["WAPE"]
    assert skill["value"] == pytest.approx(1 - own["candidate"]["WAPE"] / own["seasonal_naive"]["WAPE"])
    assert skill["low"] <= skill["value"] <= skill["high"]
    assert "seasonal_naive" not in values["skill"]
    gain = values["fine_tuning"]["WAPE"]["value"]
    assert gain == pytest.approx(1 - own["candidate"]["WAPE"] / own["zero_shot"]["WAPE"])
    assert len(values["by_step"]["zero_shot"]["MASE"]) == HORIZON
    assert len(values["cutoffs"]) == WINDOWS


def test_without_starting_weights_nothing_is_said_of_fine_tuning(tmp_path: Path) -> None:
    data = small_data(tmp_path, {"a": wave(300, 1)})
    models = {"candidate": Steady(), "seasonal_naive": SeasonalNaive(SEASON)}
    evaluation = backtest(models, data, EvaluationSettings(pictures=0), cache=tmp_path / "cache")
    assert report(evaluation, {}, Resampling(resamples=200))["fine_tuning"] is None
