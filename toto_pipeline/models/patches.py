"""Windows and masks of the patched families: what is hidden from the model while it learns.

Contiguous patch masking as Toto 2.0 is trained with: half of the windows hide random spans, the other half hide the
end, as a forecast does. Everything is aligned to patches, and the first patch is always seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_SPAN_PATCHES = 16
LARGEST_HIDDEN_SHARE = 0.4


@dataclass(frozen=True)
class PatchedWindows:
    """Training windows of a family that reads patches of `patch_size` steps."""

    patch_size: int

    def patches(self, steps: int) -> int:
        """Patches that hold `steps` steps."""
        return patches_of(steps, self.patch_size)

    def length(self, context_length: int, horizon: int) -> int:
        return (self.patches(context_length) + self.patches(horizon)) * self.patch_size

    def training_mask(self, length: int, horizon: int, random: np.random.Generator) -> NDArray[np.bool_]:
        patches = length // self.patch_size
        if random.random() < 0.5:
            kept = _hide_spans(patches, random)
        else:
            longest = min(self.patches(horizon), patches - 1)
            kept = _hide_tail(patches, int(random.integers(1, longest + 1)) if longest else 0)
        return np.repeat(kept, self.patch_size)

    def forecast_mask(self, length: int, horizon: int) -> NDArray[np.bool_]:
        patches = length // self.patch_size
        return np.repeat(_hide_tail(patches, min(self.patches(horizon), patches - 1)), self.patch_size)


def patches_of(steps: int, patch_size: int) -> int:
    """Patches that hold `steps` steps."""
    return -(-steps // patch_size)


def tail_mask(length: int, hidden: int) -> NDArray[np.bool_]:
    """(length,) bool: all but the last `hidden`."""
    return np.arange(length) < length - hidden


def _hide_tail(patches: int, hidden: int) -> NDArray[np.bool_]:
    return tail_mask(patches, hidden)


def _hide_spans(patches: int, random: np.random.Generator) -> NDArray[np.bool_]:
    kept = np.ones(patches, dtype=bool)
    budget = int(random.uniform(0.0, LARGEST_HIDDEN_SHARE) * patches)
    while budget > 0:
        span = int(random.integers(1, min(LARGEST_SPAN_PATCHES, budget) + 1))
        start = int(random.integers(1, max(2, patches - span + 1)))
        kept[start : start + span] = False
        budget -= span
    return kept
