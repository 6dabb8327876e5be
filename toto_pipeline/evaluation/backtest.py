"""Every model forecasts the same windows, and every forecast is scored.

    cut the windows once, in chunks of series
    for each model:
        for each chunk:
            take the scores of an earlier evaluation, or
            forecast in batches over all windows -> check -> score -> keep the scores
    add the scores up as fev does
    draw the best, the middle and the worst series

What is in memory at once is one chunk of series. The scores of every series, variate and window are kept beside the
aggregates: the promotion gate resamples them.

Shapes: B batch, R rows (series of all windows of a chunk, one after the other), V variates, T steps of history,
H horizon, Q levels, K measures, N series of a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.errors import EvaluationError
from toto_pipeline.evaluation import parts as part_files
from toto_pipeline.evaluation.metrics import MEASURES, aggregate, measures, score
from toto_pipeline.evaluation.parts import Part, Parts, code_of, part_key
from toto_pipeline.evaluation.pictures import Picture, Spot, choose_spots, picture, worst_spots
from toto_pipeline.evaluation.tables import (
    quality,
    score_table,
    series_of,
    series_table,
    step_table,
    undefined_metrics,
)
from toto_pipeline.evaluation.windows import Chunk, EvaluationData, Window, Windows, cut_windows
from toto_pipeline.models.forecaster import QUANTILES, Forecaster
from toto_pipeline.models.statistical import OutOfTimeError
from toto_pipeline.settings.promotion import EvaluationSettings

if TYPE_CHECKING:
    import pyarrow as pa

CANDIDATE, BASELINE, CHAMPION = "candidate", "seasonal_naive", "champion"
ZERO_SHOT, DRIFT = "zero_shot", "drift"
"""Keys of the models in an evaluation. champion is absent when there is none, zero_shot when the training began from
scratch."""

Progress = Callable[[str, int, int], None]
"""Called with the model's key, its forecasts done (series times windows), and all its forecasts."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of several models on the very same windows."""

    aggregates: Mapping[str, Mapping[str, float]]
    """Model key to MASE, SQL, WQL, WAPE (as fev computes them), coverage_80 and interval_width."""
    quality: Mapping[str, Mapping[str, Any]]
    """Model key to bias, coverage and interval_width of each central interval, and below each quantile level."""
    scores: pa.Table
    """model, series, variate, window, cutoff, and the columns of `metrics.score`; one row each."""
    by_series: pa.Table
    """model, series, variate, and the measures over all windows."""
    by_step: pa.Table
    """model, step of the horizon from 1, and the measures over all series, variates and windows."""
    windows_fingerprint: str
    data_fingerprint: str
    horizon: int
    season: int
    cutoffs: tuple[str, ...]
    seconds: Mapping[str, float]
    """Model key to seconds spent forecasting; where scores were taken from an earlier evaluation, those of then."""
    names: Mapping[str, str]
    """Model key to the name that the forecaster gives itself."""
    pictures: tuple[Picture, ...]
    worst_pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    """What a reader of the scores must know, in sentences."""


