"""Which checkpoints may go. A pure function: facts in, names out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """What retention needs to know of a committed checkpoint."""

    name: str
    step: int
    validation_loss: float | None


def best(checkpoints: Sequence[Kept]) -> Kept | None:
    """The checkpoint with the lowest finite validation loss, the earliest of equals."""
    scored = [
        (c.validation_loss, c.step, c)
        for c in checkpoints
        if c.validation_loss is not None and math.isfinite(c.validation_loss)
    ]
    return min(scored, key=lambda entry: entry[:2])[2] if scored else None


def to_delete(checkpoints: Sequence[Kept], *, keep_last: int) -> list[str]:
    """Names of those that may be deleted: all but the newest `keep_last` (at least one) and the best."""
    newest = sorted(checkpoints, key=lambda c: c.step)[-max(keep_last, 1) :]
    kept = {c.name for c in newest}
    champion = best(checkpoints)
    if champion is not None:
        kept.add(champion.name)
    return [c.name for c in sorted(checkpoints, key=lambda c: c.step) if c.name not in kept]
