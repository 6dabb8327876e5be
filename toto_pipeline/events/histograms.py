"""Histograms of tensors: a copy is taken at once, the counting is done in the thread that writes the log."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 64
MOST_VALUES = 1 << 20
"""Of a larger tensor every n-th value is looked at."""


class Snapshot:
    """The values of a tensor or an array as they are now.

    Args:
        values: a tensor on any device, or whatever NumPy makes an array of.
        most: of a larger tensor every n-th value is looked at, so that there are no more than these.

    Attributes:
        values: the copy, flat, on the device of the original.
        stride: every how many-th value it holds.
    """

    def __init__(self, values: Any, most: int = MOST_VALUES) -> None:
        if hasattr(values, "detach"):
            flat = values.detach().reshape(-1)
            self.stride = self._stride(flat.numel(), most)
            self.values = flat[:: self.stride].clone()
        else:
            flat = np.asarray(values).reshape(-1)
            self.stride = self._stride(flat.size, most)
            self.values = flat[:: self.stride].copy()

    @staticmethod
    def _stride(size: int, most: int) -> int:
        return -(-size // most) or 1

    def resolve(self) -> dict[str, Any]:
        """The fields of a `histogram` event."""
        values = self.values
        if hasattr(values, "detach"):
            values = values.float().cpu().numpy()
        return describe(values)


def describe(values: Any) -> dict[str, Any]:
    """counts, edges, minimum, maximum, mean and deviation of the finite values, and how many are not finite."""
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    finite = values[np.isfinite(values)]
    not_finite = int(values.size - finite.size)
    if not finite.size:
        return {"counts": [], "edges": [], "not_finite": not_finite}
    low, high = float(finite.min()), float(finite.max())
    if low == high:  # a bin of no width is none
        low, high = low - max(abs(low), 1.0) * 1e-3, high + max(abs(high), 1.0) * 1e-3
    counts, edges = np.histogram(finite, bins=BINS, range=(low, high))
    return {
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "minimum": float(finite.min()),
        "maximum": float(finite.max()),
        "mean": float(finite.mean()),
        "deviation": float(finite.std()),
        "not_finite": not_finite,
    }
