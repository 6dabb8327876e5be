"""The seasonal naive and the drift: point forecasts, honesty about the spread, histories that are not whole."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toto_pipeline.models.baselines import Drift, SeasonalNaive
from toto_pipeline.models.forecaster import QUANTILES

MEDIAN = QUANTILES.index(0.5)


def forecast(history: list[float] | np.ndarray, horizon: int, season: int) -> np.ndarray:
    """(horizon, 9) for one series."""
    return SeasonalNaive(season).forecast(np.array(history, dtype=np.float32)[None, None], horizon)[0, 0]


def test_the_median_is_the_last_season_again_and_again() -> None:
    history = [1, 2, 3, 4, 5, 6, 7]
    assert forecast(history, 7, 3)[:, MEDIAN].tolist() == [5, 6, 7, 5, 6, 7, 5]


def test_a_missing_value_is_taken_from_the_season_before_with_a_wider_spread() -> None:
    history = [10, 20, 11, 21, 12, np.nan]
    answer = forecast(history, 2, 2)
    assert answer[:, MEDIAN].tolist() == [12, 21]
    width = answer[:, -1] - answer[:, 0]
    assert width[1] == pytest.approx(width[0] * np.sqrt(2), rel=1e-5)


def test_the_spread_is_that_of_the_seasonal_differences_and_grows_with_the_seasons() -> None:
    history = [0, 0, 3, 3, 0, 0]
    answer = forecast(history, 6, 2)
    upper = answer[:, QUANTILES.index(0.9)]
    sigma = 3.0
    expected = [1.2815516 * sigma * np.sqrt(season) for season in (1, 1, 2, 2, 3, 3)]
    np.testing.assert_allclose(upper, expected, rtol=1e-5)
    np.testing.assert_allclose(answer[:, 0], -upper, rtol=1e-5)


def test_a_place_never_observed_takes_the_last_value() -> None:
    assert forecast([5, np.nan, 6, np.nan], 2, 2)[:, MEDIAN].tolist() == [6, 6]


def test_a_history_shorter_than_a_season_spreads_like_a_random_walk() -> None:
    answer = forecast([1, 2, 3], 4, 24)
    assert answer[:, MEDIAN].tolist() == [3, 3, 3, 3]
    np.testing.assert_allclose(answer[:, -1] - 3, 1.2815516 * np.sqrt([1, 2, 3, 4]), rtol=1e-5)


@pytest.mark.parametrize("history", [[], [np.nan, np.nan], [np.nan] * 50])
def test_nothing_observed_is_forecast_as_zero(history: list[float]) -> None:
    assert (forecast(history, 5, 24) == 0).all()


def test_a_constant_series_has_no_spread() -> None:
    assert (forecast([7.0] * 30, 5, 6) == 7).all()


def test_nominal_coverage_on_a_seasonal_random_walk() -> None:
    """Each season is the last plus noise: what the method assumes. 80 % of the future must lie in the 80 % band."""
    random = np.random.default_rng(0)
    season, seasons, series = 4, 30, 500
    steps = random.normal(size=(series, seasons + 3, season)).cumsum(axis=1).reshape(series, -1).astype(np.float32)
    history, future = steps[:, : seasons * season], steps[:, seasons * season :]
    answer = SeasonalNaive(season).forecast(history[:, None], 3 * season)[:, 0]
    for ahead in range(3):
        part = slice(ahead * season, (ahead + 1) * season)
        inside = (answer[:, part, 0] <= future[:, part]) & (future[:, part] <= answer[:, part, -1])
        assert inside.mean() == pytest.approx(0.8, abs=0.03)


def test_a_batch_is_forecast_as_its_series_are_alone() -> None:
    random = np.random.default_rng(1)
    history = random.normal(size=(3, 2, 37)).astype(np.float32)
    history[random.random(history.shape) < 0.3] = np.nan
    batch = SeasonalNaive(5).forecast(history, 11)
    assert batch.shape == (3, 2, 11, 9)
    assert batch.dtype == np.float32
    for row in range(3):
        for variate in range(2):
            np.testing.assert_array_equal(batch[row, variate], forecast(history[row, variate], 11, 5))


@settings(max_examples=200, deadline=None)
@given(
    history=hnp.arrays(
        np.float32,
        st.tuples(st.just(2), st.just(2), st.integers(0, 40)),
        elements=st.floats(width=32, allow_infinity=False, allow_nan=True),
    ),
    horizon=st.integers(1, 30),
    season=st.integers(1, 20),
)
def test_always_finite_and_in_order(history: np.ndarray, horizon: int, season: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = SeasonalNaive(season).forecast(history, horizon)
    assert answer.shape == (2, 2, horizon, 9)
    assert np.isfinite(answer).all()
    assert (np.diff(answer, axis=-1) >= 0).all()


def test_it_asks_for_two_seasons_of_history() -> None:
    assert SeasonalNaive(24).history_length == 48


def test_a_season_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="season"):
        SeasonalNaive(0)


def drift(history: list[float], horizon: int) -> np.ndarray:
    """(horizon, 9) for one series."""
    return Drift().forecast(np.array(history, dtype=np.float32)[None, None], horizon)[0, 0]


def test_drift_goes_on_along_the_line_from_the_first_to_the_last_value() -> None:
    assert drift([1, 9, 2, 7], 3)[:, MEDIAN].tolist() == [9, 11, 13]


def test_drift_spreads_as_the_table_in_the_book_says() -> None:
    """By hand: changes 3, -1, 4 about the slope 2, squares 1 + 9 + 4 over two degrees of freedom."""
    upper = drift([0, 3, 2, 6], 2)[:, QUANTILES.index(0.9)]
    sigma = np.sqrt(14 / 2)
    expected = [6 + 2 * h + 1.2815516 * sigma * np.sqrt(h * (1 + h / 3)) for h in (1, 2)]
    np.testing.assert_allclose(upper, expected, rtol=1e-5)


def test_drift_counts_the_steps_that_are_missing_at_both_ends() -> None:
    bare, padded = drift([0, 3, 2, 6], 4), drift([np.nan, np.nan, 0, 3, 2, 6, np.nan], 3)
    np.testing.assert_allclose(padded, bare[1:], rtol=1e-6)


def test_drift_leaves_out_changes_across_a_gap_but_spans_it() -> None:
    answer = drift([0, 3, np.nan, np.nan, 8, 10], 1)
    assert answer[0, MEDIAN] == 12
    sigma = np.sqrt((1 + 0) / 1)
    assert answer[0, -1] == pytest.approx(12 + 1.2815516 * sigma * np.sqrt(1 + 1 / 5), rel=1e-5)


@pytest.mark.parametrize(
    ("history", "expected"), [([], 0), ([np.nan, np.nan], 0), ([5], 5), ([np.nan, 5, np.nan], 5), ([4.0] * 9, 4)]
)
def test_drift_of_next_to_nothing_has_no_slope_and_no_spread(history: list[float], expected: float) -> None:
    assert (drift(history, 5) == expected).all()


def test_drift_covers_what_it_says_on_random_walks_with_drift() -> None:
    random = np.random.default_rng(0)
    walks = (0.3 + random.normal(size=(2000, 130))).cumsum(axis=1).astype(np.float32)
    answer = Drift().forecast(walks[:, None, :120], 10)[:, 0]
    future = walks[:, 120:]
    inside = (answer[..., 0] <= future) & (future <= answer[..., -1])
    assert inside.mean() == pytest.approx(0.8, abs=0.02)
    assert inside[:, -1].mean() == pytest.approx(0.8, abs=0.03)


@settings(max_examples=200, deadline=None)
@given(
    history=hnp.arrays(
        np.float32,
        st.tuples(st.just(2), st.just(2), st.integers(0, 40)),
        elements=st.floats(width=32, allow_infinity=False, allow_nan=True),
    ),
    horizon=st.integers(1, 30),
)
def test_drift_is_always_finite_and_in_order(history: np.ndarray, horizon: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = Drift().forecast(history, horizon)
    assert answer.shape == (2, 2, horizon, 9)
    assert np.isfinite(answer).all()
    assert (np.diff(answer, axis=-1) >= 0).all()
