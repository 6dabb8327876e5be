"""How long the promotion gate takes for a million paired windows, and how often it errs.

The rates are counted on simulated evaluations whose truth is known (`score_simulation`). Limits are the stated rates
with what chance adds in so many trials: a gate that errs at the stated rate stays within them with 99.9 %.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.score_simulation import World, promotions, score_table
from toto_pipeline.promotion.gate import decide
from toto_pipeline.settings.promotion import PromotionSettings

LIMIT_SECONDS = 10.0
SURE = 0.999
STRICT: dict[str, Any] = {"require": "better"}
PAIRS = {"100 000 series of 10 windows": (100_000, 10), "1 000 series of 1 000 windows": (1_000, 1_000),
         "10 series of 100 000 windows": (10, 100_000)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """most, least: bounds of the rate of promotion that is stated, where one is."""

    name: str
    world: World
    gain: float = 0.0
    policy: dict[str, Any]
    trials: int = 2000
    most: float | None = None
    least: float | None = None


NEAR: dict[str, Any] = {"per_window": 0.05, "per_series": 0.01}
CASES = (
    Case(name="strict, no difference, 26 x 5", world=World(series=26, windows=5), policy=STRICT, most=0.05),
    Case(name="strict, no difference, 100 x 10", world=World(series=100, windows=10), policy=STRICT, most=0.05),
    Case(name="strict, no difference, 26 x 5, unequal series", world=World(series=26, windows=5, tail=1.5),
         policy=STRICT, most=0.05),
    Case(name="strict, no difference, 1 x 60", world=World(series=1, windows=60, per_series=0), policy=STRICT,
         most=0.05),
    Case(name="strict, no difference, 26 x 5, shared shocks of 2.5 %", world=World(series=26, windows=5, shock=0.025),
         policy=STRICT),
    Case(name="strict, no difference, 100 x 10, shared shocks of 2.5 %",
         world=World(series=100, windows=10, shock=0.025), policy=STRICT),
    Case(name="the same, windows drawn", world=World(series=100, windows=10, shock=0.025, per_series=0),
         policy={**STRICT, "resample": "windows"}, most=0.05),
    Case(name="strict, 2 % better, 26 x 5", world=World(series=26, windows=5), gain=0.02, policy=STRICT, trials=500),
    Case(name="strict, 2 % better, 100 x 10", world=World(series=100, windows=10), gain=0.02, policy=STRICT,
         trials=500),
    Case(name="strict, 2 % better, 300 x 10", world=World(series=300, windows=10), gain=0.02, policy=STRICT, trials=500,
         least=0.85),
    Case(name="strict, 5 % better, 100 x 10", world=World(series=100, windows=10), gain=0.05, policy=STRICT, trials=500,
         least=0.95),
    Case(name="strict, 2 % better, 100 x 10, models alike", world=World(series=100, windows=10, **NEAR), gain=0.02,
         policy=STRICT, trials=500, least=0.95),
    Case(name="default, no difference, 26 x 5", world=World(series=26, windows=5), policy={}, trials=1000),
    Case(name="default, 2 % worse, 26 x 5", world=World(series=26, windows=5), gain=-0.02, policy={}, trials=1000),
    Case(name="default, 2 % worse, 100 x 10", world=World(series=100, windows=10), gain=-0.02, policy={}, trials=1000),
    Case(name="2 % tolerated, 2 % worse, 100 x 10", world=World(series=100, windows=10), gain=-0.02,
         policy={"tolerated_loss": 0.02}, most=0.05),
    Case(name="2 % tolerated, 2 % worse, 26 x 5, unequal series", world=World(series=26, windows=5, tail=1.5),
         gain=-0.02, policy={"tolerated_loss": 0.02}),
)  # fmt: skip


def run(quick: bool) -> list[dict[str, Any]]:
    return [*map(_time, list(PAIRS)[:1] if quick else PAIRS), *(_rate(case, quick) for case in CASES)]


def _time(name: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    models = ("candidate", "champion", "seasonal_naive")
    scores = score_table({model: random.gamma(4, 0.25, PAIRS[name]) for model in models})
    started = time.perf_counter()
    decide(scores, PromotionSettings())
    seconds = time.perf_counter() - started
    return {
        "name": f"gate, {name}",
        "value": seconds,
        "unit": "s",
        "limit": f"< {LIMIT_SECONDS:g}",
        "ok": seconds < LIMIT_SECONDS,
    }


def _rate(case: Case, quick: bool) -> dict[str, Any]:
    from scipy.stats import binom

    trials = case.trials // 10 if quick else case.trials
    policy = PromotionSettings.model_validate({**case.policy, "resamples": 500})
    count = promotions(case.world, case.gain, trials, lambda scores: decide(scores, policy).promote)
    result = {"name": f"promoted: {case.name}", "value": count / trials, "unit": "share", "limit": None, "ok": None}
    if case.most is not None:
        return {
            **result,
            "limit": f"<= {case.most:g}, and what counting adds",
            "ok": bool(count <= binom.ppf(SURE, trials, case.most)),
        }
    if case.least is not None:
        return {**result, "limit": f">= {case.least:g}", "ok": bool(count >= binom.ppf(1 - SURE, trials, case.least))}
    return result
