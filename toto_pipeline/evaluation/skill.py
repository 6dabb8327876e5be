"""How much better each model is than the seasonal naive, and whether fine-tuning helped: shares with intervals.

The skill of a model is 1 - metric / metric of the seasonal naive: 0 is no better than last season again, 1 is
faultless. Its interval comes from the paired bootstrap of `bootstrap`, the gate's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from toto_pipeline.evaluation.bootstrap import Comparison, Resampling, compare, tables_by_model
from toto_pipeline.evaluation.metrics import METRICS

if TYPE_CHECKING:
    import pyarrow as pa

MOST_RESAMPLES = 500
"""Intervals of a picture need no more; the gate's decision uses its own number."""


def skills(scores: pa.Table, baseline: str, how: Resampling) -> dict[str, dict[str, dict[str, float]]]:
    """Model key to metric to skill, low and high, for every model but the baseline."""
    tables = tables_by_model(scores)
    how = replace(how, resamples=min(how.resamples, MOST_RESAMPLES))
    reference = {baseline: tables[baseline]}
    return {
        name: {metric: _numbers(compare(table, reference, metric=metric, how=how)[0]) for metric in METRICS}
        for name, table in tables.items()
        if name != baseline
    }


def gain_over(scores: pa.Table, candidate: str, reference: str, how: Resampling) -> dict[str, dict[str, float]] | None:
    """Metric to the share by which the candidate's error is lower than the reference's; None where there is none."""
    tables = tables_by_model(scores)
    if reference not in tables or candidate not in tables:
        return None
    how = replace(how, resamples=min(how.resamples, MOST_RESAMPLES))
    return {
        metric: _numbers(compare(tables[candidate], {reference: tables[reference]}, metric=metric, how=how)[0])
        for metric in METRICS
    }


def _numbers(comparison: Comparison) -> dict[str, Any]:
    return {
        "value": comparison.gain,
        "low": comparison.low,
        "high": comparison.high,
        "confidence": comparison.confidence,
    }
