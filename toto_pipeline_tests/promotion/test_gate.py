"""The gate: what passes, what does not, in which words, and how often it errs."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.config import build
from toto_pipeline.errors import ConfigError
from toto_pipeline.evaluation.metrics import aggregate
from toto_pipeline.promotion.gate import decide, widened_alpha
from toto_pipeline.settings.promotion import PromotionSettings
from toto_pipeline_tests.promotion.score_tables import errors, noisy, rule, table

POLICY = PromotionSettings(resamples=500)
BASE = errors(30, 5)


def scores(candidate: float, champion: float | None = None, baseline: float = 1.2, *, seed: int = 1) -> pa.Table:
    models = {"candidate": noisy(BASE, candidate, seed=seed), "seasonal_naive": noisy(BASE, baseline, seed=seed + 1)}
    if champion is not None:
        models["champion"] = noisy(BASE, champion, seed=seed + 2)
    return table(models)


def test_a_better_model_is_promoted_and_the_reasons_read_well() -> None:
    decision = decide(scores(0.9, champion=1.0), POLICY)
    assert decision.promote
    assert decision.refusals == ()
    assert [rule.name for rule in decision.rules] == [
        "same_windows", "finite_scores", "beats_baseline", "not_worse_than_champion",
        "coverage", "training_finished", "weights_finite",
    ]  # fmt: skip
    assert rule(decision, "same_windows").text == (
        "All models forecast the same 150 windows (30 series, 5 points in time)."
    )
    comparison = decision.comparisons[1]
    assert 0 < comparison.low < comparison.gain < comparison.high
    assert rule(decision, "not_worse_than_champion").text == (
        f"SQL {comparison.candidate_score:.3f} against the champion's {comparison.reference_score:.3f}: "
        f"{100 * comparison.gain:.1f} % better (90 % interval {100 * comparison.low:.1f} % better to "
        f"{100 * comparison.high:.1f} % better)."
    )


def test_scores_in_the_text_are_the_aggregates() -> None:
    ragged = scores(0.9, champion=1.0)
    ragged = ragged.filter(pc.not_equal(pc.binary_join_element_wise(
        ragged["series"].cast("string"), ragged["window"].cast("string"), "/"), "s3/4"))  # fmt: skip
    for metric in ("MASE", "SQL", "WQL", "WAPE"):
        decision = decide(ragged, POLICY.model_copy(update={"metric": metric}))
        comparison = decision.comparisons[1]
        assert comparison.candidate_score == pytest.approx(aggregate(ragged)["candidate"][metric])
        assert comparison.reference_score == pytest.approx(aggregate(ragged)["champion"][metric])


def test_a_worse_model_is_refused_with_the_demand() -> None:
    decision = decide(scores(1.1, champion=1.0), POLICY)
    assert not decision.promote
    (text,) = decision.refusals
    assert "worse" in text
    assert text.endswith("It must be at least as good on average (promotion.tolerated_loss is 0).")


def test_equal_scores_pass_without_a_tolerated_loss() -> None:
    same = noisy(BASE, 1.0, seed=3)
    decision = decide(table({"candidate": same, "seasonal_naive": BASE * 1.5, "champion": same}), POLICY)
    assert decision.promote
    assert decision.comparisons[1].gain == 0
    assert rule(decision, "not_worse_than_champion").text.endswith("equal on every window.")


def test_a_strict_policy_wants_proof_that_the_champion_is_beaten() -> None:
    strict = POLICY.model_copy(update={"require": "better"})
    decision = decide(scores(0.9, champion=1.0), strict)
    assert decision.promote
    assert rule(decision, "better_than_champion").passed
    swing = np.where(np.arange(30) % 2, 0.2, -0.2)[:, None]
    champion = np.ones((30, 5))
    models = {"candidate": champion * 0.995 + swing, "seasonal_naive": champion * 1.5, "champion": champion}
    decision = decide(table(models), strict)
    assert decision.comparisons[1].gain > 0
    assert not decision.promote
    assert "It must be better with 95 % confidence (promotion.require is better)." in decision.refusals[0]
    assert decide(table(models), POLICY).promote
    same = noisy(BASE, 1.0, seed=3)
    equal = table({"candidate": same, "seasonal_naive": BASE * 1.5, "champion": same})
    assert not decide(equal, strict).promote
    assert decide(scores(0.9), strict).promote  # there is no champion yet


def test_a_minimal_gain_must_be_proven_whole() -> None:
    champion = noisy(np.ones((30, 5)), 1.0, seed=1)
    models = {"candidate": champion * 0.95, "seasonal_naive": champion * 1.5, "champion": champion}
    strict = POLICY.model_copy(update={"require": "better"})
    assert decide(table(models), strict.model_copy(update={"minimal_gain": 0.04})).promote
    decision = decide(table(models), strict.model_copy(update={"minimal_gain": 0.06}))
    assert decision.refusals[0].endswith("more than 6.0 % better with 95 % confidence (promotion.minimal_gain).")


def test_a_gain_that_is_just_the_minimal_one_is_no_proof() -> None:
    champion = errors(30, 5)
    models = {"candidate": champion * 0.9, "seasonal_naive": champion * 1.5, "champion": champion}
    strict = POLICY.model_copy(update={"require": "better", "minimal_gain": 0.1})
    decision = decide(table(models), strict)
    assert decision.comparisons[1].margin == 0.1
    assert decision.comparisons[1].chance == 1
    assert not decision.promote
    assert decide(table(models), strict.model_copy(update={"minimal_gain": 0.0})).comparisons[1].chance < 0.01


@pytest.mark.parametrize("minimal_gain", [0.0, 0.04])
def test_a_strict_policy_wants_both_proofs(minimal_gain: float) -> None:
    """Bounds and chance nearly always agree; where they do not, the model is refused."""
    strict = POLICY.model_copy(update={"require": "better", "minimal_gain": minimal_gain, "resamples": 200})
    seen = set()
    for seed in range(400):
        base = errors(8, 2, seed=seed)
        candidate = noisy(base, 0.95 - minimal_gain, seed=1000 + seed)
        models = {"candidate": candidate, "seasonal_naive": base * 3, "champion": noisy(base, 1.0, seed=2000 + seed)}
        decision = decide(table(models), strict)
        comparison = decision.comparisons[1]
        proofs = comparison.low > minimal_gain, comparison.chance <= 0.05
        assert rule(decision, "better_than_champion").passed == all(proofs)
        seen.add(proofs)
    assert seen == {(True, True), (True, False), (False, True), (False, False)}


def test_a_few_independent_blocks_cannot_prove_a_gain() -> None:
    strict = POLICY.model_copy(update={"require": "better"})
    champion = np.ones((1, 5))
    models = {"candidate": champion * 0.5, "seasonal_naive": champion * 1.5, "champion": champion}
    decision = decide(table(models), strict)
    assert decision.comparisons[1].block == 2
    assert "3 independent blocks of windows can prove nothing" in rule(decision, "better_than_champion").text
    by_series = {name: np.repeat(errors, 5, axis=0) for name, errors in models.items()}
    assert decide(table(by_series), strict).promote


def test_demands_that_exclude_each_other_are_refused_when_settings_are_read() -> None:
    for values, expected in (
        ({"minimal_gain": 0.1}, "minimal_gain is 0.1, which needs require=better"),
        ({"require": "better", "tolerated_loss": 0.1}, "tolerated_loss is 0.1, which needs require=not_worse"),
        ({"require": "better", "tolerated_loss": 0.1, "minimal_gain": 0.1}, "tolerated_loss is 0.1"),
        ({"min_coverage": 0.9, "max_coverage": 0.8}, "min_coverage (0.9) must not be above max_coverage (0.8)"),
    ):
        with pytest.raises(ConfigError) as caught:
            build(PromotionSettings, values, section="promotion")
        assert str(caught.value).startswith("promotion")
        assert expected in str(caught.value)


def test_a_loss_passes_only_if_it_is_proven_to_be_tolerable() -> None:
    champion = np.ones((30, 5))
    models = {"candidate": champion * 1.01, "seasonal_naive": champion * 1.5, "champion": champion}
    assert not decide(table(models), POLICY).promote
    tolerant = POLICY.model_copy(update={"tolerated_loss": 0.02})
    decision = decide(table(models), tolerant)
    assert decision.promote
    assert rule(decision, "not_worse_than_champion").text.endswith("less than the tolerated loss of 2.0 %.")
    swing = np.where(np.arange(30) % 2, 0.3, -0.3)[:, None]
    noisier = {**models, "candidate": champion * 1.01 + swing}
    assert not decide(table(noisier), tolerant).promote


def test_the_baseline_must_be_beaten_with_confidence() -> None:
    decision = decide(scores(1.0, baseline=1.0), POLICY)
    assert not decision.promote
    assert "It must be better with 95 % confidence." in rule(decision, "beats_baseline").text
    assert rule(decision, "not_worse_than_champion").text == "There is no champion yet."
    assert decide(scores(1.0, baseline=1.2), POLICY).promote


@pytest.mark.parametrize("model", ["candidate", "champion", "seasonal_naive"])
def test_other_windows_are_not_compared(model: str) -> None:
    whole = scores(0.5, champion=1.0)
    rows = pc.and_(pc.equal(whole["model"].cast("string"), model), pc.equal(whole["window"], 4))
    decision = decide(whole.filter(pc.invert(rows)), POLICY)
    assert not decision.promote
    assert not rule(decision, "same_windows").passed
    assert rule(decision, "beats_baseline").text == "Not compared, because the scores cannot be trusted."


def test_other_actual_values_under_the_same_names_are_not_compared() -> None:
    models = {"candidate": BASE, "seasonal_naive": 2 * BASE}
    champion = table({"champion": BASE}, steps=9.0)
    decision = decide(pa.concat_tables([table(models), champion]).unify_dictionaries(), POLICY)
    assert not rule(decision, "same_windows").passed


def test_windows_scored_twice_are_refused() -> None:
    twice = scores(0.5)
    assert not rule(decide(pa.concat_tables([twice, twice]), POLICY), "same_windows").passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(value: float) -> None:
    broken = noisy(BASE, 0.5, seed=1)
    broken[3, 2] = value
    decision = decide(table({"candidate": broken, "seasonal_naive": BASE}), POLICY)
    assert not decision.promote
    assert "candidate" in rule(decision, "finite_scores").text


def test_metrics_undefined_by_the_data_are_left_out() -> None:
    whole = scores(0.8, champion=1.0)
    flat = pc.equal(whole["series"].cast("string"), "s0")
    for name in ("MASE", "SQL", "interval_width"):
        place = whole.schema.get_field_index(name)
        whole = whole.set_column(place, name, pc.if_else(flat, math.nan, whole[name]))
    decision = decide(whole, POLICY)
    assert decision.promote
    assert decision.comparisons[0].candidate_score == pytest.approx(aggregate(whole)["candidate"]["SQL"])


def test_a_series_that_cannot_be_scored_is_not_drawn() -> None:
    """Of four series one is constant: of 2000 resamples some would hold only that, and have no score."""
    base = errors(4, 4)
    base[0] = np.nan
    scores = table({"candidate": 0.5 * base, "seasonal_naive": base})
    for name in ("WQL_numerator", "WAPE_numerator"):
        filled = pc.fill_null(pc.if_else(pc.is_nan(scores[name]), 0.0, scores[name]), 0.0)
        scores = scores.set_column(scores.schema.get_field_index(name), name, filled)
    decision = decide(scores, PromotionSettings(metric="MASE", resample="series"))
    (comparison,) = decision.comparisons
    assert comparison.units == 3
    assert (comparison.low, comparison.gain, comparison.high) == pytest.approx((0.5, 0.5, 0.5))
    assert decision.promote


def test_an_empty_table_and_a_missing_baseline_are_refused() -> None:
    assert not decide(scores(0.5).slice(0, 0), POLICY).promote
    decision = decide(table({"candidate": BASE}), POLICY)
    assert "seasonal_naive" in rule(decision, "same_windows").text


def test_one_long_series_is_judged_by_its_windows_in_time() -> None:
    base = errors(1, 30)
    models = {"candidate": noisy(base, 0.8, seed=1), "seasonal_naive": base, "champion": noisy(base, 1.0, seed=2)}
    decision = decide(table(models), POLICY)
    assert decision.promote
    comparison = decision.comparisons[0]
    assert (comparison.unit, comparison.units, comparison.block) == ("windows", 30, 3)


def test_what_is_drawn_and_in_which_blocks_can_be_set() -> None:
    base = errors(30, 20)
    models = {"candidate": noisy(base, 0.8, seed=1), "seasonal_naive": base}

    def drawn(**settings: Any) -> tuple[str, int, int]:
        comparison = decide(table(models), POLICY.model_copy(update=settings)).comparisons[0]
        return comparison.unit, comparison.units, comparison.block

    assert drawn() == ("series", 30, 1)
    assert drawn(resample="windows") == ("windows", 20, 3)
    assert drawn(resample="windows", block_windows=5) == ("windows", 20, 5)
    assert drawn(resample="windows", block_windows=50) == ("windows", 20, 20)


def test_every_resample_has_as_many_windows_as_there_are() -> None:
    champion = np.ones((1, 10))
    candidate = champion.copy()
    candidate[0, :2] = 0.5, 1.5
    models = {"candidate": candidate, "seasonal_naive": champion * 2, "champion": champion}
    comparison = decide(table(models), POLICY.model_copy(update={"block_windows": 9})).comparisons[1]
    # nine neighbours and one more: at worst all but the best window and the worst twice
    assert (comparison.low, comparison.high) == pytest.approx((-0.1, 0.1))


def test_blocks_widen_the_interval_of_windows_that_resemble_their_neighbours() -> None:
    swing = np.repeat(np.tile([0.7, 1.3], 6), 10)[None]
    models = {"candidate": swing, "seasonal_naive": np.full_like(swing, 2.0), "champion": np.ones_like(swing)}

    def width(block: int) -> float:
        comparison = decide(table(models), POLICY.model_copy(update={"block_windows": block})).comparisons[1]
        return comparison.high - comparison.low

    assert width(10) > 2 * width(1)


def test_units_beyond_ten_thousand_are_tied_together_and_change_little() -> None:
    ones = np.ones((12_000, 1))
    models = {"candidate": noisy(ones, 1, seed=1), "seasonal_naive": ones * 1.2, "champion": noisy(ones, 1, seed=2)}
    comparison = decide(table(models), POLICY).comparisons[1]
    assert (comparison.units, comparison.block) == (12_000, 1)
    assert comparison.gain == pytest.approx(1 - models["candidate"].sum() / models["champion"].sum())
    expected = 2 * 1.645 * 0.1 * math.sqrt(2 / 12_000)
    assert comparison.high - comparison.low == pytest.approx(expected, rel=0.15)


def test_a_single_window_proves_nothing() -> None:
    decision = decide(table({"candidate": np.full((1, 1), 0.1), "seasonal_naive": np.ones((1, 1))}), POLICY)
    assert not decision.promote
    assert "raise preparation.test_windows" in rule(decision, "beats_baseline").text


def test_a_faultless_reference_is_not_beaten() -> None:
    zero = np.zeros((10, 3))
    models = {"candidate": zero + 0.1, "seasonal_naive": zero + 1, "champion": zero}
    decision = decide(table(models), POLICY)
    assert not decision.promote
    assert "infinitely worse" in rule(decision, "not_worse_than_champion").text
    assert decide(table({**models, "candidate": zero}), POLICY).promote


def test_the_same_scores_give_the_same_decision_in_any_order_and_as_json() -> None:
    whole = scores(0.97, champion=1.0)
    shuffled = whole.take(np.random.default_rng(0).permutation(len(whole)))
    decision = decide(whole, POLICY)
    again = decide(shuffled, POLICY)
    assert again == decision
    described = json.loads(json.dumps(decision.describe()))
    assert described["promote"] is decision.promote
    assert set(described["rules"][0]) == {"name", "passed", "text"}


def test_few_units_widen_the_interval() -> None:
    assert widened_alpha(0.95, 10_000) == pytest.approx(0.05, abs=1e-3)
    assert widened_alpha(0.95, 26) == pytest.approx(0.0407, abs=1e-3)
    assert widened_alpha(0.95, 5) < 0.01


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.5, 2.0), tolerated=st.floats(0.0, 0.2), seed=st.integers(0, 5))
def test_never_worse_on_average_beyond_what_is_tolerated(factor: float, tolerated: float, seed: int) -> None:
    policy = PromotionSettings(resamples=200, tolerated_loss=tolerated)
    decision = decide(scores(factor, champion=1.0, baseline=3.0, seed=seed), policy)
    gain = decision.comparisons[1].gain
    if decision.promote:
        assert gain >= -tolerated
    if gain >= 0 and rule(decision, "beats_baseline").passed:
        assert decision.promote


def test_error_rates() -> None:
    """With no difference the baseline is 'beaten' at no more than 1 - confidence; a clear gain nearly always passes."""
    policy = PromotionSettings(resamples=300)

    def share(series: int, windows: int, factor: float, trials: int = 200) -> float:
        passed = 0
        for seed in range(trials):
            base = errors(series, windows, seed=seed)
            models = {
                "candidate": noisy(base, factor, seed=1000 + seed),
                "seasonal_naive": noisy(base, 1.0, seed=5000 + seed),
            }
            passed += decide(table(models), policy).promote
        return passed / trials

    margin = 3 * math.sqrt(0.05 * 0.95 / 200)
    assert share(26, 5, 1.0) <= 0.05 + margin
    assert share(1, 10, 1.0) <= 0.05 + margin
    assert share(26, 5, 0.95) >= 0.9
