"""Whether a new model replaces the champion: a pure function of a score table, a policy and facts to a decision.

    same_windows             every model has a score for the same series, variates, windows and actual values
    finite_scores            every score is a finite number
    beats_baseline           the gain over the seasonal naive is above 0 with the policy's confidence
    not_worse_than_champion  (require: not_worse) the gain over the champion is at least 0; or, with the policy's
                             confidence, not below -tolerated_loss
    better_than_champion     (require: better) the gain over the champion is above minimal_gain with the policy's
                             confidence, and the chance of such a gain, were the models alike, at most 1 - confidence
    guards                   see `guards`

`evaluation.bootstrap` says how gains, their bounds and chances are found and what they mean; docs/promotion.md has the
rates at which the rules err, as simulated.

With require: not_worse and a tolerated_loss of 0 a model enters if its error is on average no higher than the
champion's on the same windows. Equal scores pass; of two models that are equally good in truth every second newcomer
passes. One that is worse on these windows, by however little, does not. A tolerated loss of 0.02 also lets in a worse
model, if it is proven with the policy's confidence to be less than 2 % worse. With require: better a model that is as
good as the champion enters with a probability of at most 1 - confidence, and equal scores do not pass. There is no
champion to be compared with at the first time: the rule passes and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toto_pipeline.evaluation.bootstrap import (
    Columns,
    Comparison,
    Resampling,
    compare,
    sorted_codes,
    tables_by_model,
    widened_alpha,
)
from toto_pipeline.promotion import guards
from toto_pipeline.promotion.facts import Facts
from toto_pipeline.promotion.rules import BASELINE, CANDIDATE, CHAMPION, ZERO_SHOT, Rule, percent, sentence
from toto_pipeline.settings.promotion import PromotionSettings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Comparison", "Decision", "Facts", "Rule", "decide", "sentence", "widened_alpha"]

BEATS_BASELINE, NOT_WORSE, BETTER = "beats_baseline", "not_worse_than_champion", "better_than_champion"


@dataclass(frozen=True, kw_only=True)
class Decision:
    promote: bool
    rules: tuple[Rule, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def refusals(self) -> tuple[str, ...]:
        return tuple(rule.text for rule in self.rules if not rule.passed)

    def describe(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "promote": self.promote,
            "rules": [vars(rule) for rule in self.rules],
            "comparisons": [vars(comparison) for comparison in self.comparisons],
        }


def decide(scores: pa.Table, policy: PromotionSettings, facts: Facts | None = None) -> Decision:
    """Judge the candidate of an evaluation.

    Args:
        scores: `evaluation.backtest.Evaluation.scores`, with the models candidate, seasonal_naive and, where there are
            such, champion and zero_shot; others are not looked at.
        facts: what is known beside the scores; nothing if left out.
    """
    tables = _judged(tables_by_model(scores), policy)
    integrity = [_same_windows(tables), _finite_scores(tables)]
    beside = list(guards.of_facts(facts or Facts(), policy))
    if not all(rule.passed for rule in integrity):
        return _decision([*integrity, *_not_compared(tables, policy), *beside], [])
    comparisons = _compare(tables, policy)
    found = {comparison.reference: comparison for comparison in comparisons}
    rules = [_beats_baseline(found[BASELINE]), _against_champion(found.get(CHAMPION), policy)]
    if policy.require_fine_tuning_gain:
        rules.append(guards.fine_tuning_helped(found.get(ZERO_SHOT)))
    coverage = guards.coverage(tables[CANDIDATE], policy)
    rules += [] if coverage is None else [coverage]
    if policy.max_series_loss is not None and CHAMPION in tables:
        names = sorted_codes(scores, "series")[0]
        rules.append(
            guards.worst_series(tables[CANDIDATE], tables[CHAMPION], names, policy, allowed=policy.max_series_loss)
        )
    return _decision([*integrity, *rules, *beside], comparisons)


def resampling(policy: PromotionSettings) -> Resampling:
    return Resampling(
        confidence=policy.confidence,
        resamples=policy.resamples,
        seed=policy.seed,
        unit=policy.resample,
        block_windows=policy.block_windows,
    )


def _decision(rules: list[Rule], comparisons: list[Comparison]) -> Decision:
    return Decision(promote=all(rule.passed for rule in rules), rules=tuple(rules), comparisons=tuple(comparisons))


def _judged(tables: Mapping[str, Columns], policy: PromotionSettings) -> dict[str, Columns]:
    names = [CANDIDATE, BASELINE, CHAMPION, *([ZERO_SHOT] if policy.require_fine_tuning_gain else [])]
    return {name: tables[name] for name in names if name in tables}


def _compare(tables: Mapping[str, Columns], policy: PromotionSettings) -> list[Comparison]:
    references = {name: tables[name] for name in (BASELINE, CHAMPION, ZERO_SHOT) if name in tables}
    return compare(
        tables[CANDIDATE],
        references,
        metric=policy.metric,
        how=resampling(policy),
        margins={CHAMPION: policy.minimal_gain},
    )


def _same_windows(tables: Mapping[str, Columns]) -> Rule:
    missing = [name for name in (CANDIDATE, BASELINE) if name not in tables]
    if missing:
        return Rule(name="same_windows", passed=False, text=f"There are no scores of {' and '.join(missing)}.")
    own = tables[CANDIDATE]
    if not len(own["steps"]):
        return Rule(name="same_windows", passed=False, text="There is not a single window to compare on.")
    keys = np.stack([own["series"], own["variate"], own["window"]])
    if (np.diff(keys, axis=1) == 0).all(axis=0).any():
        return Rule(name="same_windows", passed=False, text="Some windows are scored twice.")
    for name, table in tables.items():
        if any(
            not np.array_equal(table[column], own[column], equal_nan=True)
            for column in ("series", "variate", "window", "steps", "WAPE_denominator")
        ):
            text = f"The scores of {name} are not of the same series, windows and actual values as the new model's."
            return Rule(name="same_windows", passed=False, text=text)
    names = len(np.unique(own["series"])), len(np.unique(own["window"]))
    text = f"All models forecast the same {len(own['steps'])} windows ({names[0]} series, {names[1]} points in time)."
    return Rule(name="same_windows", passed=True, text=text)


def _finite_scores(tables: Mapping[str, Columns]) -> Rule:
    """A metric may be undefined where the data says so (nothing observed, no scale); then it is so for every model."""
    bad = []
    for name, table in tables.items():
        infinite = any(np.isinf(values).any() for values in table.values())
        losses = any(np.isnan(table[f"{metric}_numerator"]).any() for metric in ("WQL", "WAPE"))
        undefined = any(
            not np.array_equal(np.isnan(table[metric]), np.isnan(tables[CANDIDATE][metric]))
            for metric in ("MASE", "SQL")
            if CANDIDATE in tables and len(table[metric]) == len(tables[CANDIDATE][metric])
        )
        bad += [name] if infinite or losses or undefined else []
    text = f"Scores of {', '.join(bad)} are not finite." if bad else "All scores are finite."
    return Rule(name="finite_scores", passed=not bad, text=text)


def _beats_baseline(comparison: Comparison) -> Rule:
    passed = comparison.low > 0
    text = sentence(comparison)
    if comparison.units < 2:
        text += " One window of one series proves nothing: raise preparation.test_windows."
    elif not passed:
        text += f" It must be better with {percent(comparison.confidence, 0)} confidence."
    return Rule(name=BEATS_BASELINE, passed=bool(passed), text=text)


def _against_champion(comparison: Comparison | None, policy: PromotionSettings) -> Rule:
    if comparison is None:
        return Rule(name=_champion_rule(policy), passed=True, text="There is no champion yet.")
    return _better(comparison, policy) if policy.require == "better" else _not_worse(comparison, policy)


def _champion_rule(policy: PromotionSettings) -> str:
    return BETTER if policy.require == "better" else NOT_WORSE


def _not_worse(comparison: Comparison, policy: PromotionSettings) -> Rule:
    proven = comparison.low >= -policy.tolerated_loss
    passed = comparison.gain >= 0 or (policy.tolerated_loss > 0 and proven)
    text = sentence(comparison)
    if not passed:
        text += f" {_demand(policy)}"
    elif comparison.gain < 0:
        text += f" That is less than the tolerated loss of {percent(policy.tolerated_loss)}."
    return Rule(name=NOT_WORSE, passed=bool(passed), text=text)


def _demand(policy: PromotionSettings) -> str:
    if policy.tolerated_loss == 0:
        return "It must be at least as good on average (promotion.tolerated_loss is 0)."
    return (
        f"It must be at least as good on average, or with {percent(policy.confidence, 0)} confidence less than "
        f"{percent(policy.tolerated_loss)} worse (promotion.tolerated_loss)."
    )


def _better(comparison: Comparison, policy: PromotionSettings) -> Rule:
    alike = comparison.chance > 1 - policy.confidence
    passed = comparison.low > policy.minimal_gain and not alike
    text = sentence(comparison)
    level = percent(policy.confidence, 0)
    if not passed and policy.minimal_gain > 0:
        text += f" It must be more than {percent(policy.minimal_gain)} better with {level} confidence "
        text += "(promotion.minimal_gain)."
    elif not passed:
        text += f" It must be better with {level} confidence (promotion.require is better)."
    if not passed and 0.5**comparison.draws > 1 - policy.confidence:
        text += f" {comparison.draws} independent {'series' if comparison.unit == 'series' else 'blocks of windows'} "
        text += "can prove nothing with such confidence: raise preparation.test_windows, or evaluate on more series."
    elif not passed and alike and comparison.gain > policy.minimal_gain:
        asked = "alike" if policy.minimal_gain == 0 else f"{percent(policy.minimal_gain)} apart"
        text += f" If the two were {asked}, a gain like this would come up by chance in "
        text += f"{percent(comparison.chance)} of cases."
    return Rule(name=BETTER, passed=bool(passed), text=text)


def _not_compared(tables: Mapping[str, Any], policy: PromotionSettings) -> list[Rule]:
    names = [BEATS_BASELINE, *([_champion_rule(policy)] if CHAMPION in tables else [])]
    text = "Not compared, because the scores cannot be trusted."
    return [Rule(name=name, passed=False, text=text) for name in names]
