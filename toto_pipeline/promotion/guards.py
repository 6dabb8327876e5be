"""What a new model must hold to beside its average score; each guard is a pure function to one rule, or none if off.

    coverage            the share of actual values inside the 80 % interval is within the policy's bounds
    worst_series        on no series (or group of series) is it worse than the champion by more than is allowed
    fine_tuning_helped  it is better than the weights that its training started from
    training_finished   its training came to its end, and skipped few steps
    weights_finite      no weight is NaN or infinite
    data_checks         nothing had to be mended in, or left out of, the data that it was trained on
    forecast_seconds    a forecast takes no longer than the policy allows
    latency_ratio       nor longer than so many of the champion's
    not_rolled_back     its weights were not in production before and rolled back
    model_size          its files are no larger than the policy allows

coverage, training_finished and weights_finite are judged by default; the others where the policy asks for them. What is
not known is not judged, and the rule says so; only a limit that somebody set refuses what cannot be held against it.

`worst_series` compares averages over the windows of a series without any allowance for chance: with few windows even
two models of the same quality differ on some series by much.

Shapes: G groups, P parts (candidate, champion, denominator), C cells (window, variate).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from toto_pipeline.evaluation.bootstrap import (
    ROUNDING,
    Columns,
    Comparison,
    Integers,
    gain,
    part_scores,
    sums_by_cell,
)
from toto_pipeline.evaluation.metrics import fraction, group_mean
from toto_pipeline.promotion.facts import FINISHED, Facts
from toto_pipeline.promotion.rules import CANDIDATE, CHAMPION, Rule, number, percent, sentence, signed
from toto_pipeline.settings.promotion import PromotionSettings

_SHOWN = 3


def of_facts(facts: Facts, policy: PromotionSettings) -> Iterator[Rule]:
    """The guards that need no scores."""
    yield training_finished(facts, policy)
    yield weights_finite(facts)
    if facts.rolled_back is not None and not policy.allow_rolled_back:
        yield not_rolled_back(facts.rolled_back)
    if policy.require_clean_data:
        yield data_checks(facts)
    if policy.max_forecast_seconds is not None:
        yield forecast_seconds(facts, policy.max_forecast_seconds)
    if policy.max_latency_ratio is not None:
        yield latency_ratio(facts, policy.max_latency_ratio)
    if policy.max_model_bytes is not None:
        yield model_size(facts, policy.max_model_bytes)


def coverage(candidate: Columns, policy: PromotionSettings) -> Rule | None:
    least, most = policy.min_coverage, policy.max_coverage
    if least <= 0 and most >= 1:
        return None
    whole = np.zeros(len(candidate["steps"]), dtype=np.int64)
    share = float(group_mean(candidate["coverage_80"], whole, 1, candidate["steps"])[0])
    text = f"{percent(share)} of the actual values are inside the 80 % interval"
    if np.isnan(share):
        return Rule(name="coverage", passed=False, text="There is not one actual value to count the coverage of.")
    if share < least:
        text += f", fewer than {percent(least)} (promotion.min_coverage): it promises more than it keeps"
    if share > most:
        text += f", more than {percent(most)} (promotion.max_coverage): its intervals say too little"
    return Rule(name="coverage", passed=least <= share <= most, text=f"{text}.")


def worst_series(
    candidate: Columns, champion: Columns, series: Sequence[str], policy: PromotionSettings, allowed: float
) -> Rule:
    """The greatest loss of any group that has enough windows, against `allowed`."""
    groups, group = _groups(series, policy.series_group_separator)
    own, denominator = fraction(candidate, policy.metric)
    parts = [own, fraction(champion, policy.metric)[0], denominator]
    group_of_row = group[candidate["series"].astype(np.int64)]
    present = np.unique(group_of_row)
    scores = part_scores(sums_by_cell(candidate, group_of_row, parts))
    gains = gain(scores[0], scores[1])
    enough = _windows(candidate, group_of_row, denominator)[present] >= policy.min_series_windows
    judged = enough & ~np.isnan(gains)
    if not judged.any():
        text = f"No series has the {policy.min_series_windows} windows that promotion.min_series_windows asks for."
        return Rule(name="worst_series", passed=True, text=f"Not judged: {text}")
    worst = np.flatnonzero(judged)[np.argsort(gains[judged], kind="stable")]
    broken = [place for place in worst if gains[place] < -allowed - ROUNDING]
    if not broken:
        first = worst[0]
        text = f"{int(judged.sum())} series or groups judged; the worst is {groups[present[first]]}: "
        return Rule(name="worst_series", passed=True, text=f"{text}{signed(float(gains[first]))}.")
    shown = ", ".join(f"{groups[present[place]]} ({signed(float(gains[place]))})" for place in broken[:_SHOWN])
    more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    text = f"More than {percent(allowed)} worse than the champion (promotion.max_series_loss) on {shown}{more}."
    return Rule(name="worst_series", passed=False, text=text)


def fine_tuning_helped(comparison: Comparison | None) -> Rule:
    if comparison is None:
        text = "Not judged: there are no scores of starting weights; the model was trained from scratch."
        return Rule(name="fine_tuning_helped", passed=True, text=text)
    passed = comparison.low > 0
    text = sentence(comparison)
    if not passed:
        level = percent(comparison.confidence, 0)
        text += f" Fine-tuning must help with {level} confidence (promotion.require_fine_tuning_gain)."
    return Rule(name="fine_tuning_helped", passed=bool(passed), text=text)


def training_finished(facts: Facts, policy: PromotionSettings) -> Rule:
    if facts.outcome is None:
        return _unknown("training_finished", "how the training ended")
    if facts.outcome not in FINISHED:
        reason = f": {facts.reason}" if facts.reason else ""
        text = f"The training did not come to its end ({facts.outcome}{reason}). Let it finish, or train again."
        return Rule(name="training_finished", passed=False, text=text)
    text = f"The training came to its end ({facts.outcome})"
    if facts.skipped_steps is None or not facts.steps:
        return Rule(name="training_finished", passed=True, text=f"{text}.")
    share = facts.skipped_steps / facts.steps
    passed = share <= policy.max_skipped_share
    text += f"; {facts.skipped_steps} of {facts.steps} steps were skipped because they were not finite"
    if not passed:
        text += f", more than {percent(policy.max_skipped_share)} (promotion.max_skipped_share)"
    return Rule(name="training_finished", passed=passed, text=f"{text}.")


def weights_finite(facts: Facts) -> Rule:
    if facts.bad_weights is None:
        return _unknown("weights_finite", "whether its weights are finite")
    if not facts.bad_weights:
        return Rule(name="weights_finite", passed=True, text="All weights are finite.")
    return Rule(
        name="weights_finite", passed=False, text=f"There are NaN or infinite weights in {_some(facts.bad_weights)}."
    )


def not_rolled_back(what: str) -> Rule:
    text = f"These very weights were in production and were rolled back (promotion.allow_rolled_back): {what}."
    return Rule(name="not_rolled_back", passed=False, text=text)


def data_checks(facts: Facts) -> Rule:
    if facts.mended is None:
        return _unlimited("data_checks", "what was mended in the data", "require_clean_data")
    if not facts.mended:
        return Rule(name="data_checks", passed=True, text="Nothing had to be mended in the data, and nothing left out.")
    text = f"The data is not clean (promotion.require_clean_data): {_some(facts.mended, '; ')}"
    return Rule(name="data_checks", passed=False, text=text)


def forecast_seconds(facts: Facts, most: float) -> Rule:
    seconds = (facts.seconds or {}).get(CANDIDATE)
    if seconds is None:
        return _unlimited("forecast_seconds", "how long its forecasts take", "max_forecast_seconds")
    passed = seconds <= most
    text = f"A forecast takes {number(seconds)} s"
    text += "." if passed else f", longer than {most:g} s (promotion.max_forecast_seconds)."
    return Rule(name="forecast_seconds", passed=passed, text=text)


def latency_ratio(facts: Facts, most: float) -> Rule:
    seconds = facts.seconds or {}
    if not facts.has_champion:
        return Rule(name="latency_ratio", passed=True, text="Not judged: there is no champion yet.")
    if CANDIDATE not in seconds or not seconds.get(CHAMPION):
        return _unlimited("latency_ratio", "how long the forecasts of both models take", "max_latency_ratio")
    ratio = seconds[CANDIDATE] / seconds[CHAMPION]
    passed = ratio <= most
    text = f"A forecast takes {ratio:.2f} times as long as one of the champion"
    text += "." if passed else f", more than {most:g} times (promotion.max_latency_ratio)."
    return Rule(name="latency_ratio", passed=passed, text=text)


def model_size(facts: Facts, most: int) -> Rule:
    if facts.model_bytes is None:
        return _unlimited("model_size", "the size of its files", "max_model_bytes")
    passed = facts.model_bytes <= most
    text = f"The model's files are {facts.model_bytes} bytes"
    text += "." if passed else f", more than {most} (promotion.max_model_bytes)."
    return Rule(name="model_size", passed=passed, text=text)


def _unknown(name: str, what: str) -> Rule:
    return Rule(name=name, passed=True, text=f"Not judged: {what} is not known.")


def _unlimited(name: str, what: str, setting: str) -> Rule:
    text = f"Cannot be judged: {what} is not known, and promotion.{setting} asks for it. Evaluate again, or unset it."
    return Rule(name=name, passed=False, text=text)


def _groups(series: Sequence[str], separator: str) -> tuple[list[str], Integers]:
    """Names of the groups, and the group of each series."""
    names = [name.split(separator, 1)[0] if separator else name for name in series]
    groups = sorted(set(names))
    place = {name: index for index, name in enumerate(groups)}
    return groups, np.array([place[name] for name in names], dtype=np.int64)


def _windows(table: Columns, group_of_row: Integers, denominator: np.ndarray) -> Integers:
    """Windows of each group in which anything can be scored, each series' counted."""
    scored = denominator > 0
    keys = np.stack([group_of_row, table["series"].astype(np.int64), table["window"].astype(np.int64)])
    counts = np.bincount(np.unique(keys[:, scored], axis=1)[0], minlength=int(group_of_row.max()) + 1)
    return counts.astype(np.int64)


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{separator.join(items[:_SHOWN])}{more}"
