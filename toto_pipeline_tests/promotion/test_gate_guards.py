"""What a new model must hold beside its average score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from toto_pipeline.events.log import EventWriter, read_events
from toto_pipeline.promotion.facts import nonfinite_weights, training_facts
from toto_pipeline.promotion.gate import Decision, Facts, decide
from toto_pipeline.settings.promotion import PromotionSettings
from toto_pipeline_tests.promotion.score_tables import rule, table

CHAMPION = np.ones((8, 5))
MODELS = {"candidate": CHAMPION * 0.9, "seasonal_naive": CHAMPION * 1.5, "champion": CHAMPION}
SOUND = Facts(
    outcome="completed",
    steps=100,
    skipped_steps=0,
    bad_weights=(),
    model_bytes=1000,
    seconds={"candidate": 0.02, "champion": 0.01},
    has_champion=True,
    mended=(),
)


def judge(scores: pa.Table | None = None, facts: Facts = SOUND, **settings: Any) -> Decision:
    policy = PromotionSettings(resamples=200, **settings)
    return decide(table(MODELS) if scores is None else scores, policy, facts)


def refused_by(decision: Decision, name: str) -> str:
    """The text of the one rule that refuses."""
    assert not decision.promote
    assert [each.name for each in decision.rules if not each.passed] == [name]
    return rule(decision, name).text


def changed(**values: Any) -> Facts:
    return Facts(**{**vars(SOUND), **values})


def with_coverage(share: float) -> pa.Table:
    scores = table(MODELS)
    place = scores.schema.get_field_index("coverage_80")
    return scores.set_column(place, "coverage_80", pa.array(np.full(len(scores), share)))


def with_candidate(errors: np.ndarray) -> pa.Table:
    return table({**MODELS, "candidate": errors})


def test_a_sound_model_is_promoted_and_every_guard_that_is_on_is_named() -> None:
    decision = judge()
    assert decision.promote
    assert [each.name for each in decision.rules[4:]] == ["coverage", "training_finished", "weights_finite"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.49])
def test_intervals_that_promise_too_much_are_refused(share: float) -> None:
    assert "fewer than 50.0 % (promotion.min_coverage)" in refused_by(judge(with_coverage(share)), "coverage")


def test_coverage_is_held_to_the_bounds_that_are_set() -> None:
    assert judge(with_coverage(1.0)).promote
    text = refused_by(judge(with_coverage(0.99), max_coverage=0.98), "coverage")
    assert text.startswith("99.0 % of the actual values are inside the 80 % interval, more than 98.0 %")
    assert judge(with_coverage(0.1), min_coverage=0.0).promote
    assert judge(with_coverage(0.5)).promote


def test_coverage_is_an_average_over_steps_not_windows() -> None:
    few, many = table(MODELS, steps=10.0), table(MODELS, steps=1000.0)
    place = few.schema.get_field_index("coverage_80")
    few = few.set_column(place, "coverage_80", pa.array(np.full(len(few), 0.1)))
    later = many.schema.get_field_index("window")
    many = many.set_column(later, "window", pa.array(many.column("window").to_numpy() + 5))
    decision = judge(pa.concat_tables([few, many]).unify_dictionaries())
    assert rule(decision, "coverage").text.startswith("79.3 %")


def test_one_series_that_is_much_worse_refuses_where_that_is_asked_for() -> None:
    errors = MODELS["candidate"].copy()
    errors[3] = 1.25
    assert judge(with_candidate(errors)).promote
    assert judge(with_candidate(errors), max_series_loss=0.26).promote
    text = refused_by(judge(with_candidate(errors), max_series_loss=0.2), "worst_series")
    assert text == "More than 20.0 % worse than the champion (promotion.max_series_loss) on s3 (25.0 % worse)."


def test_a_series_with_few_windows_is_left_out() -> None:
    errors = MODELS["candidate"].copy()
    errors[3] = 1.25
    text = rule(judge(with_candidate(errors), max_series_loss=0.2, min_series_windows=6), "worst_series").text
    assert text.startswith("Not judged")
    whole = with_candidate(errors)
    short = np.array([series == "s3" and window > 1 for series, window in zip(
        whole["series"].to_pylist(), whole["window"].to_pylist(), strict=True)])  # fmt: skip
    decision = judge(whole.filter(pa.array(~short)), max_series_loss=0.2)
    assert decision.promote
    assert rule(decision, "worst_series").text.startswith("7 series or groups judged")


def test_groups_of_series_are_judged_together() -> None:
    errors = MODELS["candidate"].copy()
    errors[3] = 1.25
    names = {f"s{n}": f"{'left' if n % 2 else 'right'}/{n}" for n in range(8)}
    scores = with_candidate(errors)
    renamed = pa.array([names[name] for name in scores["series"].to_pylist()]).dictionary_encode()
    scores = scores.set_column(scores.schema.get_field_index("series"), "series", renamed)
    assert "on left/3 (25.0 % worse)." in refused_by(judge(scores, max_series_loss=0.2), "worst_series")
    decision = judge(scores, max_series_loss=0.2, series_group_separator="/")
    assert decision.promote
    assert rule(decision, "worst_series").text == "2 series or groups judged; the worst is left: 1.2 % better."


@pytest.mark.parametrize("outcome", ["failed", "canceled", "unfinished"])
def test_a_training_that_did_not_end_well_is_refused(outcome: str) -> None:
    text = refused_by(judge(facts=changed(outcome=outcome, reason="out of memory")), "training_finished")
    assert f"({outcome}: out of memory)" in text
    assert judge(facts=changed(outcome="stopped")).promote


def test_too_many_skipped_steps_refuse() -> None:
    assert judge(facts=changed(skipped_steps=10)).promote
    text = refused_by(judge(facts=changed(skipped_steps=11)), "training_finished")
    assert "11 of 100 steps were skipped" in text
    assert "promotion.max_skipped_share" in text
    assert judge(facts=changed(skipped_steps=11), max_skipped_share=0.2).promote


def test_weights_that_are_not_finite_refuse() -> None:
    text = refused_by(judge(facts=changed(bad_weights=("head.bias", "head.weight"))), "weights_finite")
    assert text == "There are NaN or infinite weights in head.bias, head.weight."


def test_limits_of_time_and_size() -> None:
    assert judge(max_forecast_seconds=0.02, max_latency_ratio=2.0, max_model_bytes=1000).promote
    assert "longer than 0.01 s" in refused_by(judge(max_forecast_seconds=0.01), "forecast_seconds")
    assert "more than 1.5 times" in refused_by(judge(max_latency_ratio=1.5), "latency_ratio")
    assert "more than 999 (promotion.max_model_bytes)" in refused_by(judge(max_model_bytes=999), "model_size")


def test_the_first_model_has_no_champion_to_be_slower_than() -> None:
    first = table({name: MODELS[name] for name in ("candidate", "seasonal_naive")})
    facts = changed(seconds={"candidate": 1.0}, has_champion=False)
    assert judge(first, facts, max_latency_ratio=1.0, max_series_loss=0.0).promote


def test_mended_data_refuses_where_clean_data_is_asked_for() -> None:
    mended = changed(mended=("a in x.csv: 3 rows merged.", "b was left out."))
    assert judge(facts=mended).promote
    text = refused_by(judge(facts=mended, require_clean_data=True), "data_checks")
    assert text.endswith("a in x.csv: 3 rows merged.; b was left out.")
    assert judge(require_clean_data=True).promote


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("forecast_seconds", {"max_forecast_seconds": 9.0}),
        ("latency_ratio", {"max_latency_ratio": 9.0}),
        ("model_size", {"max_model_bytes": 10**9}),
        ("data_checks", {"require_clean_data": True}),
    ],
)
def test_a_limit_that_cannot_be_judged_refuses_and_names_its_setting(name: str, settings: dict[str, Any]) -> None:
    text = refused_by(judge(facts=Facts(has_champion=True), **settings), name)
    assert text.startswith("Cannot be judged")
    assert f"promotion.{next(iter(settings))}" in text


def test_what_is_not_known_and_nobody_asked_for_is_not_judged_and_says_so() -> None:
    decision = judge(facts=Facts())
    assert decision.promote
    assert rule(decision, "training_finished").text == "Not judged: how the training ended is not known."
    assert rule(decision, "weights_finite").text == "Not judged: whether its weights are finite is not known."


def test_fine_tuning_must_have_helped_where_that_is_asked_for() -> None:
    helped = table({**MODELS, "zero_shot": CHAMPION})
    assert judge(helped, require_fine_tuning_gain=True).promote
    useless = table({**MODELS, "zero_shot": CHAMPION * 0.9})
    assert judge(useless).promote
    text = refused_by(judge(useless, require_fine_tuning_gain=True), "fine_tuning_helped")
    assert "against the starting weights' 0.900: equal on every window." in text
    decision = judge(require_fine_tuning_gain=True)
    assert decision.promote
    assert "trained from scratch" in rule(decision, "fine_tuning_helped").text


def test_models_that_the_policy_does_not_ask_for_are_not_looked_at() -> None:
    drift = CHAMPION.copy()
    drift[0, 0] = np.inf
    assert judge(table({**MODELS, "drift": drift, "zero_shot": drift})).promote
    assert not judge(table({**MODELS, "zero_shot": drift}), require_fine_tuning_gain=True).promote


def test_guards_are_judged_even_where_the_scores_cannot_be() -> None:
    decision = judge(table({"candidate": CHAMPION}), changed(outcome="failed"))
    broken = {each.name for each in decision.rules if not each.passed}
    assert {"same_windows", "training_finished"} <= broken


def test_the_end_of_a_training_is_read_from_its_log(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as log:
        log.append("run_started")
        log.append("epoch", step=10, epoch=1, skipped_steps=4)
        log.append("run_ended", outcome="failed", reason="the disk was full")
    assert training_facts(read_events(tmp_path)) == {
        "outcome": "failed", "reason": "the disk was full", "steps": 10, "skipped_steps": 4,
    }  # fmt: skip
    with EventWriter(tmp_path, attempt=2) as log:
        log.append("run_started")
        log.append("epoch", step=10, epoch=1, skipped_steps=0)
        log.append("epoch", step=20, epoch=2, skipped_steps=1)
    facts = training_facts(read_events(tmp_path))
    assert (facts["outcome"], facts["steps"], facts["skipped_steps"]) == ("unfinished", 20, 1)
    with EventWriter(tmp_path, attempt=2) as log:
        log.append("run_ended", outcome="stopped", reason=None)
    assert training_facts(read_events(tmp_path))["outcome"] == "stopped"
    assert training_facts([]) == {"outcome": None, "reason": None, "steps": None, "skipped_steps": None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_read_from_the_files_whatever_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"a": torch.zeros(3, dtype=dtype), "b": torch.ones(2, 2, dtype=dtype), "count": torch.tensor([3])}
    assert nonfinite_weights(tmp_path) is None
    save_file(weights, tmp_path / "model.safetensors")
    assert nonfinite_weights(tmp_path) == ()
    weights["a"][1] = float("nan")
    weights["b"][0, 1] = float("inf")
    save_file(weights, tmp_path / "model.safetensors")
    assert nonfinite_weights(tmp_path) == ("a", "b")
