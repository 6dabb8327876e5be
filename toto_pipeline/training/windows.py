"""Which windows a step trains on: a function of (seed, epoch, index) and nothing else.

Each window of an epoch draws its series, its place and its mask from a Philox generator keyed by the seed and counted
by (epoch, index). There is no sampler state to save: any number of training processes and of loader processes, started
at any step, sees the same windows. Where several processes train, each takes its part of every step's batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.models.forecaster import WindowShape

_VALIDATION_EPOCH = 2**32 - 1
READ_AHEAD_BATCHES = 4


@dataclass(frozen=True)
class Batch:
    """values_BVT: float32, NaN for missing; kept_BT: bool, False for what the model may not see."""

    values_BVT: Tensor
    kept_BT: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.values_BVT.to(device, non_blocking=True), self.kept_BT.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return Batch(self.values_BVT.pin_memory(), self.kept_BT.pin_memory())

    def split(self, parts: int) -> list[Batch]:
        """`parts` batches of equal size."""
        return [
            Batch(values, kept)
            for values, kept in zip(self.values_BVT.chunk(parts), self.kept_BT.chunk(parts), strict=True)
        ]


@dataclass(frozen=True)
class Place:
    """A window is `length` steps of a series that end just before step `end`."""

    series: int
    end: int


def window_random(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one window: Philox with the seed as key and (epoch, index) in its counter."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, epoch]))


class TrainingWindows(Dataset[Batch]):
    """The batches of a run. Item i is what process `rank` of `ranks` trains on in optimizer step i."""

    def __init__(
        self,
        data: TrainingData,
        shape: WindowShape,
        *,
        batch_size: int,
        steps_per_epoch: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._data = data
        self._shape = shape
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._seed = seed
        self._first, self._count = rank * (batch_size // ranks), batch_size // ranks
        manifest = data.manifest
        self._horizon = manifest.horizon
        self._length = shape.length(manifest.context_length, manifest.horizon)
        self._choices = _window_counts(data, self._length).cumsum()

    def __len__(self) -> int:
        return self._epochs * self._steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        epoch, step_of_epoch = divmod(step, self._steps_per_epoch)
        first = step_of_epoch * self._batch_size + self._first
        values, kept = zip(*(self._window(epoch, first + index) for index in range(self._count)), strict=True)
        return Batch(torch.from_numpy(np.stack(values)), torch.from_numpy(np.stack(kept)))

    def place(self, random: np.random.Generator) -> Place:
        """One of all windows that end inside the training span, each as likely as the others."""
        choice = int(random.integers(self._choices[-1]))
        series = int(np.searchsorted(self._choices, choice, side="right"))
        within = choice - (int(self._choices[series - 1]) if series else 0)
        return Place(series, int(self._data.train_ends[series]) - within)

    def _window(self, epoch: int, index: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        random = window_random(self._seed, epoch, index)
        place = self.place(random)
        values = self._data.window(place.series, place.end, self._length)
        return values, self._shape.training_mask(self._length, self._horizon, random)


def training_batches(windows: TrainingWindows, *, first_step: int, workers: int) -> Generator[Batch]:
    """The batches from `first_step` on, read ahead of the training by `workers` processes, or by a thread."""
    steps = range(first_step, len(windows))
    if workers == 0:
        yield from _read_ahead(windows, steps)
        return
    yield from DataLoader(
        windows,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=READ_AHEAD_BATCHES,
        multiprocessing_context="forkserver",
        pin_memory=torch.cuda.is_available(),
    )


def _read_ahead(windows: TrainingWindows, steps: range) -> Generator[Batch]:
    def read(step: int) -> Batch:
        return windows[step].pin_memory() if torch.cuda.is_available() else windows[step]

    reader = ThreadPoolExecutor(1, thread_name_prefix="windows")
    try:
        waiting = deque(reader.submit(read, step) for step in steps[:READ_AHEAD_BATCHES])
        for step in steps:
            if step + READ_AHEAD_BATCHES < steps.stop:
                waiting.append(reader.submit(read, step + READ_AHEAD_BATCHES))
            yield waiting.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)


def validation_places(data: TrainingData, *, most: int, seed: int) -> list[Place]:
    """Forecast windows whose horizons tile the validation span of each series; `most` of them, chosen by the seed."""
    horizon = data.manifest.horizon
    places = [
        Place(series, end)
        for series, (first, last) in enumerate(zip(data.train_ends, data.validation_ends, strict=True))
        for end in range(int(first) + horizon, int(last) + 1, horizon)
    ]
    if len(places) > most:
        chosen = window_random(seed, _VALIDATION_EPOCH, 0).choice(len(places), size=most, replace=False)
        places = [places[index] for index in sorted(chosen)]
    return places


def _window_counts(data: TrainingData, length: int) -> NDArray[np.int64]:
    """How many training windows each series offers; a series shorter than a window offers one, padded."""
    counts: NDArray[np.int64] = np.maximum(data.train_ends - length + 1, 1)
    return np.where(data.train_ends > 0, counts, 0)
