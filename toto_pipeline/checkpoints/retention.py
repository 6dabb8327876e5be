"""Which checkpoints may go. Pure functions: facts in, names out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toto_pipeline.settings.training import CheckpointSettings, Mode


@dataclass(frozen=True)
class Kept:
    """What retention needs to know of a committed checkpoint.

    Attributes:
        verified: its files were written or read by this process and are what the manifest says.
        pinned: its weights are in use elsewhere, as the champion's.
    """

    name: str
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    verified: bool = True
    pinned: bool = False


def best(checkpoints: Sequence[Kept], *, metric: str, mode: Mode, count: int = 1) -> list[Kept]:
    """The `count` best by a metric, best first, the earlier of equals; those without a finite value never are."""
    sign = 1 if mode == "min" else -1
    scored = [c for c in checkpoints if math.isfinite(c.metrics.get(metric, math.nan))]
    return sorted(scored, key=lambda c: (sign * c.metrics[metric], c.step))[:count]


def to_delete(checkpoints: Sequence[Kept], settings: CheckpointSettings) -> list[str]:
    """Names of those that no rule keeps, oldest first.

    Kept are the newest `keep_last`, the best `keep_best`, each whose step is a multiple of `keep_every`, and always the
    newest verified one and the pinned ones.
    """
    by_step = sorted(checkpoints, key=lambda c: c.step)
    kept = {c.name for c in by_step[-settings.keep_last :]}
    kept |= {c.name for c in best(by_step, metric=settings.metric, mode=settings.mode, count=settings.keep_best)}
    kept |= {c.name for c in [c for c in by_step if c.verified][-1:]}
    kept |= {c.name for c in by_step if c.pinned}
    if settings.keep_every is not None:
        kept |= {c.name for c in by_step if c.step % settings.keep_every == 0}
    return [c.name for c in by_step if c.name not in kept]
