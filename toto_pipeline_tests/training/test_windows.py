import threading

import numpy as np
import pytest
import torch

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.models.patches import PatchedWindows
from toto_pipeline.training.windows import (
    Batch,
    TrainingWindows,
    training_batches,
    validation_places,
    window_random,
)

SHAPE = PatchedWindows(8)


def _windows(data: TrainingData, *, seed: int = 0, rank: int = 0, ranks: int = 1) -> TrainingWindows:
    return TrainingWindows(data, SHAPE, batch_size=4, steps_per_epoch=3, epochs=2, seed=seed, rank=rank, ranks=ranks)


def _same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.kept_BT, other.kept_BT) and torch.equal(
        one.values_BVT.nan_to_num(-1.0), other.values_BVT.nan_to_num(-1.0)
    )


def test_a_run_can_be_entered_anywhere(training_data: TrainingData) -> None:
    whole = list(training_batches(_windows(training_data), first_step=0, workers=0))
    rest = list(training_batches(_windows(training_data), first_step=4, workers=0))
    assert len(whole) == 6
    assert all(_same(one, other) for one, other in zip(whole[4:], rest, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(training_data: TrainingData, workers: int) -> None:
    alone = list(training_batches(_windows(training_data), first_step=1, workers=0))
    together = list(training_batches(_windows(training_data), first_step=1, workers=workers))
    assert all(_same(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_share_out_the_batch_that_one_would_have(training_data: TrainingData, ranks: int) -> None:
    whole = _windows(training_data)[4]
    parts = [_windows(training_data, rank=rank, ranks=ranks)[4] for rank in range(ranks)]
    together = Batch(torch.cat([p.values_BVT for p in parts]), torch.cat([p.kept_BT for p in parts]))
    assert _same(whole, together)
    assert all(_same(one, other) for one, other in zip(whole.split(ranks), parts, strict=True))


def test_reading_ahead_ends_with_who_reads(training_data: TrainingData) -> None:
    batches = training_batches(_windows(training_data), first_step=0, workers=0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]


def test_epochs_and_seeds_differ(training_data: TrainingData) -> None:
    first = _windows(training_data)[0]
    assert not _same(first, _windows(training_data)[3])
    assert not _same(first, _windows(training_data, seed=1)[0])
    assert not _same(first, _windows(training_data)[1])


def test_training_windows_end_inside_the_training_span(training_data: TrainingData) -> None:
    windows = _windows(training_data)
    places = [windows.place(window_random(0, 0, index)) for index in range(3000)]
    for place in places:
        assert 0 < place.end <= training_data.train_ends[place.series]
    assert {place.series for place in places} == set(range(len(training_data.ids)))
    assert max(place.end for place in places) == training_data.train_ends[0]


def test_validation_windows_lie_between_training_and_test(training_data: TrainingData) -> None:
    horizon = training_data.manifest.horizon
    places = validation_places(training_data, most=1000, seed=0)
    assert len(places) == 2 * len(training_data.ids)
    for place in places:
        assert place.end - horizon >= training_data.train_ends[place.series]
        assert place.end <= training_data.validation_ends[place.series]
    fewer = validation_places(training_data, most=4, seed=0)
    assert len(fewer) == 4 and set(fewer) <= set(places)
    assert fewer == validation_places(training_data, most=4, seed=0)


def test_batches_are_float32_with_nan_for_missing(training_data: TrainingData) -> None:
    batch = _windows(training_data)[0]
    length = SHAPE.length(training_data.manifest.context_length, training_data.manifest.horizon)
    assert batch.values_BVT.shape == (4, 1, length)
    assert batch.values_BVT.dtype == torch.float32
    assert batch.kept_BT.shape == (4, length)
    assert np.isfinite(batch.values_BVT.numpy()).all()
