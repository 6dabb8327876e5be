"""The learning rate over a run: up, level, down.

A schedule is a factor on every parameter group's own rate. Unit scaling gives each group its own, so a rate is never
written into a group, only multiplied.
"""

from __future__ import annotations


def factor(step: int, *, total_steps: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Factor for the optimizer step with index `step` (from 0): linear warm-up, level, linear decay towards 0."""
    warmup = round(total_steps * warmup_fraction)
    decay = round(total_steps * decay_fraction)
    if step < warmup:
        return (step + 1) / warmup
    left = total_steps - step
    return min(1.0, max(left, 0) / decay) if decay else 1.0
