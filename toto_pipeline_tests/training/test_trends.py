"""The warnings about a course: each comes when its trouble begins, once, and a healthy course causes none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.settings.training import TrainingSettings, TrendSettings
from toto_pipeline.training.callbacks import Callback, EpochResult, Record, StepResult, Warn, build_callbacks
from toto_pipeline.training.metric_statistics import MetricStatistics
from toto_pipeline.training.trends import Divergence, GradientExplosion, LossPlateau, Oscillation, Overfitting
from toto_pipeline_tests.training.callback_helpers import (
    NUMBERS,
    epoch_result,
    epochs,
    show,
    step_result,
    training_epochs,
)


def _warned_at(callback: Callback, results: list[EpochResult]) -> list[int]:
    """The epochs after which a warning came."""
    return [result.epoch for result in results if any(isinstance(a, Warn) for a in callback.after_epoch(result))]


def _both(train: list[float], validation: list[float]) -> list[EpochResult]:
    return [epoch_result(n, *losses) for n, losses in enumerate(zip(train, validation, strict=True), start=1)]


def _falling(count: int) -> list[float]:
    return [1 - 0.01 * epoch for epoch in range(count)]


def test_overfitting_is_told_after_so_many_epochs_of_it() -> None:
    validation = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert _warned_at(Overfitting(TrendSettings(overfitting_epochs=3)), _both(_falling(6), validation)) == [4]
    assert _warned_at(Overfitting(TrendSettings(overfitting_epochs=5)), _both(_falling(6), validation)) == [6]


def test_overfitting_after_a_descent_is_told_once_the_moving_mean_has_turned() -> None:
    validation = [1.0, 0.8, 0.6, 0.5, 0.51, 0.52, 0.53, 0.54, 0.55]
    assert _warned_at(Overfitting(TrendSettings(window=5, overfitting_epochs=3)), _both(_falling(9), validation)) == [9]
    assert _warned_at(Overfitting(TrendSettings(window=2, overfitting_epochs=3)), _both(_falling(9), validation)) == [7]


def test_overfitting_that_ended_and_came_back_is_told_again() -> None:
    validation = [0.5, 0.6, 0.7, 0.8, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    settings = TrendSettings(window=2, overfitting_epochs=3)
    assert _warned_at(Overfitting(settings), _both(_falling(10), validation)) == [4, 8]


@pytest.mark.parametrize("train, validation", [(0.01, 0.01), (-0.01, -0.01), (0.0, 0.01), (-0.01, 0.0)])
def test_losses_that_move_the_same_way_or_stand_are_no_overfitting(train: float, validation: float) -> None:
    course = _both([0.7 + n * train for n in range(30)], [0.7 + n * validation for n in range(30)])
    assert _warned_at(Overfitting(TrendSettings()), course) == []


def test_a_loss_that_is_not_finite_breaks_the_row_of_overfitting() -> None:
    validation = [0.5, 0.6, 0.7, math.nan, 0.8, 0.9, 1.0]
    assert _warned_at(Overfitting(TrendSettings(overfitting_epochs=3)), _both(_falling(7), validation)) == []


def test_the_message_of_overfitting_has_the_numbers_and_the_way_out() -> None:
    (warning,) = show(Overfitting(TrendSettings()), _both([0.5, 0.4, 0.3, 0.2], [0.5, 0.6, 0.7, 0.8]))
    assert warning == Warn(
        "overfitting",
        "the validation loss has risen to 0.8 while the training loss fell to 0.2, 3 epochs in a row until epoch 4; "
        "more data, or training.early_stopping, helps",
    )


def test_a_plateau_is_told_once_and_again_after_a_better_loss() -> None:
    losses = [1.0, 0.9995, 1.2, math.nan, 0.9992, 0.9, 0.9, 0.9, 0.9]
    settings = TrendSettings(plateau_epochs=3, plateau_threshold=1e-3)
    assert _warned_at(LossPlateau(settings), epochs(losses)) == [4, 9]


def test_a_slow_fall_that_adds_up_is_no_plateau() -> None:
    settings = TrendSettings(plateau_epochs=5, plateau_threshold=1e-3)
    assert _warned_at(LossPlateau(settings), epochs([0.9996**n for n in range(60)])) == []
    assert _warned_at(LossPlateau(settings), epochs([0.9999**n for n in range(60)])) != []


def test_a_negative_loss_must_fall_too() -> None:
    settings = TrendSettings(plateau_epochs=2, plateau_threshold=0.1)
    assert _warned_at(LossPlateau(settings), epochs([-1.0, -1.05, -1.05])) == [3]
    assert _warned_at(LossPlateau(settings), epochs([-1.0, -1.2, -1.4])) == []


def test_divergence_is_told_when_the_training_loss_leaves_its_lowest_behind() -> None:
    losses = [1.0, 0.5, 0.99, 1.01, 5.0, math.inf, 0.4, 0.7, 0.81]
    assert _warned_at(Divergence(TrendSettings(divergence_factor=2.0)), training_epochs(losses)) == [4, 9]


def test_the_first_epoch_cannot_diverge() -> None:
    assert _warned_at(Divergence(TrendSettings()), training_epochs([1e9, 1e8])) == []


def test_oscillation_is_told_after_so_many_turns() -> None:
    up_and_down = [1.0, 1.1] * 5
    assert _warned_at(Oscillation(TrendSettings(oscillation_epochs=4)), training_epochs(up_and_down)) == [5]
    assert _warned_at(Oscillation(TrendSettings(oscillation_epochs=4)), training_epochs([0.5, *up_and_down])) == [6]


def test_a_turn_is_measured_by_the_smaller_of_the_two_losses() -> None:
    settings = TrendSettings(oscillation_epochs=3, oscillation_amplitude=0.05)
    assert _warned_at(Oscillation(settings), training_epochs([1.0, 1.051] * 3)) == [4]
    assert _warned_at(Oscillation(settings), training_epochs([1.0, 1.049] * 3)) == []


def test_oscillation_that_ended_and_came_back_is_told_again() -> None:
    losses = [1.0, 1.1, 1.0, 1.1, 1.2, 1.1, 1.2, 1.1]
    assert _warned_at(Oscillation(TrendSettings(oscillation_epochs=3)), training_epochs(losses)) == [4, 7]


@pytest.mark.parametrize("pair", [(1.0, 1.04), (1.0, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_small_turns_and_gaps_are_no_oscillation(pair: tuple[float, float]) -> None:
    settings = TrendSettings(oscillation_epochs=3, oscillation_amplitude=0.05)
    assert _warned_at(Oscillation(settings), training_epochs(pair * 10)) == []


def _norms(values: list[float], *, first: int = 1) -> list[StepResult]:
    return [step_result(step, norm=value) for step, value in enumerate(values, start=first)]


def _exploded_at(norms: list[float]) -> list[str]:
    """The steps that were warned about, which are the same when all come at once."""
    one_by_one, at_once = (GradientExplosion(TrendSettings(explosion_factor=10.0)) for _ in range(2))
    warnings = show(one_by_one, _norms(norms))
    assert show(at_once, _norms(norms), [len(norms)]) == warnings
    return [w.message.split(" is ")[0].removeprefix("the gradient norm of step ") for w in warnings]  # type: ignore[union-attr]


def test_an_explosion_is_told_against_the_median_of_the_steps_before() -> None:
    assert _exploded_at([1.0] * 20 + [10.01]) == ["21"]
    assert _exploded_at([1.0] * 20 + [9.99]) == []
    assert _exploded_at([1.0, 3.0] * 10 + [20.5]) == ["21"]  # the median of these is 2


def test_an_explosion_needs_twenty_finite_steps_before_it() -> None:
    assert _exploded_at([1.0] * 19 + [100.0]) == []
    assert _exploded_at([math.nan, math.inf] * 10 + [1.0] * 19 + [100.0]) == []


def test_only_the_last_hundred_steps_count() -> None:
    assert _exploded_at([1.0] * 60 + [0.1] * 51 + [1.5]) == ["112"]
    assert _exploded_at([1.0] * 60 + [0.1] * 49 + [1.5]) == []


def test_an_explosion_is_told_again_only_after_twenty_calm_steps() -> None:
    calm = [1.0] * 30
    assert _exploded_at([*calm, 50.0, 1.0, 60.0, math.inf, 70.0, *[1.0] * 19, 50.0]) == ["31"]
    assert _exploded_at([*calm, 50.0, *[1.0] * 20, 50.0]) == ["31", "52"]


@settings(deadline=None)
@given(
    st.floats(0.02, 0.2),
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=40, max_size=40),
    st.floats(0.01, 100),
)
def test_noise_on_a_falling_course_causes_no_warning(
    fall: float, noise: list[tuple[float, float]], scale: float
) -> None:
    """Both losses fall by 2 to 20 % an epoch, each with noise of up to 2.4 %, however the noise lies."""
    amplitude = min(0.024, fall)
    course = [
        epoch_result(
            epoch + 1,
            scale * (1 - fall) ** epoch * (1 + amplitude * train),
            scale * (1 - fall) ** epoch * (1 + amplitude * validation),
        )
        for epoch, (train, validation) in enumerate(noise)
    ]
    for name, callback in build_callbacks(TrainingSettings()).items():
        assert not [action for action in show(callback, course) if not isinstance(action, Record)], name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_noise_on_gradient_norms_causes_no_warning(seed: int) -> None:
    norms = np.random.default_rng(seed).lognormal(sigma=0.4, size=500) * np.linspace(5, 1, 500)
    assert show(GradientExplosion(TrendSettings()), _norms(norms.tolist())) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_course_that_converges_like_a_real_one_is_no_overfitting(seed: int) -> None:
    """A loss that falls to its floor over 40 epochs, with 0.5 % of normal noise on both curves."""
    random = np.random.default_rng(seed)
    falling = 0.5 + np.exp(-np.arange(40) / 12)
    train, validation = (falling * (1 + 0.005 * random.standard_normal(40)) for _ in range(2))
    assert _warned_at(Overfitting(TrendSettings()), _both(train.tolist(), validation.tolist())) == []


def _statistics(callback: MetricStatistics, results: list[EpochResult], metric: str) -> list[dict[str, float | None]]:
    records = [action for action in show(callback, results) if isinstance(action, Record)]
    assert len(records) == len(results)
    return [record.values[metric] for record in records]


def test_statistics_of_a_straight_line_are_its_own() -> None:
    results = epochs([10.0 - 2 * n for n in range(8)])
    *_, last = _statistics(MetricStatistics(window=4), results, "validation_loss")
    assert last == {"mean": -1.0, "slope": -2.0, "best": -4.0, "epochs_since_best": 0}


def test_statistics_of_a_single_epoch_have_no_slope() -> None:
    (first,) = _statistics(MetricStatistics(window=4), epochs([3.0]), "validation_loss")
    assert first == {"mean": 3.0, "slope": None, "best": 3.0, "epochs_since_best": 0}


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=20), st.integers(2, 8))
def test_statistics_are_those_of_the_finite_values_in_the_window(values: list[float], window: int) -> None:
    values = [value if abs(value) < 1e100 else math.nan for value in values]
    results = [epoch_result(epoch, MASE=value) for epoch, value in enumerate(values, start=1)]
    found = _statistics(MetricStatistics(window), results, "MASE")
    for end, numbers in enumerate(found, start=1):
        inside = [(e, v) for e, v in enumerate(values[:end], start=1) if e > end - window and math.isfinite(v)]
        x, y = np.array([e for e, _ in inside]), np.array([v for _, v in inside])
        scale = np.abs(y).max() if inside else 1.0
        assert numbers["mean"] == (pytest.approx(y.mean(), abs=1e-12 * scale) if inside else None)
        expected = pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-9 * scale) if len(inside) > 1 else None
        assert numbers["slope"] == expected
        finite = [v for v in values[:end] if math.isfinite(v)]
        assert numbers["best"] == (min(finite) if finite else None)
        assert numbers["epochs_since_best"] == (end - 1 - values.index(min(finite)) if finite else None)


def test_a_metric_that_is_not_measured_in_every_epoch_keeps_its_place_in_the_window() -> None:
    results = [epoch_result(1, MASE=4.0), epoch_result(2), epoch_result(3, MASE=2.0), epoch_result(4)]
    callback = MetricStatistics(window=3)
    records = [action.values for action in show(callback, results) if isinstance(action, Record)]
    assert ["MASE" in record for record in records] == [True, False, True, False]
    assert records[2]["MASE"] == {"mean": 3.0, "slope": -1.0, "best": 2.0, "epochs_since_best": 0}


@pytest.mark.parametrize(
    "metric, values, mode, best",
    [
        ("MASE", [0.9, 0.7, 0.8], "min", 0.7),
        ("accuracy", [0.9, 0.7, 0.8], "max", 0.9),
        ("coverage_80", [0.9, 0.81, 0.7], None, 0.81),
        ("coverage_80", [0.9, 0.81, 0.7], "max", 0.9),
    ],
)
def test_the_best_is_what_the_settings_call_better(
    metric: str, values: list[float], mode: str | None, best: float
) -> None:
    chosen = {} if mode is None else {"checkpoints": {"metric": metric, "mode": mode}}
    callback = build_callbacks(TrainingSettings.model_validate(chosen))["statistics"]
    assert isinstance(callback, MetricStatistics)
    results = [epoch_result(epoch, **{metric: value}) for epoch, value in enumerate(values, start=1)]
    assert _statistics(callback, results, metric)[-1]["best"] == best


def test_every_warning_has_its_own_name() -> None:
    settings = TrendSettings(window=2, overfitting_epochs=2, plateau_epochs=2, oscillation_epochs=3)
    troubles = [
        (Overfitting(settings), _both(_falling(5), [1.0, 2.0, 3.0, 4.0, 5.0])),
        (LossPlateau(settings), epochs([1.0] * 5)),
        (Divergence(settings), training_epochs([1.0, 9.0])),
        (Oscillation(settings), training_epochs([1.0, 2.0] * 4)),
    ]
    warnings = [show(callback, course) for callback, course in troubles]
    warnings.append(show(GradientExplosion(settings), _norms([1.0] * 20 + [99.0])))
    assert [w.name for w in itertools.chain(*warnings) if isinstance(w, Warn)] == [
        "overfitting",
        "loss_plateau",
        "divergence",
        "oscillation",
        "gradient_explosion",
    ]