def backtest(
    forecasters: Mapping[str, Forecaster],
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    cache: Path,
    identities: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Score the forecasters on the rolling windows of the test span.

    A forecaster sees the last `context_length` steps before a window, or as many as its attribute `history_length`
    says if that is more. The first forecaster is the one that pictures are chosen for. A forecaster that runs out of
    its time (`OutOfTimeError`) is left out, which a note tells; what it did is kept for the next evaluation.

    Args:
        cache: a folder for the windows, which are deleted at the end, and for the scores of models with an identity.
        identities: model key to JSON-able facts from which the model's forecasts follow, such as the hash of its
            weights and the device. Scores of a model that has none are not kept.
        notes: sentences to put before those about the data.

    Raises:
        EvaluationError: a model's forecasts are not finite; names the model, the series and the window.
        DataError: the evaluation file cannot be read.
        StorageError: the cache cannot be written.
    """
    context = data.manifest.context_length
    wanted = {key: max(context, getattr(model, "history_length", 0)) for key, model in forecasters.items()}
    with cut_windows(data, max(wanted.values()), cache) as windows:
        runs, left_out = [], []
        for key, model in forecasters.items():
            run = _ModelRun(key, model, (identities or {}).get(key), data, wanted[key], settings, cache)
            try:
                run.score(windows, progress or _silent)
            except OutOfTimeError as error:
                left_out.append(f"{key} is left out: {error} after {run.done} of {windows.rows} forecasts.")
                continue
            runs.append(run)
        return _evaluation(runs, windows, data, settings, [*notes, *left_out])


@dataclass
class _ModelRun:
    """One model going through the windows."""

    key: str
    model: Forecaster
    identity: Any
    data: EvaluationData
    history_length: int
    settings: EvaluationSettings
    cache: Path
    parts: list[Part] = field(default_factory=list)
    done: int = 0

    @property
    def variates(self) -> list[str]:
        return list(self.data.manifest.variates)

    def score(self, windows: Windows, progress: Progress) -> None:
        """Fill `parts`, one for each chunk."""
        kept = Parts(None if self.identity is None else self.cache / part_files.FOLDER)
        kept.remove_unused()
        for chunk in windows.chunks:
            key = self._part_key(chunk)
            part = kept.load(key)
            if part is None:
                part = self._part(chunk)
                kept.save(key, part)
            self.parts.append(part)
            self.done += chunk.rows
            progress(self.key, self.done, windows.rows)

    def forecast(self, histories: Sequence[NDArray[np.float32]], horizon: int) -> Iterator[NDArray[np.float32]]:
        """(B, V, H, Q) for batches of the histories, each (V, T)."""
        for first in range(0, len(histories), self.settings.batch_size):
            batch = np.stack([row[:, -self.history_length :] for row in histories[first:][: self.settings.batch_size]])
            forecast = self.model.forecast(batch, horizon)
            expected = (len(batch), len(self.variates), horizon, len(QUANTILES))
            if forecast.shape != expected:
                raise AssertionError(f"{self.key}: forecast of shape {forecast.shape}, expected {expected}")
            yield forecast

    def _part_key(self, chunk: Chunk) -> str:
        return part_key(
            model=self.identity,
            forecaster=code_of(self.model),
            windows=chunk.digest,
            history_length=self.history_length,
            batch_size=self.settings.batch_size,
            threads=self.settings.threads,
        )

    def _part(self, chunk: Chunk) -> Part:
        horizon = chunk.windows[0].actual_NVH.shape[-1]
        histories = [row for window in chunk.windows for row in window.history_NVT]
        started = time.perf_counter()
        forecast_RVHQ = np.concatenate(list(self.forecast(histories, horizon)))
        seconds = time.perf_counter() - started
        ends = np.cumsum([len(window.series) for window in chunk.windows])
        scored = []
        adder = _Adder(chunk)
        for window, forecast in zip(chunk.windows, np.split(forecast_RVHQ, ends[:-1]), strict=True):
            self._check(forecast, window)
            scored.append(score(window.actual_NVH, forecast, window.scale_NV))
            adder.add(window, forecast)
        scores = {name: np.concatenate([one[name].ravel() for one in scored]) for name in scored[0]}
        return Part(scores, adder.series, adder.series_counts, adder.steps, adder.steps_counts, seconds)

    def _check(self, forecast_NVHQ: NDArray[np.float32], window: Window) -> None:
        bad = ~np.isfinite(forecast_NVHQ)
        if bad.any():
            row, variate, step, _ = np.argwhere(bad)[0]
            raise EvaluationError(
                f"Model {self.key!r} ({self.model.name}): forecasts {forecast_NVHQ[bad][0]} for series "
                f"{window.series[row]!r}, variate {self.variates[variate]!r}, step {step + 1} after {window.cutoff} "
                f"({int(bad.any(axis=(1, 2, 3)).sum())} of {len(bad)} series of the window). Expected: finite "
                "forecasts. It was not scored. What to do: its weights hold NaN or overflow; train it again, with a "
                "lower training.learning_rate if the training loss rose."
            )
        if (np.diff(forecast_NVHQ, axis=-1) < 0).any():
            raise AssertionError(f"{self.key}: quantiles must not decrease")


class _Adder:
    """Adds up the measures of a chunk, by series and by step."""

    def __init__(self, chunk: Chunk) -> None:
        self._place = {name: number for number, name in enumerate(series_of(chunk))}
        _, variates, horizon = chunk.windows[0].actual_NVH.shape
        self.series, self.series_counts = np.zeros((2, len(MEASURES), len(self._place), variates))
        self.steps, self.steps_counts = np.zeros((2, len(MEASURES), horizon))

    def add(self, window: Window, forecast_NVHQ: NDArray[np.float32]) -> None:
        told_KNVH = measures(window.actual_NVH, forecast_NVHQ, window.scale_NV)
        defined, told = ~np.isnan(told_KNVH), np.nan_to_num(told_KNVH)
        rows = [self._place[name] for name in window.series]
        self.series[:, rows] += told.sum(axis=-1)
        self.series_counts[:, rows] += defined.sum(axis=-1)
        self.steps += told.sum(axis=(1, 2))
        self.steps_counts += defined.sum(axis=(1, 2))


def _silent(key: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _evaluation(
    runs: Sequence[_ModelRun],
    windows: Windows,
    data: EvaluationData,
    settings: EvaluationSettings,
    notes: Sequence[str],
) -> Evaluation:
    parts = {run.key: run.parts for run in runs}
    variates = list(data.manifest.variates)
    table = score_table(parts, windows, variates)
    by_series = series_table(parts, windows, variates, table)
    return Evaluation(
        aggregates=aggregate(table),
        quality=quality(parts),
        scores=table,
        by_series=by_series,
        by_step=step_table(parts),
        windows_fingerprint=windows.fingerprint,
        data_fingerprint=data.fingerprint,
        horizon=data.manifest.horizon,
        season=data.manifest.season,
        cutoffs=windows.cutoffs,
        seconds={run.key: sum(part.seconds for part in run.parts) for run in runs},
        names={run.key: run.model.name for run in runs},
        pictures=_pictures(runs, choose_spots(windows, by_series, variates, settings.pictures), data),
        worst_pictures=_pictures(runs, worst_spots(windows, by_series, table, variates, settings.worst_pictures), data),
        notes=(*notes, *_notes(windows, undefined_metrics(table))),
    )


def _pictures(runs: Sequence[_ModelRun], spots: Sequence[Spot], data: EvaluationData) -> tuple[Picture, ...]:
    """The spots with every model's forecast: only scores are kept of the others."""
    if not spots:
        return ()
    horizon = data.manifest.horizon
    histories = [spot.window.history_NVT[spot.row] for spot in spots]
    forecasts = {run.key: np.concatenate(list(run.forecast(histories, horizon))) for run in runs}
    return tuple(
        picture(
            spot,
            {key: forecast[place] for key, forecast in forecasts.items()},
            frequency=data.manifest.frequency,
            season=data.manifest.season,
            variates=list(data.manifest.variates),
        )
        for place, spot in enumerate(spots)
    )


def _notes(windows: Windows, undefined: Sequence[str]) -> Iterator[str]:
    every = [window for chunk in windows.chunks for window in chunk.windows]
    flat = sorted({window.series[row] for window in every for row in np.argwhere(~(window.scale_NV > 0))[:, 0]})
    if flat:
        yield (
            f"{len(flat)} series without seasonal change before some window (constant, or shorter than a "
            f"season): left out of MASE and SQL there: {_some(flat)}."
        )
    most = max(windows.series_counts)
    short = [cutoff for cutoff, count in zip(windows.cutoffs, windows.series_counts, strict=True) if count < most]
    if short:
        count = f"{len(short)} of {len(windows.cutoffs)}"
        yield f"{count} windows have fewer series, which end or begin there: {_some(short)}."
    missing = sum(int(np.isnan(window.actual_NVH).sum()) for window in every)
    if missing:
        yield f"{missing} missing values in the windows are left out of all scores."
    if undefined:
        yield (
            f"{', '.join(undefined)}: some window holds a variate without anything to score. It is left out of the "
            "average here; fev's own average is undefined."
        )


def _some(items: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
