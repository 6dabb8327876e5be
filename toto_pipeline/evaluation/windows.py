"""The rolling windows of the test span, cut by `fev`, so that scores compare with published ones.

Every window begins at one point in time for all series: the first at the start of the test span, the next a horizon
later. A series that has no history before a window, or not a whole horizon in it, is left out of that window; fev does
that, for every model alike.

`fev` reads its data through Hugging Face `datasets`, which would keep a copy in `~/.cache` and count the load at
Hugging Face. `open_task` keeps the copy in a folder of ours, deletes it at the end, and sends nothing.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.errors import DataError, EvaluationError
from toto_pipeline.evaluation.metrics import METRICS, seasonal_scale
from toto_pipeline.home import storage_errors
from toto_pipeline.models.forecaster import QUANTILES


class Manifest(Protocol):
    """Facts of prepared data. frequency as pandas writes it; test_start: the first test step, ISO 8601."""

    @property
    def frequency(self) -> str: ...
    @property
    def season(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def test_windows(self) -> int: ...
    @property
    def variates(self) -> Sequence[str]: ...
    @property
    def test_start(self) -> str: ...


class EvaluationData(Protocol):
    """What a back-test needs of training data (see `toto_pipeline.data.training_data.TrainingData`)."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def evaluation_file(self) -> Path:
        """A row a series: id, timestamp (list), and target (list) or a list for each variate; NaN is missing."""
        ...


@dataclass(frozen=True)
class Window:
    """One window: the series that have it, what was known, and what came.

    Shapes: N series, V variates in the order of the training data, T steps of history, H horizon.
    """

    number: int
    cutoff: str
    series: tuple[str, ...]
    history_NVT: NDArray[np.float32]
    actual_NVH: NDArray[np.float64]
    scale_NV: NDArray[np.float64]


@contextmanager
def open_task(data: EvaluationData, cache: Path) -> Iterator[Any]:
    """The `fev.Task` of the test span, loaded; its copy of the data lies below `cache` until the end of the block.

    Raises:
        DataError: the evaluation file cannot be read.
        StorageError: the cache cannot be written.
    """
    import datasets
    import fev

    logging.getLogger("fev").setLevel(logging.WARNING)
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache, prefix="evaluation-", ignore_cleanup_errors=True)
    config = datasets.config
    kept = config.HF_DATASETS_CACHE, config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE
    with folder as path:
        config.HF_DATASETS_CACHE, config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = Path(path), False, True
        try:
            task = fev.Task(**task_arguments(data))
            task.load_full_dataset(num_proc=0)  # 1 would start a pool of one process
            yield task
        except RuntimeError as error:
            if not str(error).startswith("Failed to load the dataset"):
                raise
            raise DataError(
                f"cannot be read ({_root_cause(error)})",
                expected="the Parquet file that training_data wrote for evaluation",
                remedy="materialize training_data again",
                file=data.evaluation_file,
            ) from error
        finally:
            config.HF_DATASETS_CACHE, config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = kept


def task_arguments(data: EvaluationData) -> dict[str, Any]:
    """The arguments of the `fev.Task` that anyone can score other models with."""
    import pandas as pd

    manifest = data.manifest
    step = pd.tseries.frequencies.to_offset(manifest.frequency)
    return {
        "dataset_path": glob.escape(str(data.evaluation_file)),
        "horizon": manifest.horizon,
        "num_windows": manifest.test_windows,
        "initial_cutoff": (pd.Timestamp(manifest.test_start) - step).isoformat(),
        "seasonality": manifest.season,
        "eval_metric": "SQL",
        "extra_metrics": [metric for metric in METRICS if metric != "SQL"],
        "quantile_levels": list(QUANTILES),
        "target": "target" if is_univariate(data) else list(manifest.variates),
    }


def is_univariate(data: EvaluationData) -> bool:
    return len(data.manifest.variates) == 1


def read_windows(task: Any, data: EvaluationData, history_length: int) -> list[Window]:
    """All windows of the task, with at most `history_length` steps of history.

    Raises:
        EvaluationError: no series has a whole horizon in a window.
    """
    columns = ["target"] if is_univariate(data) else list(data.manifest.variates)
    windows = []
    for number in range(task.num_windows):
        window = task.get_window(number)
        try:
            past, _ = window.get_input_data()
        except ValueError as error:
            raise EvaluationError(
                f"Evaluation window {number + 1} of {task.num_windows} (after {window.cutoff}): no series has both a "
                f"history before it and {task.horizon} steps in it. Expected: series that reach to the end of the "
                "data. What to do: lower preparation.test_windows or preparation.horizon."
            ) from error
        windows.append(
            _window(
                number,
                window.cutoff,
                past.data.table,
                window.get_ground_truth().data.table,
                columns,
                task,
                history_length,
            )
        )
    return windows


def windows_fingerprint(windows: Sequence[Window], season: int) -> str:
    """SHA-256 (hex) of what makes two evaluations comparable: series, points in time, actuals and season."""
    digest = hashlib.sha256(f"season {season}".encode())
    for window in windows:
        digest.update(f"\n{window.cutoff} {window.actual_NVH.shape}\n".encode())
        digest.update("\n".join(window.series).encode())
        actual = np.where(np.isnan(window.actual_NVH), np.nan, window.actual_NVH) + 0.0
        digest.update(actual.astype("<f8").tobytes())
    return digest.hexdigest()


def _window(
    number: int, cutoff: str, past: Any, future: Any, columns: Sequence[str], task: Any, history_length: int
) -> Window:
    lengths = _list_lengths(past.column(columns[0]))
    histories = [_flat(past.column(name)) for name in columns]
    actuals = [_flat(future.column(name)).reshape(len(lengths), task.horizon) for name in columns]
    return Window(
        number=number,
        cutoff=str(cutoff),
        series=tuple(past.column("id").to_pylist()),
        history_NVT=np.stack([_tails(values, lengths, history_length) for values in histories], axis=1),
        actual_NVH=np.stack(actuals, axis=1),
        scale_NV=np.stack([seasonal_scale(values, lengths, task.seasonality) for values in histories], axis=1),
    )


def _list_lengths(column: Any) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    lengths: NDArray[np.int64] = pc.list_value_length(column).to_numpy().astype(np.int64)
    return lengths


def _flat(column: Any) -> NDArray[np.float64]:
    import pyarrow.compute as pc

    values: NDArray[np.float64] = pc.list_flatten(column).to_numpy().astype(np.float64)
    return values


def _tails(values: NDArray[np.float64], lengths: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    """(N, length): the end of each history, NaN before it."""
    back = np.arange(length, 0, -1)
    index = np.cumsum(lengths)[:, None] - back
    tails = np.where(back <= lengths[:, None], values[np.maximum(index, 0)], np.nan)
    return tails.astype(np.float32)


def _root_cause(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split())[:300]
