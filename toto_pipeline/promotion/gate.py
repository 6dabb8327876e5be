"""Whether a new model replaces the champion: a pure function of a score table and a policy.

The comparison. Both models forecast the very same windows, so their errors are compared pairwise. The gain is
1 - candidate / reference of the chosen metric: 0.03 is 3 % less error. Its uncertainty comes from a bootstrap that
resamples whole series with all their windows and both models' scores, because the windows of a series resemble each
other. Where there are fewer series than windows (one long multivariate series, say) it resamples the windows in time
instead, each with all its series. Percentile bounds of a few units are too narrow; they are widened as Hesterberg,
What Teachers Should Know about the Bootstrap (The American Statistician 69, 2015, section 4.1) proposes: the share
alpha becomes Phi(-sqrt(n / (n - 1)) * t(1 - alpha, n - 1)) for n units.

The rules.

    same_windows             every model has a score for the same series, variates, windows and actual values
    finite_scores            every score is a finite number
    beats_baseline           the gain over the seasonal naive is above 0 with the policy's confidence
    not_worse_than_champion  the gain over the champion is at least 0; or, with the policy's confidence, not below
                             -tolerated_loss

With the default tolerated_loss of 0 a model enters if its error is on average no higher than the champion's on the
same windows, and one that is worse, by however little, does not: many nights of "not significantly worse" cannot walk
the champion downhill. Equal scores pass. A tolerated loss of 0.02 also lets in a worse model, if it is proven with
the policy's confidence to be less than 2 % worse. There is no champion to be worse than at the first time: the rule
passes and says so.

Shapes: U units that are resampled, P parts (candidate, references, denominator), C cells (window, variate), R
resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.evaluation.metrics import encode, fraction, mean_ratio, numbers
from toto_pipeline.settings.promotion import PromotionSettings

if TYPE_CHECKING:
    import pyarrow as pa

CANDIDATE, BASELINE, CHAMPION = "candidate", "seasonal_naive", "champion"
_TITLES = {BASELINE: "the seasonal naive", CHAMPION: "the champion"}
_ROUNDING = 1e-12  # what sums of equal numbers may differ by
_CHUNK_VALUES = 4_000_000
"""Resampled counts held at once: 32 MB."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One condition of the gate, and what it found, in words and numbers."""

    name: str
    passed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The candidate against one reference. Gains are shares of the reference's error; higher is better."""

    reference: str
    metric: str
    candidate_score: float
    reference_score: float
    gain: float
    low: float
    high: float
    confidence: float
    """That the gain is above `low`, and likewise that it is below `high`."""
    units: int
    unit: str
    """What was resampled: series or windows."""


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


def decide(scores: pa.Table, policy: PromotionSettings) -> Decision:
    """Judge the candidate of an evaluation.

    Args:
        scores: `evaluation.backtest.Evaluation.scores`, with the models candidate, seasonal_naive and, where there is
            one, champion.
    """
    tables = _by_model(scores)
    integrity = [_same_windows(tables), _finite_scores(tables)]
    if not all(rule.passed for rule in integrity):
        return _decision([*integrity, *_not_compared(tables)], [])
    references = [name for name in (BASELINE, CHAMPION) if name in tables]
    comparisons = compare(tables[CANDIDATE], {name: tables[name] for name in references}, policy)
    rules = [_beats_baseline(comparisons[0])]
    rules.append(_not_worse(comparisons[1], policy) if CHAMPION in tables else _no_champion())
    return _decision([*integrity, *rules], comparisons)


def _decision(rules: list[Rule], comparisons: list[Comparison]) -> Decision:
    return Decision(promote=all(rule.passed for rule in rules), rules=tuple(rules), comparisons=tuple(comparisons))


def _by_model(scores: pa.Table) -> dict[str, dict[str, Floats]]:
    """Model to its columns, with integer keys, every model's rows in the same order."""
    models, model = encode(scores, "model")
    keys = {"series": encode(scores, "series")[1], "variate": encode(scores, "variate")[1]}
    keys["window"] = scores.column("window").to_numpy()
    tables = {}
    for code, name in enumerate(models):
        rows = model == code
        columns = {**numbers(scores, rows), **{key: values[rows] for key, values in keys.items()}}
        order = np.lexsort((columns["window"], columns["variate"], columns["series"]))
        tables[name] = {column: values[order] for column, values in columns.items()}
    return tables


