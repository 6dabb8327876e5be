"""Scores of one forecast, and how they add up to what `fev` publishes.

Every score is kept as a numerator and a denominator for each series, variate and window, so that any set of windows
can be added up again (the promotion gate resamples them):

    metric   numerator                                   denominator
    MASE     sum of |error| / scale                      observed steps
    SQL      sum of quantile loss / scale                observed steps
    WQL      sum of quantile loss                        sum of |actual|
    WAPE     sum of |error|                              sum of |actual|

The error is that of the median. The quantile loss of a step is 2 * |(y - q) * ((y <= q) - level)|, averaged over the
levels. The scale is the mean absolute seasonal difference of the history before the window. A metric of a data set is
the sum of numerators over the sum of denominators of each window and variate, averaged over windows and variates: the
definitions of fev 0.10 (fev/metrics.py), to which a test holds them. Missing actuals count nowhere; a series whose
scale is 0 or unknown (constant, or shorter than a season) counts in WQL and WAPE, not in MASE and SQL.

Beside these, `measures` tells of each single step how far off, how sure and how honest a forecast was. They are added
up by series and by step of the horizon, every observed step counting the same.

Shapes: N series, V variates, H horizon, Q levels, K measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.models.forecaster import QUANTILES

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = ("MASE", "SQL", "WQL", "WAPE")
"""Lower is better, in all of them."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

INTERVALS = {round(100 * (1 - 2 * level)): (level, round(1 - level, 6)) for level in QUANTILES if level < 0.5}
"""The central intervals in percent, each with the levels of its ends."""
MEASURES = (
    "MASE",
    "SQL",
    "bias",
    *(f"coverage_{percent}" for percent in INTERVALS),
    *(f"interval_width_{percent}" for percent in INTERVALS),
    *(f"below_{level}" for level in QUANTILES),
)
"""The names of what `measures` tells, in its order."""

_LEVELS_Q = np.array(QUANTILES)
_LOW, _MEDIAN, _HIGH = QUANTILES.index(0.1), QUANTILES.index(0.5), QUANTILES.index(0.9)


def score(actual_NVH: Floats, forecast_NVHQ: NDArray[np.float32], scale_NV: Floats) -> dict[str, Floats]:
    """The scores of one window, each (N, V); NaN where undefined.

    Returns:
        steps (observed actuals), MASE, SQL, WQL_numerator, WQL_denominator, WAPE_numerator, WAPE_denominator,
        coverage_80 (share of actuals from the 0.1 to the 0.9 quantile), interval_width (between those two, in
        scales, so that series in different units can be averaged).
    """
    observed = ~np.isnan(actual_NVH)
    steps = observed.sum(axis=-1).astype(np.float64)
    scale = np.where(scale_NV > 0, scale_NV, np.nan)
    forecast = forecast_NVHQ.astype(np.float64)
    low, high = forecast[..., _LOW], forecast[..., _HIGH]

    def total(x_NVH: Floats) -> Floats:
        added: Floats = np.where(observed, x_NVH, 0.0).sum(axis=-1)
        return added

    absolute_error = total(np.abs(actual_NVH - forecast[..., _MEDIAN]))
    quantile_loss = total(mean_quantile_loss(actual_NVH, forecast))
    absolute_actual = total(np.abs(actual_NVH))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "steps": steps,
            "MASE": absolute_error / scale / steps,
            "SQL": quantile_loss / scale / steps,
            "WQL_numerator": quantile_loss,
            "WQL_denominator": absolute_actual,
            "WAPE_numerator": absolute_error,
            "WAPE_denominator": absolute_actual,
            "coverage_80": total(((low <= actual_NVH) & (actual_NVH <= high)).astype(np.float64)) / steps,
            "interval_width": total(high - low) / scale / steps,
        }


def measures(actual_NVH: Floats, forecast_NVHQ: NDArray[np.float32], scale_NV: Floats) -> Floats:
    """(K, N, V, H): every one of `MEASURES` of each step; NaN where undefined.

    MASE is |median - actual| and SQL the mean quantile loss, both in scales. bias is median - actual in scales: above
    0 the forecasts are too high. coverage_p is 1 where the actual value lies in the central interval of p percent,
    interval_width_p the width of that interval in scales. below_q is 1 where the actual value is at most the quantile
    q: of a calibrated model the share q.
    """
    forecast = forecast_NVHQ.astype(np.float64)
    scale = np.where(scale_NV > 0, scale_NV, np.nan)[..., None]
    observed = ~np.isnan(actual_NVH)
    error = forecast[..., _MEDIAN] - actual_NVH
    ends = [(forecast[..., QUANTILES.index(a)], forecast[..., QUANTILES.index(b)]) for a, b in INTERVALS.values()]
    with np.errstate(invalid="ignore"):
        told = [
            np.abs(error) / scale,
            mean_quantile_loss(actual_NVH, forecast) / scale,
            error / scale,
            *(((low <= actual_NVH) & (actual_NVH <= high)).astype(np.float64) for low, high in ends),
            *((high - low) / scale for low, high in ends),
            *((actual_NVH <= forecast[..., place]).astype(np.float64) for place in range(len(QUANTILES))),
        ]
    return np.where(observed, np.stack(told), np.nan)


