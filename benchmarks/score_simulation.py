"""Score tables of models whose true difference is known, to count how often the promotion gate errs.

The error of a model on a window is

    level of the series * difficulty of the window * (1 - gain) * what this model makes of it

each part log-normal. The numbers are those of two trainings of the bundled sample that differ in nothing but their
seed: levels of series vary by 0.45 (in logarithms), windows within a series by 0.5 with a correlation of 0.65 from one
to the next, and what a model makes of a window by 0.155, of a whole series by 0.03. `tail` makes some series far larger
than others, `shock` is what a model makes of a point in time, on all series alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class World:
    """series and windows: how many; the rest as the module's docstring says. correlation: of a model's own windows."""

    series: int
    windows: int
    tail: float = 0.45
    difficulty: float = 0.5
    difficulty_correlation: float = 0.65
    per_series: float = 0.03
    per_window: float = 0.155
    correlation: float = 0.3
    shock: float = 0.0


def simulate(world: World, gain: float, seed: int) -> dict[str, Floats]:
    """candidate, champion and a seasonal naive that is half as bad again: (series, windows) errors.

    The candidate's expected error is that of the champion times 1 - gain, in every window.
    """
    random = np.random.default_rng(seed)
    level = np.exp(world.tail * random.normal(size=(world.series, 1)))
    base = level * np.exp(
        world.difficulty * _correlated(random, world.series, world.windows, world.difficulty_correlation)
    )

    def model(factor: float) -> Floats:
        own = world.per_series * random.normal(size=(world.series, 1))
        own = own + world.per_window * _correlated(random, world.series, world.windows, world.correlation)
        own = own + world.shock * random.normal(size=(1, world.windows))
        variance = world.per_series**2 + world.per_window**2 + world.shock**2
        errors: Floats = factor * base * np.exp(own - variance / 2)
        return errors

    return {"candidate": model(1 - gain), "champion": model(1.0), "seasonal_naive": model(1.5)}


def promotions(world: World, gain: float, trials: int, decide: Callable[[pa.Table], bool], first_seed: int = 0) -> int:
    """How many of so many simulated evaluations `decide` says yes to."""
    seeds = range(first_seed, first_seed + trials)
    return sum(decide(score_table(simulate(world, gain, seed))) for seed in seeds)


def score_table(models: dict[str, Floats], steps: float = 10.0) -> pa.Table:
    """As an evaluation writes it; every metric is the error, and actual values are 1."""
    shape = next(iter(models.values())).shape
    series, window = (np.tile(index.ravel(), len(models)) for index in np.indices(shape))
    rows = shape[0] * shape[1]
    error = np.concatenate([errors.ravel() for errors in models.values()])
    return pa.table(
        {
            "model": _text(np.repeat(np.arange(len(models)), rows), list(models)),
            "series": _text(series, [f"series {number:07d}" for number in range(shape[0])]),
            "variate": _text(np.zeros(len(error), dtype=np.int64), ["target"]),
            "window": pa.array(window.astype(np.int32)),
            **score_columns(error, steps),
        }
    )


def score_columns(error: Floats, steps: float) -> dict[str, Floats]:
    """The score columns of rows in which every metric is the error, and actual values are 1."""
    observed = np.full(len(error), steps)
    return {
        "steps": observed,
        "MASE": error,
        "SQL": error,
        "WQL_numerator": error * steps,
        "WQL_denominator": observed,
        "WAPE_numerator": error * steps,
        "WAPE_denominator": observed,
        "coverage_80": np.full(len(error), 0.8),
        "interval_width": np.full(len(error), 1.0),
    }


def _text(index: NDArray[np.int64], names: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(names))


def _correlated(random: np.random.Generator, series: int, windows: int, correlation: float) -> Floats:
    """(series, windows): standard normal, each series a stationary first-order autoregression."""
    noise = random.normal(size=(series, windows))
    for window in range(1, windows):
        noise[:, window] = correlation * noise[:, window - 1] + np.sqrt(1 - correlation**2) * noise[:, window]
    return noise
