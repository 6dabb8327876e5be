"""One condition of the gate and what it found, and how numbers are put into its words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toto_pipeline.evaluation.backtest import BASELINE, CANDIDATE, CHAMPION, ZERO_SHOT
from toto_pipeline.evaluation.bootstrap import ROUNDING, Comparison

__all__ = ["BASELINE", "CANDIDATE", "CHAMPION", "ZERO_SHOT", "Rule", "number", "percent", "sentence", "signed"]

_TITLES = {BASELINE: "the seasonal naive", CHAMPION: "the champion", ZERO_SHOT: "the starting weights"}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One condition of the gate, and what it found, in words and numbers."""

    name: str
    passed: bool
    text: str


def sentence(comparison: Comparison) -> str:
    """'SQL 0.712 against the champion's 0.731: 2.6 % better (90 % interval 1.1 % to 4.0 % better).'"""
    metric = comparison.metric
    own, other = number(comparison.candidate_score), number(comparison.reference_score)
    title = _TITLES.get(comparison.reference, comparison.reference)
    against = f"{metric} {own} against {title}'{'' if title.endswith('s') else 's'} {other}"
    if math.isnan(comparison.gain):
        return f"{against}: cannot be compared, because {metric} is undefined on every window."
    if comparison.gain == 0 and max(abs(comparison.low), abs(comparison.high)) < ROUNDING:
        return f"{against}: equal on every window."
    interval = ""
    if not math.isnan(comparison.low):
        level = percent(2 * comparison.confidence - 1, 0)
        interval = f" ({level} interval {signed(comparison.low)} to {signed(comparison.high)})"
    return f"{against}: {signed(comparison.gain)}{interval}."


def signed(gain: float) -> str:
    if math.isinf(gain):
        return "infinitely worse"
    if round(abs(gain), 3) == 0:
        return "equal" if gain == 0 else f"{percent(abs(gain), 3)} {'better' if gain > 0 else 'worse'}"
    return f"{percent(abs(gain))} {'better' if gain > 0 else 'worse'}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def number(value: float) -> str:
    return "undefined" if math.isnan(value) else (f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.3g}")
