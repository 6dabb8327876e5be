"""PNG pictures of snapshots and of training data, for the pages that show them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from toto_pipeline.data.snapshot import Snapshot
    from toto_pipeline.data.training_data import TrainingData

_MOST_POINTS = 4000
_SPANS = (("validation", "#f2c14e"), ("test", "#e07a5f"))


def draw_snapshot(snapshot: Snapshot, series: int) -> bytes:
    """The first `series` series, one below the other."""
    variates = snapshot.manifest.variates
    with pq.ParquetFile(snapshot.file, pre_buffer=False) as parquet:
        rows = next(parquet.iter_batches(series, columns=["id", "timestamp", *variates]))
    figure, axes = _panels(len(rows), f"{snapshot.manifest.n_series} series, {snapshot.manifest.frequency}")
    for number, panel in enumerate(axes):
        times = rows.column("timestamp")[number].values.to_numpy(zero_copy_only=False)
        for name in variates:
            _line(panel, times, rows.column(name)[number].values.to_numpy(zero_copy_only=False), name)
        panel.set_title(rows.column("id")[number].as_py(), loc="left", fontsize=9)
        if len(variates) > 1:
            panel.legend(fontsize=7, loc="upper left")
    return _png(figure)


def draw_splits(data: TrainingData, series: int = 4) -> bytes:
    """The first `series` series with the validation and the test span shaded."""
    manifest = data.manifest
    figure, axes = _panels(
        min(series, len(data.ids)), f"train until {manifest.validation_start}, test from {manifest.test_start}"
    )
    edges = [np.datetime64(text) for text in (manifest.validation_start, manifest.test_start, manifest.end)]
    for number, panel in enumerate(axes):
        for name, values in zip(manifest.variates, data.values(number), strict=True):
            _line(panel, data.timestamps(number), values, name)
        for (name, color), start, end in zip(_SPANS, edges[:-1], edges[1:], strict=True):
            panel.axvspan(start, end, color=color, alpha=0.35, label=name, linewidth=0)
        panel.set_title(data.ids[number], loc="left", fontsize=9)
    axes[0].legend(*_spans_only(axes[0]), fontsize=7, loc="upper left")
    return _png(figure)


def _panels(count: int, title: str) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 1.5 * count), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, list(np.atleast_1d(figure.subplots(count, 1, sharex=True)))


def _line(panel: Any, times: np.ndarray, values: np.ndarray, label: str) -> None:
    step = max(1, len(times) // _MOST_POINTS)
    panel.plot(times[::step], values[::step], linewidth=0.7, label=label)
    panel.tick_params(labelsize=7)


def _spans_only(panel: Any) -> tuple[list[Any], list[str]]:
    names = {name for name, _ in _SPANS}
    pairs = [
        (handle, label) for handle, label in zip(*panel.get_legend_handles_labels(), strict=True) if label in names
    ]
    return [handle for handle, _ in pairs], [label for _, label in pairs]


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
