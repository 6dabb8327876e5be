"""AutoETS and AutoTheta of Nixtla's `statsforecast`, fitted anew to every history, in processes of their own.

`statsforecast` is an optional package. Its models know neither missing values nor several variates: gaps are filled
along a straight line, what is missing at the end is forecast too and cut off, and each variate is a series of its
own. A history that the package cannot fit (too few values, or a fit that is not finite) is forecast by the seasonal
naive. The median is the package's point forecast; the other quantiles are the ends of its 20, 40, 60 and 80 %
intervals.

Fitting takes from milliseconds to seconds a series, so there is a budget of time. Who exceeds it is stopped.

Shapes: B batch, V variates, T steps of history, H horizon, Q levels.
"""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import os
import signal
import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.errors import ConfigError
from toto_pipeline.models.baselines import SeasonalNaive
from toto_pipeline.models.forecaster import QUANTILES

LEVELS = (20, 40, 60, 80)
"""Central intervals in percent whose ends are the quantiles beside the median."""
_LARGEST = float(np.finfo(np.float32).max)
_PR_SET_PDEATHSIG = 1

Floats = NDArray[np.float64]


class OutOfTimeError(Exception):
    """A baseline did not finish within its budget; the evaluation goes on without it."""


class StatisticalBaseline:
    """A model of `statsforecast` as a `Forecaster`. Close it: its processes live until then.

    Args:
        model: AutoETS or AutoTheta.
        season: steps in a season.
        seconds: how long all its forecasts together may take, the start of its processes included.
        processes: how many fit at once; as many as there are processors if unset.

    Raises:
        ConfigError: `statsforecast` is not installed.
    """

    def __init__(self, model: str, season: int, *, seconds: float, processes: int | None = None) -> None:
        if importlib.util.find_spec("statsforecast") is None:
            raise ConfigError(
                f"evaluation.statistical_baselines: {model} needs the package statsforecast, which is not installed. "
                "Expected: the extra `statistics` of this package. What to do: pip install "
                "'toto-pipeline[statistics]', or leave the baseline out."
            )
        self.model = model
        self.season = season
        self.seconds = seconds
        self.processes = processes or len(os.sched_getaffinity(0))
        self._left = seconds
        self._pool: Any = None

    @property
    def name(self) -> str:
        return self.model

    @property
    def history_length(self) -> int:
        """Steps of history it wants: fewer hold no season."""
        return 2 * self.season

    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        """As `Forecaster.forecast`.

        Raises:
            OutOfTimeError: the budget is spent; the processes are stopped.
        """
        started = time.monotonic()
        batch, variates, steps = history_BVT.shape
        series = history_BVT.reshape(batch * variates, steps)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch and a GPU's state
            self._pool = context.Pool(self.processes, _die_with, (os.getpid(),))
        asked = self._pool.starmap_async(_fit, [(self.model, self.season, row, horizon) for row in series], 1)
        try:
            answers = asked.get(timeout=max(self._left, 0.0))
        except multiprocessing.TimeoutError:
            self.close()
            raise OutOfTimeError(f"{self.model} exceeded evaluation.baseline_seconds ({self.seconds:g} s)") from None
        self._left -= time.monotonic() - started
        forecast: NDArray[np.float32] = np.stack(answers).reshape(batch, variates, horizon, len(QUANTILES))
        return forecast

    def close(self) -> None:
        """Stop the processes, whatever they do."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None


def _die_with(parent: int) -> None:
    """Have this process killed when the one that started it dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before


def _fit(model: str, season: int, history_T: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
    """(H, Q) of one series."""
    observed = np.flatnonzero(~np.isnan(history_T))
    if len(observed):
        first, last = int(observed[0]), int(observed[-1])
        steps = np.arange(first, last + 1)
        values = np.interp(steps, observed, history_T[observed].astype(np.float64))
        answer = _asked(model, season, values, horizon + len(history_T) - 1 - last)
        if answer is not None:
            return answer[-horizon:]
    fallback: NDArray[np.float32] = SeasonalNaive(season).forecast(history_T[None, None], horizon)[0, 0]
    return fallback


def _asked(model: str, season: int, values_T: Floats, horizon: int) -> NDArray[np.float32] | None:
    """(H, Q) as `statsforecast` gives it; None where it cannot fit."""
    from statsforecast import models

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            told = getattr(models, model)(season_length=season).forecast(y=values_T, h=horizon, level=list(LEVELS))
    except (NotImplementedError, IndexError, ValueError, ZeroDivisionError, np.linalg.LinAlgError):
        return None  # what it raises for a history that is too short; see the module's docstring
    below = [told[f"lo-{level}"] for level in reversed(LEVELS)]
    above = [told[f"hi-{level}"] for level in LEVELS]
    answer = np.sort(np.stack([*below, told["mean"], *above], axis=-1).astype(np.float64), axis=-1)
    if not np.isfinite(answer).all():
        return None
    clipped: NDArray[np.float32] = np.clip(answer, -_LARGEST, _LARGEST).astype(np.float32)
    return clipped
