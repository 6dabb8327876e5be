"""Which series of an evaluation are drawn: the best, the middle and the worst, in the last window; and of the very
worst, the window in which each was worst.

Shapes: N series, V variates, T steps of history, H horizon, Q levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.evaluation.metrics import encode
from toto_pipeline.evaluation.windows import Window, Windows

if TYPE_CHECKING:
    import pyarrow as pa


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


@dataclass(frozen=True)
class Spot:
    """What is to be drawn: a series (a row of a window), one of its variates, and the first model's mean MASE."""

    window: Window
    row: int
    variate: int
    mase: float


def choose_spots(windows: Windows, by_series: pa.Table, variates: Sequence[str], count: int) -> list[Spot]:
    """The best, the middle and the worst by the first model's MASE among the series that the last window has."""
    last = len(windows.cutoffs) - 1
    rows = _rows(windows, last)
    names, mase_NV = mase_by_series(by_series, variates)
    kept = [place for place, name in enumerate(names) if name in rows]
    return [
        Spot(*rows[names[kept[row]]], variate, float(mase_NV[kept[row], variate]))
        for row, variate in chosen(mase_NV[kept], count)
    ]


def worst_spots(
    windows: Windows, by_series: pa.Table, scores: pa.Table, variates: Sequence[str], count: int
) -> list[Spot]:
    """The series with the highest mean MASE of the first model, worst first, each in the window where it was worst."""
    names, mase_NV = mase_by_series(by_series, variates)
    ranked = [int(i) for i in np.argsort(-mase_NV.ravel(), kind="stable") if not math.isnan(mase_NV.ravel()[i])]
    spots = []
    for flat in ranked[:count]:
        row, variate = divmod(flat, len(variates))
        window = _worst_window(scores, names[row], variates[variate])
        spots.append(Spot(*_rows(windows, window, [names[row]])[names[row]], variate, float(mase_NV[row, variate])))
    return spots


def mase_by_series(by_series: pa.Table, variates: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """Names, and (N, V) MASE of the first model over all windows; NaN where undefined."""
    _, model = encode(by_series, "model")
    names, series = encode(by_series, "series")
    first = model == 0
    order = [names[code] for code in series[first][:: len(variates)]]
    mase: NDArray[np.float64] = by_series.column("MASE").to_numpy()[first].reshape(len(order), len(variates))
    return order, mase


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


def picture(
    spot: Spot,
    forecasts_VHQ: Mapping[str, NDArray[np.float32]],
    *,
    frequency: str,
    season: int,
    variates: Sequence[str],
) -> Picture:
    """A spot with the forecasts that every model gave for it, and at most so much history as can be seen well."""
    import pandas as pd

    window = spot.window
    horizon = window.actual_NVH.shape[-1]
    shown = min(window.history_NVT.shape[-1], max(2 * season, 3 * horizon))
    step = pd.tseries.frequencies.to_offset(frequency)
    return Picture(
        series=window.series[spot.row],
        variate=variates[spot.variate],
        mase=spot.mase,
        history_times=_iso(pd.date_range(end=window.cutoff, periods=shown, freq=step)),
        history_T=np.array(window.history_NVT[spot.row, spot.variate, -shown:]),
        times=_iso(pd.date_range(start=window.cutoff, periods=horizon + 1, freq=step)[1:]),
        actual_H=np.array(window.actual_NVH[spot.row, spot.variate]),
        forecasts_HQ={key: forecast[spot.variate] for key, forecast in forecasts_VHQ.items()},
    )


def _rows(windows: Windows, number: int, names: Iterable[str] | None = None) -> dict[str, tuple[Window, int]]:
    """Where the series of a window are: (window of a chunk, row in it)."""
    wanted = None if names is None else set(names)
    return {
        name: (window, row)
        for chunk in windows.chunks
        for window in chunk.windows
        if window.number == number
        for row, name in enumerate(window.series)
        if wanted is None or name in wanted
    }


def _worst_window(scores: pa.Table, series: str, variate: str) -> int:
    _, model = encode(scores, "model")
    keep = model == 0
    for name, value in (("series", series), ("variate", variate)):
        texts, index = encode(scores, name)
        keep &= index == texts.index(value)
    windows, mase = scores.column("window").to_numpy()[keep], scores.column("MASE").to_numpy()[keep]
    return int(windows[int(np.nanargmax(mase))])


def _iso(times: Sequence[Any]) -> tuple[str, ...]:
    return tuple(time.isoformat() for time in times)