def mean_quantile_loss(actual_NVH: Floats, forecast_NVHQ: Floats) -> Floats:
    """(N, V, H): averaged over the levels; NaN where the actual is missing."""
    error = actual_NVH[..., None] - forecast_NVHQ
    loss: Floats = 2 * np.maximum(_LEVELS_Q * error, (_LEVELS_Q - 1) * error).mean(axis=-1)
    return loss


def seasonal_scale(values: Floats, lengths: Integers, season: int) -> Floats:
    """Mean absolute seasonal difference of each series; NaN where there is none.

    Args:
        values: the histories, one after the other.
        lengths: (N,) steps of each.
    """
    if len(values) <= season:
        return np.full(len(lengths), np.nan)
    row = np.repeat(np.arange(len(lengths)), lengths)
    difference = np.abs(values[season:] - values[:-season])
    counted = (row[season:] == row[:-season]) & ~np.isnan(difference)
    return group_mean(difference[counted], row[season:][counted], len(lengths))


def group_mean(values: Floats, group: Integers, groups: int, weights: Floats | None = None) -> Floats:
    """(groups,): weighted means, NaN values left out; NaN for a group without any weight."""
    weights = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    total = np.bincount(group, weights=np.nan_to_num(values) * weights, minlength=groups)
    weight = np.bincount(group, weights=weights, minlength=groups)
    mean: Floats = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)
    return mean


def fraction(columns: Mapping[str, Floats], metric: str) -> tuple[Floats, Floats]:
    """Numerator and denominator of each row of a score table; both 0 where the metric is undefined."""
    if metric in ("WQL", "WAPE"):
        return columns[f"{metric}_numerator"], columns[f"{metric}_denominator"]
    defined = ~np.isnan(columns[metric])
    denominator = np.where(defined, columns["steps"], 0.0)
    return np.where(defined, columns[metric], 0.0) * denominator, denominator


def mean_ratio(numerators: Floats, denominators: Floats) -> Floats:
    """Ratios averaged over the last axis; those with denominator 0 are left out, NaN where all are."""
    defined = denominators > 0
    ratio = np.where(defined, numerators, 0.0) / np.where(defined, denominators, 1.0)
    count = defined.sum(axis=-1)
    mean: Floats = np.where(count > 0, ratio.sum(axis=-1) / np.maximum(count, 1), np.nan)
    return mean


def aggregate(scores: pa.Table) -> dict[str, dict[str, float]]:
    """Model key to metric to value, from a score table (see `backtest.Evaluation.scores`)."""
    models, model = encode(scores, "model")
    return {name: _aggregate_one(numbers(scores, model == code)) for code, name in enumerate(models)}


def numbers(scores: pa.Table, rows: NDArray[np.bool_]) -> dict[str, Floats]:
    """The number columns of the chosen rows."""
    names = [field.name for field in scores.schema if str(field.type) == "double"]
    columns = {name: scores.column(name).to_numpy()[rows] for name in names}
    return {**columns, "cell": cells(scores)[rows].astype(np.float64)}


def cells(scores: pa.Table) -> Integers:
    """One integer for each window and variate."""
    variates, variate = encode(scores, "variate")
    window: Integers = scores.column("window").to_numpy().astype(np.int64)
    return window * len(variates) + variate


def encode(scores: pa.Table, name: str) -> tuple[list[str], Integers]:
    """A text column as its different texts, in order of appearance, and an index into them for each row."""
    column = scores.column(name)
    column = column.cast(column.type.value_type) if hasattr(column.type, "value_type") else column
    encoded = column.combine_chunks().dictionary_encode()
    indices: Integers = encoded.indices.to_numpy().astype(np.int64)
    return encoded.dictionary.to_pylist(), indices


def _aggregate_one(columns: Mapping[str, Floats]) -> dict[str, float]:
    cell = np.unique(columns["cell"], return_inverse=True)[1]

    def value(metric: str) -> float:
        numerator, denominator = (np.bincount(cell, weights=part) for part in fraction(columns, metric))
        return float(mean_ratio(numerator, denominator))

    whole = np.zeros(len(cell), dtype=np.int64)
    return {
        **{metric: value(metric) for metric in METRICS},
        **{
            name: float(group_mean(columns[name], whole, 1, columns["steps"])[0])
            for name in ("coverage_80", "interval_width")
        },
    }
