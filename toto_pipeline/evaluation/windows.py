"""The rolling windows of the test span, cut by `fev`, so that scores compare with published ones.

Every window begins at one point in time for all series: the first at the start of the test span, the next a horizon
later. A series that has no history before a window, or not a whole horizon in it, is left out of that window; fev does
that, for every model alike.

`fev` holds all series at once and slices their whole histories for each window. So the series are cut in chunks, one
row group of the evaluation file each, by a task of their own; what a model needs of the windows is kept in files that
are mapped into memory. A test compares them with what a single task of all series gives.

`fev` reads its data through Hugging Face `datasets`, which would keep a copy in `~/.cache` and count the load at
Hugging Face. Here the copy lies in a folder of ours, is deleted at the end, and nothing is sent.

Shapes: N series, V variates in the order of the training data, T steps of history, H horizon.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import shutil
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
    """One window of some series: those that have it, what was known, and what came.

    history_NVT: float32; actual_NVH: float64; scale_NV: mean absolute seasonal difference of the whole history.
    """

    number: int
    cutoff: str
    series: tuple[str, ...]
    history_NVT: NDArray[np.float32]
    actual_NVH: NDArray[np.float64]
    scale_NV: NDArray[np.float64]


@dataclass(frozen=True)
class Chunk:
    """Some of the series with all their windows. A window in which none of them is, is left out.

    digest: SHA-256 (hex) of everything about them that a forecast or a score depends on.
    """

    windows: tuple[Window, ...]
    digest: str

    @property
    def rows(self) -> int:
        """Series times windows."""
        return sum(len(window.series) for window in self.windows)


@dataclass(frozen=True)
class Windows:
    """All windows of an evaluation.

    series_counts: how many series each window has. fingerprint: see `windows_fingerprint`.
    """

    chunks: tuple[Chunk, ...]
    cutoffs: tuple[str, ...]
    series_counts: tuple[int, ...]
    fingerprint: str

    @property
    def rows(self) -> int:
        """Series times windows."""
        return sum(chunk.rows for chunk in self.chunks)


@contextmanager
def cut_windows(data: EvaluationData, history_length: int, cache: Path) -> Iterator[Windows]:
    """All windows of the test span with at most `history_length` steps of history, in files below `cache`.

    The files are deleted at the end of the block. At most one row group of the evaluation file is in memory.

    Raises:
        EvaluationError: no series has a whole horizon in a window.
        DataError: the evaluation file cannot be read.
        StorageError: the cache cannot be written.
    """
    with _temporary_folder(cache) as folder:
        chunks: list[Chunk] = []
        cutoffs: list[str] = []
        with storage_errors(cache):
            for number, file in enumerate(_row_groups(data, folder)):
                with _loaded_task(data, file, folder / "datasets") as task:
                    cutoffs = [str(cutoff) for cutoff in task.cutoffs]
                    chunks.append(_chunk(task, data, history_length, folder / f"chunk_{number}"))
                file.unlink()
        counts = _series_counts(chunks, len(cutoffs))
        for number, count in enumerate(counts):
            if count == 0:
                raise EvaluationError(
                    f"Evaluation window {number + 1} of {len(cutoffs)} (after {cutoffs[number]}): no series has both a "
                    f"history before it and {data.manifest.horizon} steps in it. Expected: series that reach to the "
                    "end of the data. What to do: lower preparation.test_windows or preparation.horizon."
                )
        kept = tuple(chunk for chunk in chunks if chunk.windows)
        yield Windows(kept, tuple(cutoffs), counts, windows_fingerprint(kept, data.manifest.season))


def windows_fingerprint(chunks: Sequence[Chunk], season: int) -> str:
    """SHA-256 (hex) of what makes two evaluations comparable: series, points in time, actuals and season.

    It does not depend on how the series are spread over chunks.
    """
    digests: dict[str, Any] = {}
    for window in (window for chunk in chunks for window in chunk.windows):
        digest = digests.setdefault(window.cutoff, hashlib.sha256(window.cutoff.encode()))
        actual = np.where(np.isnan(window.actual_NVH), np.nan, window.actual_NVH) + 0.0
        for name, values in zip(window.series, actual.astype("<f8"), strict=True):
            digest.update(f"\n{name}\n{values.shape}\n".encode())
            digest.update(values.tobytes())
    whole = hashlib.sha256(f"season {season}".encode())
    for cutoff in sorted(digests):
        whole.update(digests[cutoff].digest())
    return whole.hexdigest()


@contextmanager
def open_task(data: EvaluationData, cache: Path) -> Iterator[Any]:
    """The `fev.Task` of the test span with all series, loaded; its copy of the data lies below `cache` meanwhile.

    Raises:
        DataError: the evaluation file cannot be read.
        StorageError: the cache cannot be written.
    """
    with _temporary_folder(cache) as folder, _loaded_task(data, data.evaluation_file, folder) as task:
        yield task


@contextmanager
def _temporary_folder(cache: Path) -> Iterator[Path]:
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache, prefix="evaluation-", ignore_cleanup_errors=True)
    with folder as path:
        yield Path(path)


@contextmanager
def _loaded_task(data: EvaluationData, file: Path, folder: Path) -> Iterator[Any]:
    import datasets
    import fev

    logging.getLogger("fev").setLevel(logging.WARNING)
    config = datasets.config
    kept = config.HF_DATASETS_CACHE, config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE
    config.HF_DATASETS_CACHE, config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = folder, False, True
    try:
        task = fev.Task(**task_arguments(data, file))
        task.load_full_dataset(num_proc=0)  # 1 would start a pool of one process
        yield task
    except RuntimeError as error:
        if not str(error).startswith("Failed to load the dataset"):
            raise
        raise _unreadable(data, error) from error
    finally:
        config.HF_DATASETS_CACHE, config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = kept
        shutil.rmtree(folder, ignore_errors=True)


def _row_groups(data: EvaluationData, folder: Path) -> Iterator[Path]:
    """Each row group of the evaluation file as a file of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(data.evaluation_file, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(data, error) from error
    with parquet:
        for number in range(parquet.num_row_groups):
            try:
                table = parquet.read_row_group(number)
            except (OSError, pa.ArrowInvalid) as error:
                raise _unreadable(data, error) from error
            file = folder / f"series_{number}.parquet"
            pq.write_table(table, file, compression="lz4", use_dictionary=False, write_statistics=False)
            del table
            yield file


def _unreadable(data: EvaluationData, error: Exception) -> DataError:
    return DataError(
        f"cannot be read ({_root_cause(error)})",
        expected="the Parquet file that training_data wrote for evaluation",
        remedy="materialize training_data again",
        file=data.evaluation_file,
    )


def task_arguments(data: EvaluationData, file: Path) -> dict[str, Any]:
    """The arguments of the `fev.Task` of the series in `file`, which anyone can score other models with."""
    import pandas as pd

    manifest = data.manifest
    step = pd.tseries.frequencies.to_offset(manifest.frequency)
    return {
        "dataset_path": glob.escape(str(file)),
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


def _chunk(task: Any, data: EvaluationData, history_length: int, folder: Path) -> Chunk:
    """The windows of the task's series; their arrays lie in `folder`."""
    from fev.utils import past_future_split

    folder.mkdir()
    columns = ["target"] if is_univariate(data) else list(data.manifest.variates)
    digest = hashlib.sha256(f"horizon {task.horizon} season {task.seasonality} {columns}".encode())
    windows = []
    for number, cutoff in enumerate(task.cutoffs):
        past, future = past_future_split(
            task.load_full_dataset(), "timestamp", cutoff, task.horizon, task.min_context_length
        )
        if not len(past):
            continue
        lengths = _list_lengths(past.data.table.column(columns[0]))
        histories = [_flat(past.data.table.column(name)) for name in columns]
        actuals = [_flat(future.data.table.column(name)).reshape(len(lengths), task.horizon) for name in columns]
        arrays: dict[str, NDArray[Any]] = {
            "history": np.stack([_tails(values, lengths, history_length) for values in histories], axis=1),
            "actual": np.stack(actuals, axis=1),
            "scale": np.stack([seasonal_scale(values, lengths, task.seasonality) for values in histories], axis=1),
        }
        series = tuple(past.data.table.column("id").to_pylist())
        digest.update("\n".join([str(cutoff), *series]).encode())
        for name, values in arrays.items():
            digest.update(f"\n{name} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).data)
        mapped = {name: _on_disk(values, folder / f"{name}_{number}.npy") for name, values in arrays.items()}
        windows.append(
            Window(
                number=number,
                cutoff=str(cutoff),
                series=series,
                history_NVT=mapped["history"],
                actual_NVH=mapped["actual"],
                scale_NV=mapped["scale"],
            )
        )
    return Chunk(tuple(windows), digest.hexdigest())


def _series_counts(chunks: Sequence[Chunk], windows: int) -> tuple[int, ...]:
    counts = [0] * windows
    for window in (window for chunk in chunks for window in chunk.windows):
        counts[window.number] += len(window.series)
    return tuple(counts)


def _on_disk(values: NDArray[Any], file: Path) -> NDArray[Any]:
    """The same values, read from `file` as they are used."""
    np.save(file, values, allow_pickle=False)
    mapped: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped


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
