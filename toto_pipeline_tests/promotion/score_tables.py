"""Score tables as an evaluation writes them, made of numbers a test chooses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from benchmarks.score_simulation import score_columns
from toto_pipeline.promotion.gate import Decision, Rule


def table(models: Mapping[str, np.ndarray], *, steps: float = 10.0) -> pa.Table:
    """`models`: name to (series, windows) or (series, windows, variates) errors for each step.

    Every metric is that error, so MASE, SQL, WQL and WAPE agree; actual values are 1.
    """
    return pa.concat_tables([_one(name, np.atleast_3d(errors), steps) for name, errors in models.items()])


def errors(series: int, windows: int, *, seed: int = 0) -> np.ndarray:
    """(series, windows): harder and easier series, and noise in every window."""
    random = np.random.default_rng(seed)
    return random.gamma(8, 0.125, (series, 1)) * random.gamma(20, 0.05, (series, windows))


def noisy(base: np.ndarray, factor: float, *, seed: int, noise: float = 0.1) -> np.ndarray:
    """`base` times `factor`, with its own noise of mean 1 in every window."""
    random = np.random.default_rng(seed)
    return base * factor * random.gamma(1 / noise**2, noise**2, base.shape)


def rule(decision: Decision, name: str) -> Rule:
    return next(rule for rule in decision.rules if rule.name == name)


def _one(model: str, errors_SWV: np.ndarray, steps: float) -> pa.Table:
    series, window, variate = (index.ravel() for index in np.indices(errors_SWV.shape))
    error = errors_SWV.ravel().astype(np.float64)

    def text(prefix: str, index: np.ndarray) -> pa.Array:
        return pa.array([f"{prefix}{i}" for i in index]).dictionary_encode()

    return pa.table(
        {
            "model": pa.array([model] * len(error)).dictionary_encode(),
            "series": text("s", series),
            "variate": text("v", variate),
            "window": pa.array(window.astype(np.int32)),
            **score_columns(error, steps),
        }
    ).unify_dictionaries()
