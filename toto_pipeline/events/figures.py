"""Figures as data: what to draw is recorded, and drawn by whoever shows it, so that training never waits for a plot.

    lines      x, series (name -> values), x_label, y_label
    scatter    x, y, x_label, y_label, diagonal (whether to draw the line of equality)
    bars       labels, values, x_label
    forecast   history, actual, quantiles (level as text -> values); actual and quantiles follow on the history
    image      png: a finished picture, in base64

Every kind has also `kind` and `title`. Missing values are null.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Figure = dict[str, Any]

Values = Iterable[float]


def lines(title: str, x: Values, series: Mapping[str, Values], *, x_label: str = "", y_label: str = "") -> Figure:
    """One or more lines over the same x."""
    return {
        "kind": "lines",
        "title": title,
        "x": _plain(x),
        "series": {name: _plain(values) for name, values in series.items()},
        "x_label": x_label,
        "y_label": y_label,
    }


def scatter(
    title: str, x: Values, y: Values, *, x_label: str = "", y_label: str = "", diagonal: bool = False
) -> Figure:
    """Points; with `diagonal` also the line on which x and y are equal."""
    return {
        "kind": "scatter",
        "title": title,
        "x": _plain(x),
        "y": _plain(y),
        "x_label": x_label,
        "y_label": y_label,
        "diagonal": diagonal,
    }


def bars(title: str, labels: Sequence[str], values: Values, *, x_label: str = "") -> Figure:
    """Horizontal bars, the first on top."""
    return {"kind": "bars", "title": title, "labels": list(labels), "values": _plain(values), "x_label": x_label}


def forecast(title: str, history: Values, actual: Values, quantiles: Mapping[float, Values]) -> Figure:
    """A series, and quantile forecasts of what follows it beside what came."""
    return {
        "kind": "forecast",
        "title": title,
        "history": _plain(history),
        "actual": _plain(actual),
        "quantiles": {f"{level:g}": _plain(values) for level, values in quantiles.items()},
    }


def image(title: str, figure: Any) -> Figure:
    """A matplotlib figure, drawn here and now: it takes tens of milliseconds of the calling thread."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return {"kind": "image", "title": title, "png": base64.b64encode(buffer.getvalue()).decode()}


def _plain(values: Values) -> NDArray[np.float32]:
    """A copy, precise enough for a plot. It becomes a list when the event is written, null where it is not finite."""
    return np.array(list(values) if isinstance(values, Iterator) else values, dtype=np.float32)