def _same_windows(tables: Mapping[str, Mapping[str, Floats]]) -> Rule:
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


def _finite_scores(tables: Mapping[str, Mapping[str, Floats]]) -> Rule:
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


def compare(
    candidate: Mapping[str, Floats], references: Mapping[str, Mapping[str, Floats]], policy: PromotionSettings
) -> list[Comparison]:
    """The paired bootstrap of one metric against each reference; see the module's docstring."""
    own, denominator = fraction(candidate, policy.metric)
    others = [fraction(table, policy.metric)[0] for table in references.values()]
    unit, sums = _units(candidate, [own, *others, denominator])
    units = len(sums)
    scores = _scores(sums.sum(axis=0)[None])[:, 0]
    low, high = _bounds(sums, policy) if units > 1 else np.full((2, len(references)), math.nan)
    return [
        Comparison(
            reference=name,
            metric=policy.metric,
            candidate_score=float(scores[0]),
            reference_score=float(scores[place + 1]),
            gain=float(_gain(scores[0], scores[place + 1])),
            low=float(low[place]),
            high=float(high[place]),
            confidence=policy.confidence,
            units=units,
            unit=unit,
        )
        for place, name in enumerate(references)
    ]


def _units(table: Mapping[str, Floats], parts: Sequence[Floats]) -> tuple[str, Floats]:
    """What is resampled, and (U, P, C) sums of the parts in each cell; the last part is the denominator."""
    series, window, cell = (np.unique(table[name], return_inverse=True)[1] for name in ("series", "window", "cell"))
    series_count, window_count, cell_count = (int(index.max()) + 1 for index in (series, window, cell))
    if series_count >= window_count:
        place = series * cell_count + cell
        sums = [np.bincount(place, weights=part, minlength=series_count * cell_count) for part in parts]
        return "series", np.stack([part.reshape(series_count, cell_count) for part in sums], axis=1)
    *numerators, denominator = (np.bincount(cell, weights=part, minlength=cell_count) for part in parts)
    window_of_cell = np.zeros(cell_count, dtype=np.int64)
    window_of_cell[cell] = window
    defined = denominator > 0
    ratios = [np.where(defined, part, 0.0) / np.where(defined, denominator, 1.0) for part in numerators]
    terms = [*ratios, defined.astype(np.float64)]
    by_window = [np.bincount(window_of_cell, weights=term, minlength=window_count) for term in terms]
    return "windows", np.stack(by_window, axis=1)[:, :, None]


def _bounds(sums_UPC: Floats, policy: PromotionSettings) -> Floats:
    """(2, references): lower and upper bounds of the gains, each holding with the policy's confidence."""
    gains = np.concatenate(list(_resampled_gains(sums_UPC, policy)))
    alpha = widened_alpha(policy.confidence, len(sums_UPC))
    low = np.quantile(gains, alpha, axis=0, method="lower")
    return np.stack([low, np.quantile(gains, 1 - alpha, axis=0, method="higher")])


