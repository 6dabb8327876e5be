"""The back-test against fev itself, on the faults that real data has."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pytest

from toto_pipeline.errors import DataError, EvaluationError
from toto_pipeline.evaluation.backtest import Evaluation, backtest
from toto_pipeline.evaluation.metrics import METRICS, aggregate
from toto_pipeline.evaluation.pictures import chosen
from toto_pipeline.evaluation.windows import open_task
from toto_pipeline.models.baselines import SeasonalNaive
from toto_pipeline.settings.promotion import EvaluationSettings
from toto_pipeline_tests.evaluation.small_data import (
    CONTEXT,
    HORIZON,
    SEASON,
    WINDOWS,
    Broken,
    SmallData,
    Steady,
    fev_summary,
    small_data,
    wave,
)

SETTINGS = EvaluationSettings(batch_size=2, pictures=3)


def run(data: SmallData, cache: Path, **forecasters: object) -> Evaluation:
    models = forecasters or {"candidate": Steady(), "seasonal_naive": SeasonalNaive(SEASON)}
    return backtest(models, data, SETTINGS, cache=cache)  # type: ignore[arg-type]


@pytest.fixture(params=[1000, 2, 1], ids=lambda chunk: f"{chunk} a chunk")
def ragged(tmp_path: Path, request: pytest.FixtureRequest) -> SmallData:
    """Four series: whole, with gaps, beginning late, ending early; and one that never changes."""
    gaps = wave(300, 2)
    gaps[[100, 260, 261, 290]] = np.nan
    series = {"b": wave(300, 1), "gaps": gaps, "late": wave(120, 3), "early": wave(270, 4), "flat": np.full(300, 7.0)}
    return small_data(tmp_path / "data", dict(sorted(series.items())), starts={"late": 180}, chunk=request.param)


def test_scores_are_those_of_fev_however_the_series_are_spread_over_chunks(ragged: SmallData, tmp_path: Path) -> None:
    evaluation = run(ragged, tmp_path / "cache")
    for key, model in (("candidate", Steady()), ("seasonal_naive", SeasonalNaive(SEASON))):
        expected = fev_summary(ragged, model, tmp_path / "cache")
        assert {m: evaluation.aggregates[key][m] for m in METRICS} == pytest.approx(expected, rel=1e-9), key
    assert aggregate(evaluation.scores) == evaluation.aggregates
    assert evaluation.aggregates["candidate"]["MASE"] > evaluation.aggregates["seasonal_naive"]["MASE"] > 0


def test_chunks_change_nothing(tmp_path: Path) -> None:
    series = {f"s{i}": wave(300, i) for i in range(5)}
    one, many = (run(small_data(tmp_path / str(chunk), series, chunk=chunk), tmp_path / "cache") for chunk in (1000, 2))
    keys = ["model", "series", "variate", "window"]
    a, b = (each.scores.to_pandas().astype({"series": str}).sort_values(keys) for each in (one, many))
    assert a.to_dict("list") == b.to_dict("list")
    assert one.by_series.equals(many.by_series)
    assert one.windows_fingerprint == many.windows_fingerprint
    assert one.aggregates["candidate"] == pytest.approx(many.aggregates["candidate"], rel=1e-12)
    for ours, theirs in zip(one.pictures, many.pictures, strict=True):
        assert ours.series == theirs.series
        np.testing.assert_array_equal(ours.forecasts_HQ["candidate"], theirs.forecasts_HQ["candidate"])


def test_several_variates_keep_their_order_and_match_fev(tmp_path: Path) -> None:
    series = {name: np.stack([wave(300, s), 100 * wave(300, s + 9)]) for s, name in enumerate("ab")}
    data = small_data(tmp_path / "data", series, variates=("volume", "close"))
    model = Steady()
    evaluation = run(data, tmp_path / "cache", candidate=model, seasonal_naive=SeasonalNaive(SEASON))
    first = model.batches[0]
    assert first.shape == (2, 2, CONTEXT)
    assert first[:, 1].mean() > 50 * first[:, 0].mean()
    expected = fev_summary(data, Steady(), tmp_path / "cache")
    assert {m: evaluation.aggregates["candidate"][m] for m in METRICS} == pytest.approx(expected, rel=1e-9)
    rows = evaluation.scores.to_pandas()
    mean_actual = rows.groupby("variate", observed=True)["WAPE_denominator"].mean()
    assert mean_actual["close"] > 50 * mean_actual["volume"]


def test_windows_begin_at_the_same_time_for_ragged_series(ragged: SmallData, tmp_path: Path) -> None:
    evaluation = run(ragged, tmp_path / "cache")
    assert evaluation.cutoffs == (
        "2024-01-11T11:00:00",
        "2024-01-11T23:00:00",
        "2024-01-12T11:00:00",
        "2024-01-12T23:00:00",
    )
    rows = evaluation.scores.to_pandas()
    rows = rows[rows["model"] == "candidate"]
    assert rows.groupby("series", observed=True)["window"].apply(set)["early"] == {0}
    assert rows.groupby("series", observed=True)["window"].apply(set)["late"] == {0, 1, 2, 3}
    assert any("fewer series" in note and evaluation.cutoffs[1] in note for note in evaluation.notes)


def test_history_ends_before_the_window_and_is_as_long_as_asked(tmp_path: Path) -> None:
    values = np.arange(300, dtype=np.float32)
    data = small_data(tmp_path / "data", {"a": values})
    model, longer = Steady(), Steady()
    longer.history_length = 60  # type: ignore[attr-defined]
    run(data, tmp_path / "cache", candidate=model, champion=longer)
    seen = np.concatenate(model.batches[:2])
    assert [row[0, -1] for row in seen] == [251.0, 263.0, 275.0, 287.0]
    assert model.batches[0].shape == (2, 1, CONTEXT), "a batch spans windows"
    assert longer.batches[0].shape == (2, 1, 60)
    assert longer.batches[0][0, 0, 0] == 192.0


def test_short_histories_are_padded_with_missing_values(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", {"a": wave(300, 1), "short": wave(60, 2)}, starts={"short": 240})
    model = Steady()
    run(data, tmp_path / "cache", candidate=model)
    assert np.isnan(model.batches[0][1, 0]).sum() == CONTEXT - 12


def test_missing_actuals_are_left_out_not_zero(tmp_path: Path) -> None:
    whole, holes = wave(300, 1), wave(300, 1)
    holes[-3:] = np.nan
    evaluation = run(small_data(tmp_path / "data", {"holes": holes}), tmp_path / "cache")
    full = run(small_data(tmp_path / "full", {"holes": whole}), tmp_path / "cache")
    rows, expected = evaluation.scores.to_pandas(), full.scores.to_pandas()
    assert rows["steps"].iloc[WINDOWS - 1] == HORIZON - 3
    assert rows["WAPE_denominator"].iloc[WINDOWS - 1] < expected["WAPE_denominator"].iloc[WINDOWS - 1]
    assert np.isfinite(rows.select_dtypes("number")).all().all()
    assert "3 missing values in the windows are left out of all scores." in evaluation.notes


def test_a_constant_series_is_named_and_counts_where_it_can(ragged: SmallData, tmp_path: Path) -> None:
    evaluation = run(ragged, tmp_path / "cache")
    rows = evaluation.scores.to_pandas()
    flat = rows[rows["series"] == "flat"]
    assert flat["MASE"].isna().all()
    assert (flat["WAPE_denominator"] == 7 * HORIZON).all()
    assert any("flat" in note and "left out of MASE" in note for note in evaluation.notes)


def test_only_constant_series_leave_mase_undefined_and_say_so(tmp_path: Path) -> None:
    evaluation = run(small_data(tmp_path / "data", {"flat": np.full(300, 7.0)}), tmp_path / "cache")
    assert np.isnan(evaluation.aggregates["candidate"]["MASE"])
    assert evaluation.aggregates["candidate"]["WAPE"] == pytest.approx(0)
    assert len(evaluation.pictures) == 1


def test_a_window_with_a_variate_missing_altogether_leaves_the_rest_defined(tmp_path: Path) -> None:
    both = np.stack([wave(300, 1), wave(300, 2)])
    both[1, -HORIZON:] = np.nan
    data = small_data(tmp_path / "data", {"a": both}, variates=("x", "y"))
    evaluation = run(data, tmp_path / "cache")
    assert all(np.isfinite(value) for value in evaluation.aggregates["candidate"].values())
    assert any("without anything to score" in note for note in evaluation.notes)


def test_forecasts_that_are_not_finite_are_refused_by_name(ragged: SmallData, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"'champion' \(steady_0.0\).*nan.*series '(early|b|late)'.*step 3"):
        run(ragged, tmp_path / "cache", candidate=Steady(), champion=Broken())


def test_the_fingerprint_follows_the_actual_values_alone(tmp_path: Path) -> None:
    series = {"a": wave(300, 1), "b": wave(300, 2)}
    one = run(small_data(tmp_path / "1", series), tmp_path / "cache")
    again = run(small_data(tmp_path / "2", series), tmp_path / "cache", candidate=Steady(bias=3.0))
    assert one.windows_fingerprint == again.windows_fingerprint
    series["b"][-1] += 1
    assert run(small_data(tmp_path / "3", series), tmp_path / "cache").windows_fingerprint != one.windows_fingerprint


def test_no_network_and_nothing_left_in_the_cache(
    ragged: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*call: object, **_: object) -> None:
        asked.append(call)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    home = Path.home() / ".cache" / "huggingface" / "datasets" / "parquet"
    before = sorted(home.glob("*")) if home.is_dir() else []
    run(ragged, tmp_path / "cache")
    assert asked == []
    assert list((tmp_path / "cache").iterdir()) == []
    assert (sorted(home.glob("*")) if home.is_dir() else []) == before


@pytest.mark.parametrize("name", ["a b", "a[1]", "a*b"])
def test_a_home_with_wildcards_in_its_name_is_read(tmp_path: Path, name: str) -> None:
    small_data(tmp_path / "axb", {"b": wave(300, 2)})
    evaluation = run(small_data(tmp_path / name, {"a": wave(300, 1)}), tmp_path / name / "cache")
    assert set(evaluation.scores.to_pandas()["series"]) == {"a"}


def test_a_damaged_evaluation_file_is_named(ragged: SmallData, tmp_path: Path) -> None:
    ragged.evaluation_file.write_bytes(b"not parquet")
    with (
        pytest.raises(DataError, match=r"evaluation\.parquet: cannot be read.*materialize training_data"),
        open_task(ragged, tmp_path / "cache"),
    ):
        pass


def test_windows_that_no_series_reaches_are_refused(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", {"a": wave(280, 1)})
    with pytest.raises(EvaluationError, match=r"window 3 of 4.*lower preparation"):
        run(data, tmp_path / "cache")


def test_progress_counts_forecasts_of_each_model(tmp_path: Path) -> None:
    series = {f"s{i}": wave(300, i) for i in range(3)}
    data = small_data(tmp_path / "data", series, chunk=2)
    calls: list[tuple[str, int, int]] = []
    backtest(
        {"candidate": Steady()}, data, SETTINGS, cache=tmp_path / "cache", progress=lambda *call: calls.append(call)
    )
    assert calls == [("candidate", 2 * WINDOWS, 3 * WINDOWS), ("candidate", 3 * WINDOWS, 3 * WINDOWS)]


def test_months_are_cut_at_month_ends(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", {"a": wave(300, 1)}, frequency="MS")
    evaluation = run(data, tmp_path / "cache")
    assert evaluation.cutoffs == tuple(f"{year}-12-01T00:00:00" for year in range(2044, 2048))
    assert evaluation.pictures[0].times[0] == "2048-01-01T00:00:00"


def test_pictures_hold_history_and_forecasts_of_the_last_window(tmp_path: Path) -> None:
    series = {f"s{i}": wave(300, i) for i in range(5)}
    evaluation = run(small_data(tmp_path / "data", series), tmp_path / "cache")
    assert len(evaluation.pictures) == SETTINGS.pictures
    mases = [picture.mase for picture in evaluation.pictures]
    assert mases == sorted(mases)
    picture = evaluation.pictures[0]
    assert picture.history_times[-1] == evaluation.cutoffs[-1]
    assert picture.history_T[-1] == series[picture.series][-HORIZON - 1]
    np.testing.assert_allclose(picture.actual_H, series[picture.series][-HORIZON:])
    assert {key: values.shape for key, values in picture.forecasts_HQ.items()} == {
        "candidate": (HORIZON, 9),
        "seasonal_naive": (HORIZON, 9),
    }


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [2]), (2, [1, 2]), (3, [0, 2, 4]), (4, [0, 1, 2, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_best_middle_and_worst_are_chosen(count: int, expected: list[int]) -> None:
    mase = np.array([[0.1], [0.2], [0.3], [0.4], [0.5], [np.nan]])
    assert [row for row, _ in chosen(mase, count)] == expected


def test_evaluations_are_values(tmp_path: Path) -> None:
    evaluation = run(small_data(tmp_path / "data", {"a": wave(300, 1)}), tmp_path / "cache")
    with pytest.raises(dataclasses.FrozenInstanceError):
        evaluation.horizon = 3  # type: ignore[misc]
