"""The callbacks of a training run: which ones it has, in which order they are asked, and how to add one.

    best                tracks the best epoch
    non_finite          ends the run on losses that are not finite            stopping.py
    early_stopping      ends it when the metric no longer gets better         stopping.py   where a patience is set
    plateau             lowers the learning rate then                         plateau.py    where a patience is set
    statistics          moving mean, slope and best of each metric            metric_statistics.py
    overfitting, loss_plateau, divergence, oscillation, gradient_explosion    trends.py     warn, and change nothing
    package.module:Class   those of `training.callbacks`

To add one, derive a class from `Callback` and name it in the settings, with the arguments of its constructor:

    training:
      callbacks:
        my_callbacks:StopAtLoss:
          loss: 0.25

Python must find the module: it is installed, or it lies in the folder where the run was started, which is on the
import path because the training process is started there with `python -m`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

from toto_pipeline.errors import ConfigError
from toto_pipeline.settings.training import Mode, TrainingSettings
from toto_pipeline.training.actions import (
    Action,
    Callback,
    EpochResult,
    Record,
    ReduceLearningRate,
    StepResult,
    Stop,
    Warn,
    cost,
)
from toto_pipeline.training.metric_statistics import MetricStatistics
from toto_pipeline.training.plateau import ReduceOnPlateau
from toto_pipeline.training.stopping import EarlyStopping, NonFiniteGuard
from toto_pipeline.training.trends import (
    Divergence,
    GradientExplosion,
    LossPlateau,
    Oscillation,
    Overfitting,
)

__all__ = [
    "Action",
    "BestTracker",
    "Callback",
    "EpochResult",
    "Record",
    "ReduceLearningRate",
    "StepResult",
    "Stop",
    "Warn",
    "build_callbacks",
]


class BestTracker(Callback):
    """The best epoch so far by `metric`; the first of equals.

    An epoch with a loss or a metric that is not finite is never the best: no checkpoint is kept of it.
    """

    def __init__(self, metric: str = "validation_loss", mode: Mode = "min") -> None:
        self.metric = metric
        self.mode = mode
        self.best: EpochResult | None = None

    def after_epoch(self, result: EpochResult) -> list[Action]:
        needed = (result.train_loss, result.validation_loss, self._cost(result))
        if all(map(math.isfinite, needed)) and (self.best is None or self._cost(result) < self._cost(self.best)):
            self.best = result
        return []

    def is_best(self, result: EpochResult) -> bool:
        """Whether `result`, which the tracker has seen, is the best so far."""
        return self.best is not None and self.best.epoch == result.epoch

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else self.best.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else EpochResult.from_json(state["best"])

    def _cost(self, result: EpochResult) -> float:
        return cost(result.value(self.metric), self.mode)


def build_callbacks(settings: TrainingSettings) -> dict[str, Callback]:
    """The callbacks that the settings ask for by name, in the order in which they are asked.

    Raises:
        ConfigError: a class of `training.callbacks` cannot be had or does not take the arguments given.
    """
    user = {name: _user_callback(name, arguments) for name, arguments in settings.callbacks.items()}
    return {**_policies(settings), **_observers(settings), **user}


def _policies(settings: TrainingSettings) -> dict[str, Callback]:
    callbacks: dict[str, Callback] = {
        "best": BestTracker(settings.checkpoints.metric, settings.checkpoints.mode),
        "non_finite": NonFiniteGuard(settings.max_skipped_steps),
    }
    if settings.early_stopping.patience is not None:
        callbacks["early_stopping"] = EarlyStopping(settings.early_stopping)
    if settings.plateau.patience is not None:
        callbacks["plateau"] = ReduceOnPlateau(settings.plateau)
    return callbacks


def _observers(settings: TrainingSettings) -> dict[str, Callback]:
    trends = settings.trends
    return {
        "statistics": MetricStatistics(trends.window, _modes(settings)),
        "overfitting": Overfitting(trends),
        "loss_plateau": LossPlateau(trends),
        "divergence": Divergence(trends),
        "oscillation": Oscillation(trends),
        "gradient_explosion": GradientExplosion(trends),
    }


def _modes(settings: TrainingSettings) -> dict[str, Mode]:
    """What the settings say about which direction of a metric is better; that of the checkpoints counts most."""
    watched = (settings.early_stopping, settings.plateau, settings.checkpoints)
    return {each.metric: each.mode for each in watched}


def _user_callback(name: str, arguments: Mapping[str, Any]) -> Callback:
    kind = _find_class(name)
    signature = inspect.signature(kind)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"training.callbacks: {name}: {error}. Expected the arguments of {name}{signature}."
        ) from error
    try:
        return kind(**arguments)
    except Exception as error:
        raise ConfigError(
            f"training.callbacks: {name}: its constructor raised {type(error).__name__}: {error}. "
            f"Expected arguments that it takes; found {dict(arguments)}."
        ) from error


def _find_class(name: str) -> type[Callback]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"training.callbacks: {name}: importing {module_name} raised {type(error).__name__}: {error}. Expected a "
            "module that is installed or lies in the folder where the run is started."
        ) from error
    kind = getattr(module, attribute, None)
    if not (isinstance(kind, type) and issubclass(kind, Callback)):
        found = f"{attribute} is {kind!r}" if hasattr(module, attribute) else f"{module_name} has no {attribute}"
        raise ConfigError(
            f"training.callbacks: {name}: {found}. Expected a class derived from {__name__}.{Callback.__name__}."
        )
    return kind
