"""Which series of an evaluation are drawn: the best, the middle and the worst, in the last window.

Shapes: N series, V variates, T steps of history, H horizon, Q levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.evaluation.metrics import Floats
from toto_pipeline.evaluation.windows import Window


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One series, variate and window to draw: what was known, what came, and what each model said."""

    series: str
    variate: str
    mase: float
    """Of the first model, averaged over its windows."""
    history_times: tuple[str, ...]
    history_T: NDArray[np.float32]
    times: tuple[str, ...]
    actual_H: NDArray[np.float64]
    forecasts_HQ: Mapping[str, NDArray[np.float32]]


def choose_pictures(
    windows: Sequence[Window],
    scores: Sequence[Mapping[str, Floats]],
    forecasts_NVHQ: Mapping[str, NDArray[np.float32]],
    *,
    frequency: str,
    season: int,
    variates: Sequence[str],
    count: int,
) -> tuple[Picture, ...]:
    """Pictures of the last window.

    Args:
        scores: of the model that the choice is made by, for each window.
        forecasts_NVHQ: of every model, in the last window.
    """
    import pandas as pd

    last = windows[-1]
    horizon = last.actual_NVH.shape[-1]
    shown = min(last.history_NVT.shape[-1], max(2 * season, 3 * horizon))
    step = pd.tseries.frequencies.to_offset(frequency)
    before = _iso(pd.date_range(end=last.cutoff, periods=shown, freq=step))
    after = _iso(pd.date_range(start=last.cutoff, periods=horizon + 1, freq=step)[1:])
    mase_NV = mean_mase(windows, scores)
    return tuple(
        Picture(
            series=last.series[row],
            variate=variates[variate],
            mase=float(mase_NV[row, variate]),
            history_times=before,
            history_T=last.history_NVT[row, variate, -shown:],
            times=after,
            actual_H=last.actual_NVH[row, variate],
            forecasts_HQ={key: forecast[row, variate] for key, forecast in forecasts_NVHQ.items()},
        )
        for row, variate in chosen(mase_NV, count)
    )


def mean_mase(windows: Sequence[Window], scores: Sequence[Mapping[str, Floats]]) -> Floats:
    """(N, V) for the series of the last window, over all windows they have; NaN where undefined in all."""
    place = {name: row for row, name in enumerate(windows[-1].series)}
    total, count = np.zeros((2, *windows[-1].scale_NV.shape))
    for window, scored in zip(windows, scores, strict=True):
        kept = [row for row, name in enumerate(window.series) if name in place]
        rows = [place[window.series[row]] for row in kept]
        mase = scored["MASE"][kept]
        total[rows] += np.nan_to_num(mase)
        count[rows] += ~np.isnan(mase)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def chosen(mase_NV: NDArray[np.float64], count: int) -> list[tuple[int, int]]:
    """(series, variate) of the best, the middle and the worst by MASE, in that order; undefined only if all are."""
    flat = mase_NV.ravel()
    order = np.argsort(flat, kind="stable")
    ranked = order[: int((~np.isnan(flat)).sum())]
    ranked = ranked if len(ranked) else order
    count = min(count, len(ranked))
    ends = count // 3
    middle = count - 2 * ends
    start = (len(ranked) - middle) // 2
    picked = [*ranked[:ends], *ranked[start : start + middle], *ranked[len(ranked) - ends :]]
    return [(int(i // mase_NV.shape[1]), int(i % mase_NV.shape[1])) for i in picked]


def _iso(times: Sequence[Any]) -> tuple[str, ...]:
    return tuple(time.isoformat() for time in times)
