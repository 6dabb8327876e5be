"""The tables of an evaluation: scores of every window, and the measures by series and by step of the horizon.

Shapes: R rows (series of all windows of a chunk, times variates), K measures, N series of a chunk, V variates,
H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.evaluation.metrics import (
    INTERVALS,
    MEASURES,
    METRICS,
    Floats,
    encode,
    fraction,
    numbers,
)
from toto_pipeline.evaluation.parts import Part
from toto_pipeline.evaluation.windows import Chunk, Windows
from toto_pipeline.models.forecaster import QUANTILES

if TYPE_CHECKING:
    import pyarrow as pa

ModelParts = Mapping[str, Sequence[Part]]
"""Model key to its parts, one a chunk."""


def series_of(chunk: Chunk) -> list[str]:
    """The series of a chunk, in the order of its parts."""
    return sorted({name for window in chunk.windows for name in window.series})


def score_table(parts: ModelParts, windows: Windows, variates: Sequence[str]) -> pa.Table:
    """All scores, one row for each model, series, variate and window."""
    import pyarrow as pa

    series = sorted({name for chunk in windows.chunks for name in series_of(chunk)})
    place = {name: number for number, name in enumerate(series)}
    every = [window for chunk in windows.chunks for window in chunk.windows]
    series_R = np.concatenate([np.repeat([place[name] for name in one.series], len(variates)) for one in every])
    variate_R = np.concatenate([np.tile(np.arange(len(variates)), len(one.series)) for one in every])
    window_R = np.concatenate([np.full(len(one.series) * len(variates), one.number) for one in every])
    models = list(parts)
    names = next(iter(parts.values()))[0].scores_R.keys()
    window = np.tile(window_R, len(models))
    return pa.table(
        {
            "model": _text(models, np.repeat(np.arange(len(models)), len(series_R))),
            "series": _text(series, np.tile(series_R, len(models))),
            "variate": _text(variates, np.tile(variate_R, len(models))),
            "window": pa.array(window.astype(np.int32)),
            "cutoff": _text(windows.cutoffs, window),
            **{
                name: pa.array(np.concatenate([part.scores_R[name] for key in models for part in parts[key]]))
                for name in names
            },
        }
    )


def series_table(parts: ModelParts, windows: Windows, variates: Sequence[str], scores: pa.Table) -> pa.Table:
    """One row for each model, series and variate: observed steps, WQL, WAPE and every measure over all windows."""
    import pyarrow as pa

    models = list(parts)
    series = [name for chunk in windows.chunks for name in series_of(chunk)]
    rows = len(series) * len(variates)
    sums = {key: np.concatenate([part.series_KNV for part in own], axis=1) for key, own in parts.items()}
    counts = {key: np.concatenate([part.series_counts_KNV for part in own], axis=1) for key, own in parts.items()}
    means = [_mean(sums[key], counts[key]).reshape(len(MEASURES), rows) for key in models]
    steps = np.concatenate([counts[key][MEASURES.index("below_0.5")].ravel() for key in models])
    return pa.table(
        {
            "model": _text(models, np.repeat(np.arange(len(models)), rows)),
            "series": _text(series, np.tile(np.repeat(np.arange(len(series)), len(variates)), len(models))),
            "variate": _text(variates, np.tile(np.arange(len(variates)), len(models) * len(series))),
            "steps": pa.array(steps.astype(np.int64)),
            **{metric: _ratios(scores, metric, models, series, variates) for metric in ("WQL", "WAPE")},
            **{name: pa.array(np.concatenate([mean[k] for mean in means])) for k, name in enumerate(MEASURES)},
        }
    )


def step_table(parts: ModelParts) -> pa.Table:
    """One row for each model and step of the horizon, from 1: observed values and every measure over all windows."""
    import pyarrow as pa

    sums = {key: np.sum([part.steps_KH for part in own], axis=0) for key, own in parts.items()}
    counts = {key: np.sum([part.steps_counts_KH for part in own], axis=0) for key, own in parts.items()}
    models = list(parts)
    horizon = sums[models[0]].shape[1]
    means = np.concatenate([_mean(sums[key], counts[key]) for key in models], axis=1)
    observed = np.concatenate([counts[key][MEASURES.index("below_0.5")] for key in models])
    return pa.table(
        {
            "model": _text(models, np.repeat(np.arange(len(models)), horizon)),
            "step": pa.array(np.tile(np.arange(1, horizon + 1), len(models)).astype(np.int32)),
            "values": pa.array(observed.astype(np.int64)),
            **{name: pa.array(means[k]) for k, name in enumerate(MEASURES)},
        }
    )


def quality(parts: ModelParts) -> dict[str, dict[str, Any]]:
    """Model key to bias, and to coverage and width of each central interval and the share below each quantile."""
    return {key: _quality_of_one(own) for key, own in parts.items()}


def undefined_metrics(scores: pa.Table) -> list[str]:
    """Metrics of which some window and variate holds nothing that can be scored."""
    models, model = encode(scores, "model")
    columns = numbers(scores, model == 0) if models else {}
    cell = np.unique(columns["cell"], return_inverse=True)[1]
    return [metric for metric in METRICS if (np.bincount(cell, weights=fraction(columns, metric)[1]) <= 0).any()]


def _quality_of_one(parts: Sequence[Part]) -> dict[str, Any]:
    sums = np.sum([part.steps_KH.sum(axis=1) for part in parts], axis=0)
    counts = np.sum([part.steps_counts_KH.sum(axis=1) for part in parts], axis=0)
    mean = dict(zip(MEASURES, _mean(sums, counts).tolist(), strict=True))
    return {
        "bias": mean["bias"],
        "coverage": {str(percent): mean[f"coverage_{percent}"] for percent in INTERVALS},
        "interval_width": {str(percent): mean[f"interval_width_{percent}"] for percent in INTERVALS},
        "below": {str(level): mean[f"below_{level}"] for level in QUANTILES},
    }


def _ratios(
    scores: pa.Table, metric: str, models: Sequence[str], series: Sequence[str], variates: Sequence[str]
) -> Any:
    """A ratio of sums for each model, series and variate, in the order of the series table."""
    import pyarrow as pa

    codes = []
    for name, order in (("model", models), ("series", series), ("variate", variates)):
        texts, index = encode(scores, name)
        place = {text: number for number, text in enumerate(order)}
        codes.append(np.array([place[text] for text in texts])[index])
    row = (codes[0] * len(series) + codes[1]) * len(variates) + codes[2]
    size = len(models) * len(series) * len(variates)
    top, bottom = (
        np.bincount(row, weights=scores.column(f"{metric}_{part}").to_numpy(), minlength=size)
        for part in ("numerator", "denominator")
    )
    return pa.array(_mean(top, bottom))


def _mean(sums: Floats, counts: Floats) -> Floats:
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), np.nan)


def _text(values: Sequence[str], index: NDArray[Any]) -> Any:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(list(values)))
