"""Draws the figures of an event log as PNG files of 800 x 450 pixels.

Colours are those of Okabe and Ito, which people of any colour vision tell apart. matplotlib is imported when the first
figure is drawn (40 MB, 0.7 s); its global state is left alone, so any thread may draw.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#f0e442",
)
INK = "#222222"
_SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW)
_DASHES = ("-", "--", ":", "-.")
_DOTS_PER_INCH = 100
_SIZE_INCHES = (8.0, 4.5)
_MOST_IN_LEGEND = 14
_MOST_BARS = 24
_MOST_HISTORY = 4
"""How many times as long as the forecast."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SHORTEST_PNG = 33


class DrawingError(ValueError):
    """A figure of an event log is of no known kind, or lacks what its kind needs."""


def draw(figure: Mapping[str, Any]) -> bytes:
    """A figure of `toto_pipeline.events.figures` as PNG; one that is a picture already, as it is.

    Raises:
        DrawingError: the figure cannot be drawn; says why.
    """
    kind = figure.get("kind")
    if kind == "image":
        return _finished(figure)
    painter = _PAINTERS.get(str(kind))
    if painter is None:
        raise DrawingError(f"its kind is {kind!r}; expected one of {', '.join([*_PAINTERS, 'image'])}")
    try:
        return _painted(painter, figure)
    except (KeyError, TypeError, ValueError) as error:
        raise DrawingError(f"its data do not fit a figure of the kind {kind!r} ({error!r})") from error


def _finished(figure: Mapping[str, Any]) -> bytes:
    try:
        png = base64.b64decode(figure.get("png") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise DrawingError(f"its picture is not base64: {error}") from error
    if len(png) < _SHORTEST_PNG or not png.startswith(_PNG_SIGNATURE):
        raise DrawingError("its picture is not a PNG file")
    return png


def _painted(painter: Callable[[Axes, Mapping[str, Any]], None], figure: Mapping[str, Any]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained"))
    axes = canvas.figure.subplots()
    axes.set_title(_plain(figure.get("title")), loc="left", fontsize=12, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    painter(axes, figure)
    buffer = io.BytesIO()
    canvas.figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _paint_lines(axes: Axes, figure: Mapping[str, Any]) -> None:
    x = _numbers(figure["x"])
    for index, (name, values) in enumerate(figure["series"].items()):
        axes.plot(x, _numbers(values), label=_plain(name), **_line_style(index, len(x)))
    _label(axes, figure)
    if 1 < len(figure["series"]) <= _MOST_IN_LEGEND:
        _legend(axes)


def _line_style(index: int, points: int) -> dict[str, Any]:
    """Colours repeat after seven lines, with another dash."""
    return {
        "color": _SERIES[index % len(_SERIES)],
        "linestyle": _DASHES[index // len(_SERIES) % len(_DASHES)],
        "linewidth": 1.6,
        "marker": "o" if points == 1 else None,
    }


def _paint_scatter(axes: Axes, figure: Mapping[str, Any]) -> None:
    x, y = _numbers(figure["x"]), _numbers(figure["y"])
    if x.size != y.size:
        raise DrawingError(f"it has {x.size} x and {y.size} y; expected as many of both")
    axes.plot(x, y, "o", color=BLUE, markersize=4, alpha=0.6 if x.size > 100 else 0.9, markeredgewidth=0)
    shown = np.concatenate((x, y))
    shown = shown[np.isfinite(shown)]
    if figure.get("diagonal") and shown.size:
        ends = [shown.min(), shown.max()]
        axes.plot(ends, ends, color=VERMILION, linewidth=1.2, linestyle="--", label="equal")
        _legend(axes)
    _label(axes, figure)


def _paint_bars(axes: Axes, figure: Mapping[str, Any]) -> None:
    """The first on top. Of very many only the first are drawn, and it says so."""
    labels, values = list(figure["labels"]), _numbers(figure["values"])
    if len(labels) != values.size:
        raise DrawingError(
            f"it has {len(labels)} labels and {values.size} values; expected as many of one as the other"
        )
    shown = min(len(labels), _MOST_BARS)
    axes.barh(range(shown), values[:shown], color=BLUE, height=0.7)
    axes.set_yticks(range(shown), [_shortened(_plain(label)) for label in labels[:shown]], fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if shown < len(labels):
        axes.text(0.99, 0.02, f"and {len(labels) - shown} more", transform=axes.transAxes, ha="right", fontsize=9)
    _label(axes, figure)


def _paint_forecast(axes: Axes, figure: Mapping[str, Any]) -> None:
    """Bands between the quantiles that lie equally far from the median, the widest the palest."""
    history, actual = _numbers(figure["history"]), _numbers(figure["actual"])
    quantiles = {float(level): _numbers(values) for level, values in figure["quantiles"].items()}
    levels = sorted(quantiles)
    ahead = np.arange(1, max([actual.size, *(values.size for values in quantiles.values())], default=0) + 1)
    for low, high in zip(levels[: len(levels) // 2], reversed(levels[(len(levels) + 1) // 2 :]), strict=True):
        below, above = quantiles[low], quantiles[high]
        label = f"{round(100 * (high - low))} % of outcomes" if low == levels[0] else None
        axes.fill_between(ahead[: below.size], below, above, color=BLUE, alpha=_band_alpha(levels), lw=0, label=label)
    history = history[-_MOST_HISTORY * max(ahead.size, 16) :]
    axes.plot(np.arange(1 - history.size, 1), history, color=INK, linewidth=1.0, label="history")
    middle = quantiles.get(0.5)
    if middle is not None:
        axes.plot(ahead[: middle.size], middle, color=BLUE, linewidth=1.8, label="median forecast")
    if actual.size:
        axes.plot(ahead[: actual.size], actual, color=VERMILION, linewidth=1.4, linestyle="--", label="actual")
    axes.axvline(0.5, color="#888888", linewidth=0.8)
    axes.margins(x=0.01)
    axes.set_xlabel("steps ahead", fontsize=9)
    _legend(axes)


def _band_alpha(levels: Sequence[float]) -> float:
    """So that all bands on top of each other come to 0.6, however many there are."""
    return 1 - math.pow(0.4, 1 / max(1, len(levels) // 2))


_PAINTERS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "lines": _paint_lines,
    "scatter": _paint_scatter,
    "bars": _paint_bars,
    "forecast": _paint_forecast,
}


def _label(axes: Axes, figure: Mapping[str, Any]) -> None:
    axes.set_xlabel(_plain(figure.get("x_label")), fontsize=9)
    axes.set_ylabel(_plain(figure.get("y_label")), fontsize=9)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="best")


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _plain(text: Any) -> str:
    """Text that matplotlib takes for neither mathematics nor, by a leading underscore, for a label to hide."""
    plain = str(text or "").replace("$", r"\$")
    return f"\u200b{plain}" if plain.startswith("_") else plain


def _shortened(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:31]}\u2026"
