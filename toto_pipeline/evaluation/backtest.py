"""Every model forecasts the same windows, and every forecast is scored.

    with the fev task of the test span:
        cut the windows once
        for each model:
            fev asks for each window's forecasts -> forecast in batches -> check -> score -> hand them to fev
            fev's own summary is the model's aggregate
        draw the best, the middle and the worst series of the last window

The scores of every series, variate and window are kept beside the aggregates: the promotion gate resamples them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.errors import EvaluationError
from toto_pipeline.evaluation.metrics import METRICS, aggregate, score
from toto_pipeline.evaluation.pictures import Picture, choose_pictures
from toto_pipeline.evaluation.windows import EvaluationData, Window, open_task, read_windows, windows_fingerprint
from toto_pipeline.models.forecaster import QUANTILES, Forecaster
from toto_pipeline.settings.promotion import EvaluationSettings

if TYPE_CHECKING:
    import pyarrow as pa

CANDIDATE, BASELINE, CHAMPION = "candidate", "seasonal_naive", "champion"
"""Keys of the models in an evaluation; the champion is absent when there is none."""

Progress = Callable[[str, int, int], None]
"""Called with the model's key, its windows done, and all its windows."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of several models on the very same windows."""

    aggregates: Mapping[str, Mapping[str, float]]
    """Model key to MASE, SQL, WQL, WAPE (as fev computes them), coverage_80 and interval_width."""
    scores: pa.Table
    """model, series, variate, window, cutoff, and the columns of `metrics.score`; one row each."""
    windows_fingerprint: str
    data_fingerprint: str
    horizon: int
    season: int
    cutoffs: tuple[str, ...]
    seconds: Mapping[str, float]
    """Model key to seconds spent forecasting."""
    names: Mapping[str, str]
    """Model key to the name that the forecaster gives itself."""
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    """What a reader of the scores must know, in sentences."""


