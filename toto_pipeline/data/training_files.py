"""What is in a folder of training data: the names of its files and its manifest."""

from __future__ import annotations

from dataclasses import dataclass

VALUES_FILE = "values.float32"
ITEMS_FILE = "items.parquet"
EVALUATION_FILE = "evaluation.parquet"
SCHEMA = 1


@dataclass(frozen=True)
class TrainingDataManifest:
    """Facts of training data. Times are ISO 8601; the cuts are the first step of each span.

    Attributes:
        snapshot: fingerprint of the snapshot it was made of.
        n_steps: grid steps of all series; n_missing of their values are NaN.
        dropped: sentences about series that were left out or can be tested on fewer windows.
        repairs: sentences about rows that were averaged into grid steps.
    """

    fingerprint: str
    snapshot: str
    frequency: str
    season: int
    context_length: int
    horizon: int
    validation_windows: int
    test_windows: int
    variates: list[str]
    n_series: int
    n_steps: int
    n_missing: int
    train_start: str
    validation_start: str
    test_start: str
    end: str
    dropped: list[str]
    repairs: list[str]
