"""A callback that shows the state of every random generator, which the training itself does not draw from."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import torch

from toto_pipeline.training.callbacks import Action, Callback, EpochResult, Record


class DrawNumbers(Callback):
    """Records a number of each generator after every epoch."""

    def after_epoch(self, result: EpochResult) -> Iterable[Action]:  # noqa: ARG002
        yield Record({"torch": torch.rand(1).item(), "numpy": np.random.rand(), "python": random.random()})
