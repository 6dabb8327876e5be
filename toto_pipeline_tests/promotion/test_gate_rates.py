"""How often the gate errs, counted on simulated evaluations whose truth is known, and what always holds.

docs/promotion.md states these rates; `python -m benchmarks gate` counts them with more trials.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.score_simulation import World, promotions, score_table, simulate
from toto_pipeline.promotion.gate import Comparison, decide
from toto_pipeline.settings.promotion import PromotionSettings
from toto_pipeline_tests.promotion.score_tables import errors, noisy, rule

STATED = 0.05
"""1 - confidence, by default."""
SURE = 0.999
"""That a gate which errs at the stated rate passes these tests; the seeds are fixed, so that it passes always."""


def promoted(world: World, gain: float, trials: int, **policy: object) -> int:
    demands = PromotionSettings.model_validate({"resamples": 400, **policy})
    return promotions(world, gain, trials, lambda scores: decide(scores, demands).promote)


def at_most(rate: float, trials: int) -> int:
    return int(binom.ppf(SURE, trials, rate))


def at_least(rate: float, trials: int) -> int:
    return int(binom.ppf(1 - SURE, trials, rate))


@pytest.mark.parametrize(
    "world",
    [
        World(series=26, windows=5),
        pytest.param(World(series=12, windows=5, tail=1.5), marks=pytest.mark.slow),
        pytest.param(World(series=30, windows=5, tail=2.5), marks=pytest.mark.slow),
        pytest.param(World(series=100, windows=10, tail=1.5), marks=pytest.mark.slow),
        pytest.param(World(series=1, windows=60, per_series=0), marks=pytest.mark.slow),
    ],
    ids=lambda world: f"{world.series}x{world.windows}, tail {world.tail}",
)
def test_without_a_true_difference_a_strict_gate_promotes_at_no_more_than_the_stated_rate(world: World) -> None:
    trials = 800
    assert promoted(world, 0.0, trials, require="better") <= at_most(STATED, trials)


@pytest.mark.slow
def test_the_stated_rate_follows_the_confidence() -> None:
    assert promoted(World(series=26, windows=5), 0.0, 800, require="better", confidence=0.8) <= at_most(0.2, 800)
    assert promoted(World(series=26, windows=5), 0.0, 800, require="better", confidence=0.8) >= at_least(0.15, 800)


@pytest.mark.slow
def test_a_true_gain_of_two_percent_is_seen_with_the_stated_power() -> None:
    assert promoted(World(series=300, windows=10), 0.02, 150, require="better") >= at_least(0.85, 150)
    near = World(series=100, windows=10, per_window=0.05, per_series=0.01)
    assert promoted(near, 0.02, 150, require="better") >= at_least(0.95, 150)


@pytest.mark.slow
def test_a_gain_that_is_no_larger_than_the_minimal_gain_is_promoted_at_no_more_than_the_stated_rate() -> None:
    world = World(series=50, windows=5)
    assert promoted(world, 0.05, 800, require="better", minimal_gain=0.05) <= at_most(STATED, 800)


@pytest.mark.slow
def test_a_loss_as_large_as_the_tolerated_one_is_promoted_at_no_more_than_the_stated_rate() -> None:
    """Not exactly so with few or heavy-tailed series: the bootstrap's bounds hold for many."""
    world = World(series=100, windows=10)
    assert promoted(world, -0.02, 800, tolerated_loss=0.02) <= at_most(STATED, 800)


def test_by_default_a_model_that_is_as_good_as_the_champion_replaces_it_every_second_time() -> None:
    count = promoted(World(series=26, windows=5), 0.0, 400)
    assert at_least(0.5, 400) <= count <= at_most(0.5, 400)


@pytest.mark.slow
def test_shocks_that_all_series_share_call_for_windows_as_units() -> None:
    shared = World(series=20, windows=40, shock=0.05, per_series=0)
    trials = 500
    assert promoted(shared, 0.0, trials, require="better", resample="windows") <= at_most(STATED, trials)
    assert promoted(shared, 0.0, trials, require="better", resample="series") > at_most(STATED, trials)