def backtest(
    forecasters: Mapping[str, Forecaster],
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    cache: Path,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the forecasters on the rolling windows of the test span.

    A forecaster sees the last `context_length` steps before a window, or as many as its attribute `history_length`
    says if that is more. The first forecaster is the one that pictures are chosen for.

    Args:
        cache: a folder for fev's copy of the data, deleted at the end.

    Raises:
        EvaluationError: a model's forecasts are not finite; names the model, the series and the window.
        DataError: the evaluation file cannot be read.
    """
    context = data.manifest.context_length
    wanted = {key: max(context, getattr(model, "history_length", 0)) for key, model in forecasters.items()}
    with open_task(data, cache) as task:
        windows = read_windows(task, data, max(wanted.values()))
        fingerprint = windows_fingerprint(windows, task.seasonality)
        runs = []
        for key, model in forecasters.items():
            run = _ModelRun(key, model, windows, data, wanted[key], settings.batch_size, progress)
            run.summary = task.evaluation_summary(run.predictions(task.target_columns), model_name=key)
            runs.append(run)
        if windows_fingerprint(windows, task.seasonality) != fingerprint:
            raise AssertionError("a forecaster changed the windows it was given")
    return _evaluation(runs, windows, data, settings, fingerprint)


class _ModelRun:
    """One model going through the windows; fev pulls its predictions, one window at a time."""

    def __init__(
        self,
        key: str,
        model: Forecaster,
        windows: Sequence[Window],
        data: EvaluationData,
        history_length: int,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self.key = key
        self.model = model
        self.windows = windows
        self.variates: list[str] = list(data.manifest.variates)
        self.history_length = history_length
        self.batch_size = batch_size
        self.progress = progress or _silent
        self.seconds = 0.0
        self.summary: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.last_NVHQ: NDArray[np.float32] = np.empty(0, dtype=np.float32)

    def predictions(self, targets: Sequence[str]) -> Iterator[Any]:
        for window in self.windows:
            started = time.perf_counter()
            forecast_NVHQ = self._forecast(window)
            self.seconds += time.perf_counter() - started
            self.rows.append(score(window.actual_NVH, forecast_NVHQ, window.scale_NV))
            self.last_NVHQ = forecast_NVHQ
            self.progress(self.key, window.number + 1, len(self.windows))
            order = [0] if len(self.variates) == 1 else [self.variates.index(target) for target in targets]
            yield fev_predictions(targets, forecast_NVHQ[:, order])

    def _forecast(self, window: Window) -> NDArray[np.float32]:
        horizon = window.actual_NVH.shape[-1]
        history = window.history_NVT[..., -self.history_length :]
        batches = [
            self.model.forecast(history[first : first + self.batch_size].copy(), horizon)
            for first in range(0, len(history), self.batch_size)
        ]
        forecast_NVHQ = np.concatenate(batches)
        self._check(forecast_NVHQ, window)
        return forecast_NVHQ

    def _check(self, forecast_NVHQ: NDArray[np.float32], window: Window) -> None:
        expected = (*window.actual_NVH.shape, len(QUANTILES))
        if forecast_NVHQ.shape != expected:
            raise AssertionError(f"{self.key}: forecast of shape {forecast_NVHQ.shape}, expected {expected}")
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


def _silent(key: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def fev_predictions(targets: Sequence[str], forecast_NVHQ: NDArray[np.float32]) -> Any:
    """Forecasts as fev takes them: the median as the point forecast, and every quantile."""
    import datasets
    import pyarrow as pa

    horizon = forecast_NVHQ.shape[2]

    def steps(values_NH: NDArray[np.float32]) -> Any:
        flat = pa.array(values_NH.astype(np.float64).ravel())
        return pa.ListArray.from_arrays(pa.array(range(0, flat.__len__() + 1, horizon), pa.int32()), flat)

    def table(forecast_NHQ: NDArray[np.float32]) -> Any:
        columns = {str(level): steps(forecast_NHQ[..., i]) for i, level in enumerate(QUANTILES)}
        return datasets.Dataset(pa.table({"predictions": columns["0.5"], **columns}))

    return datasets.DatasetDict({target: table(forecast_NVHQ[:, i]) for i, target in enumerate(targets)})


def _evaluation(
    runs: Sequence[_ModelRun],
    windows: Sequence[Window],
    data: EvaluationData,
    settings: EvaluationSettings,
    fingerprint: str,
) -> Evaluation:
    table = score_table(runs, windows)
    own = aggregate(table)
    aggregates = {run.key: {**own[run.key], **_of_fev(run, own[run.key])} for run in runs}
    return Evaluation(
        aggregates=aggregates,
        scores=table,
        windows_fingerprint=fingerprint,
        data_fingerprint=data.fingerprint,
        horizon=data.manifest.horizon,
        season=data.manifest.season,
        cutoffs=tuple(window.cutoff for window in windows),
        seconds={run.key: run.seconds for run in runs},
        names={run.key: run.model.name for run in runs},
        pictures=choose_pictures(
            windows,
            runs[0].rows,
            {run.key: run.last_NVHQ for run in runs},
            frequency=data.manifest.frequency,
            season=data.manifest.season,
            variates=runs[0].variates,
            count=settings.pictures,
        ),
        notes=tuple(_notes(runs, windows)),
    )


def _of_fev(run: _ModelRun, own: Mapping[str, float]) -> dict[str, float]:
    """fev's numbers; ours where fev has none because a whole variate of a window cannot be scored."""
    return {metric: value if math.isfinite(value := float(run.summary[metric])) else own[metric] for metric in METRICS}


def score_table(runs: Sequence[_ModelRun], windows: Sequence[Window]) -> pa.Table:
    """All scores, one row for each model, series, variate and window."""
    import pyarrow as pa

    def text(values: Sequence[str], index: NDArray[np.int64]) -> Any:
        return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(list(values)))

    series = sorted({name for window in windows for name in window.series})
    place = {name: i for i, name in enumerate(series)}
    variates = runs[0].variates
    rows_series = [np.repeat([place[name] for name in window.series], len(variates)) for window in windows]
    rows_variate = [np.tile(np.arange(len(variates)), len(window.series)) for window in windows]
    rows_window = [np.full(len(rows), window.number) for rows, window in zip(rows_series, windows, strict=True)]
    rows = sum(map(len, rows_series))
    every = len(runs)
    names = runs[0].rows[0].keys()
    window_number = np.tile(np.concatenate(rows_window), every)
    return pa.table(
        {
            "model": text([run.key for run in runs], np.repeat(np.arange(every), rows)),
            "series": text(series, np.tile(np.concatenate(rows_series), every)),
            "variate": text(variates, np.tile(np.concatenate(rows_variate), every)),
            "window": pa.array(window_number.astype(np.int32)),
            "cutoff": text([window.cutoff for window in windows], window_number),
            **{
                name: pa.array(np.concatenate([scores[name].ravel() for run in runs for scores in run.rows]))
                for name in names
            },
        }
    )


def _notes(runs: Sequence[_ModelRun], windows: Sequence[Window]) -> Iterator[str]:
    flat = sorted({window.series[row] for window in windows for row in np.argwhere(~(window.scale_NV > 0))[:, 0]})
    if flat:
        yield (
            f"{len(flat)} series without seasonal change before some window (constant, or shorter than a "
            f"season): left out of MASE and SQL there: {_some(flat)}."
        )
    most = max(len(window.series) for window in windows)
    short = [window.cutoff for window in windows if len(window.series) < most]
    if short:
        yield f"{len(short)} of {len(windows)} windows have fewer series, which end or begin there: {_some(short)}."
    missing = sum(int(np.isnan(window.actual_NVH).sum()) for window in windows)
    if missing:
        yield f"{missing} missing values in the windows are left out of all scores."
    undefined = [metric for metric in METRICS if not math.isfinite(float(runs[0].summary[metric]))]
    if undefined:
        yield (
            f"{', '.join(undefined)}: some window holds a variate without anything to score. It is left out of the "
            "average here; fev's own average is undefined."
        )


def _some(items: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