def _resampled_gains(sums_UPC: Floats, policy: PromotionSettings) -> Iterator[Floats]:
    """(resamples, references), in chunks: how often each unit is drawn, times the units' sums."""
    random = np.random.default_rng(policy.seed)
    units, parts, cells = sums_UPC.shape
    flat = sums_UPC.reshape(units, parts * cells)
    chunk = max(1, _CHUNK_VALUES // max(units, parts * cells))
    for first in range(0, policy.resamples, chunk):
        resamples = min(chunk, policy.resamples - first)
        drawn = random.integers(0, units, size=(resamples, units), dtype=np.int32)
        times = np.stack([np.bincount(row, minlength=units) for row in drawn])
        scores = _scores((times.astype(np.float64) @ flat).reshape(resamples, parts, cells))
        yield _gain(scores[0], scores[1:]).T


def widened_alpha(confidence: float, units: int) -> float:
    """The share of the bootstrap distribution to cut off, widened for few units (Hesterberg 2015)."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    t = float(stdtrit(units - 1, confidence))
    return NormalDist().cdf(-math.sqrt(units / (units - 1)) * t)


def _scores(totals_RPC: Floats) -> Floats:
    """(P - 1, R): the metric of the candidate and of each reference."""
    return np.stack([mean_ratio(totals_RPC[:, part], totals_RPC[:, -1]) for part in range(totals_RPC.shape[1] - 1)])


def _gain(candidate: Floats, reference: Floats) -> Floats:
    """1 - candidate / reference; against a faultless reference 0 for another such and -inf for any error."""
    faultless = reference <= 0
    ratio = candidate / np.where(faultless, 1.0, reference)
    gain: Floats = np.where(faultless, np.where(candidate > 0, -np.inf, 0.0), 1 - ratio)
    return np.where(np.isnan(candidate) | np.isnan(reference), np.nan, gain)


def _beats_baseline(comparison: Comparison) -> Rule:
    passed = comparison.units > 1 and comparison.low > 0
    text = sentence(comparison)
    if comparison.units < 2:
        text += " One window of one series proves nothing: raise preparation.test_windows."
    elif not passed:
        text += f" It must be better with {_percent(comparison.confidence, 0)} confidence."
    return Rule(name="beats_baseline", passed=bool(passed), text=text)


def _not_worse(comparison: Comparison, policy: PromotionSettings) -> Rule:
    proven = comparison.units > 1 and comparison.low >= -policy.tolerated_loss
    passed = comparison.gain >= 0 or (policy.tolerated_loss > 0 and proven)
    text = sentence(comparison)
    if not passed:
        text += f" {_demand(policy)}"
    elif comparison.gain < 0:
        text += f" That is less than the tolerated loss of {_percent(policy.tolerated_loss)}."
    return Rule(name="not_worse_than_champion", passed=bool(passed), text=text)


def _demand(policy: PromotionSettings) -> str:
    if policy.tolerated_loss == 0:
        return "It must be at least as good on average (promotion.tolerated_loss is 0)."
    return (
        f"It must be at least as good on average, or with {_percent(policy.confidence, 0)} confidence less than "
        f"{_percent(policy.tolerated_loss)} worse (promotion.tolerated_loss)."
    )


def _no_champion() -> Rule:
    return Rule(name="not_worse_than_champion", passed=True, text="There is no champion yet.")


def _not_compared(tables: Mapping[str, Any]) -> list[Rule]:
    names = ["beats_baseline", *(["not_worse_than_champion"] if CHAMPION in tables else [])]
    text = "Not compared, because the scores cannot be trusted."
    return [Rule(name=name, passed=False, text=text) for name in names]


def sentence(comparison: Comparison) -> str:
    """'SQL 0.712 against the champion's 0.731: 2.6 % better (90 % interval 1.1 % to 4.0 % better).'"""
    metric = comparison.metric
    own, other = _number(comparison.candidate_score), _number(comparison.reference_score)
    against = f"{metric} {own} against {_TITLES.get(comparison.reference, comparison.reference)}'s {other}"
    if math.isnan(comparison.gain):
        return f"{against}: cannot be compared, because {metric} is undefined on every window."
    if comparison.gain == 0 and max(abs(comparison.low), abs(comparison.high)) < _ROUNDING:
        return f"{against}: equal on every window."
    interval = ""
    if comparison.units > 1:
        level = _percent(2 * comparison.confidence - 1, 0)
        interval = f" ({level} interval {_signed(comparison.low)} to {_signed(comparison.high)})"
    return f"{against}: {_signed(comparison.gain)}{interval}."


def _signed(gain: float) -> str:
    if math.isinf(gain):
        return "infinitely worse"
    if round(abs(gain), 3) == 0:
        return "equal" if gain == 0 else f"{_percent(abs(gain), 3)} {'better' if gain > 0 else 'worse'}"
    return f"{_percent(abs(gain))} {'better' if gain > 0 else 'worse'}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else (f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.3g}")