Gains = st.sampled_from([-0.2, -0.02, 0.0, 0.02, 0.2])
Shapes = st.sampled_from([(2, 1), (6, 3), (20, 5), (1, 12), (3, 20)])
Seeds = st.integers(0, 1000)


def against_champion(models: dict[str, np.ndarray], **policy: object) -> Comparison:
    demands = PromotionSettings.model_validate({"resamples": 200, **policy})
    return decide(score_table(models), demands).comparisons[1]


def world_of(shape: tuple[int, int]) -> World:
    return World(series=shape[0], windows=shape[1])


@settings(max_examples=30, deadline=None)
@given(shape=Shapes, gain=Gains, seed=Seeds, factor=st.floats(1e-6, 1e6))
def test_the_unit_of_the_errors_changes_nothing(shape: tuple[int, int], gain: float, seed: int, factor: float) -> None:
    models = simulate(world_of(shape), gain, seed)
    plain = against_champion(models)
    scaled = against_champion({name: factor * errors for name, errors in models.items()})
    for name in ("gain", "low", "high", "chance"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-9), name


@settings(max_examples=30, deadline=None)
@given(shape=Shapes, gain=Gains, seed=Seeds)
def test_swapping_candidate_and_champion_turns_the_gain_round(shape: tuple[int, int], gain: float, seed: int) -> None:
    models = simulate(world_of(shape), gain, seed)
    there = against_champion(models)
    back = against_champion({**models, "candidate": models["champion"], "champion": models["candidate"]})

    def turned(value: float) -> float:
        return 1 - 1 / (1 - value)

    assert back.gain == pytest.approx(turned(there.gain))
    assert (back.gain < 0) == (there.gain > 0)
    assert (back.low, back.high) == pytest.approx((turned(there.high), turned(there.low)))
    assert there.chance + back.chance >= 1


@settings(max_examples=30, deadline=None)
@given(
    shape=Shapes, seed=Seeds, better_by=st.floats(0.001, 0.5), metric=st.sampled_from(["MASE", "SQL", "WQL", "WAPE"])
)
def test_a_candidate_that_is_better_everywhere_is_never_refused_by_the_comparison(
    shape: tuple[int, int], seed: int, better_by: float, metric: str
) -> None:
    champion = errors(*shape, seed=seed)
    lead = better_by * np.random.default_rng(seed).uniform(1, 1.5, shape)
    models = {"candidate": champion * (1 - lead), "champion": champion, "seasonal_naive": champion * 2}
    scores = score_table(models)
    decision = decide(scores, PromotionSettings.model_validate({"resamples": 200, "metric": metric}))
    assert rule(decision, "not_worse_than_champion").passed
    strict = PromotionSettings.model_validate({"resamples": 200, "metric": metric, "require": "better"})
    decision = decide(scores, strict)
    comparison = decision.comparisons[1]
    assert comparison.low > 0
    if 0.5**comparison.draws < 0.02:
        assert rule(decision, "better_than_champion").passed


@settings(max_examples=30, deadline=None)
@given(shape=Shapes, gain=Gains, seed=Seeds, order=Seeds)
def test_the_order_of_the_rows_changes_nothing_and_seeds_reproduce(
    shape: tuple[int, int], gain: float, seed: int, order: int
) -> None:
    scores = score_table(simulate(world_of(shape), gain, seed))
    policy = PromotionSettings(resamples=200)
    decision = decide(scores, policy)
    shuffled = scores.take(pa.array(np.random.default_rng(order).permutation(len(scores))))
    again = decide(shuffled, policy)
    assert repr(again) == repr(decision)  # bit for bit; NaN bounds are not equal to themselves


def test_another_seed_draws_other_resamples() -> None:
    models = {
        "candidate": noisy(errors(20, 5), 1.0, seed=1),
        "champion": errors(20, 5),
        "seasonal_naive": errors(20, 5),
    }
    first, second = (against_champion(models, seed=seed) for seed in (0, 1))
    assert first.gain == second.gain
    assert (first.low, first.high) != (second.low, second.high)
