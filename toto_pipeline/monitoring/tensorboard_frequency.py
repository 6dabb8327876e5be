"""How much of a run TensorBoard is shown: all of a short one, and of a long one no more than a person can look at.

Each is a function of where the event lies in the run, so a process that starts again shows the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_POINTS = 20_000
"""Points of a scalar that is measured at every step."""
MOST_PICTURES = 60
"""Histograms or figures of one name."""
_FULL_POINTS = 4096
"""Points in full before they become sparser, where it is not known how many will come."""
_PICTURES_A_DOUBLING = 4


@dataclass(frozen=True)
class Length:
    """How long a run is to be. Zeros where that is not known."""

    total_steps: int = 0
    steps_per_epoch: int = 0


def stride(count: int, most: int) -> int:
    """Every how many-th of `count` to take for at most `most` of them."""
    return max(1, -(-count // most))


def shows_step(step: int, length: Length) -> bool:
    """Whether the scalars of a step are shown: the last step of each stride, and of each epoch."""
    if not length.total_steps:
        return shows_reading(step)
    if step % stride(length.total_steps, MOST_POINTS) == 0 or step == length.total_steps:
        return True
    if not length.steps_per_epoch:
        return False
    epochs = stride(length.total_steps // length.steps_per_epoch, MOST_POINTS)
    return step % (length.steps_per_epoch * epochs) == 0


def shows_reading(index: int) -> bool:
    """Whether the reading of this number is shown where nobody knows how many will come.

    Each doubling of their number, beyond the first 4096, shows 2048 more: 21 000 of a million.
    """
    return bool(index % (1 << (index // _FULL_POINTS).bit_length()) == 0)


def part_of_run(step: int, length: Length) -> int:
    """The number of the part of a run in which a step lies. Of each part the first picture of a name is shown.

    A run has 60 parts of equal length. Where its length is not known, the parts become longer as it goes on.
    """
    if length.total_steps:
        return step * MOST_PICTURES // length.total_steps
    return math.floor(_PICTURES_A_DOUBLING * math.log2(max(step, 0) + 1))
