"""The ways to log that are compared, each behind the same three calls."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Values = Mapping[str, Any]


class Logger(Protocol):
    def step(self, step: int, values: Values) -> None: ...

    def epoch(self, step: int, values: Values, weights: Mapping[str, Any], predicted: Any, actual: Any) -> None: ...

    def close(self) -> None: ...


class Bare:
    """Logs nothing."""

    def step(self, step: int, values: Values) -> None: ...

    def epoch(self, step: int, values: Values, weights: Mapping[str, Any], predicted: Any, actual: Any) -> None: ...

    def close(self) -> None: ...


class Ours:
    """TrainingLogger with every sink and the readings of the machine."""

    sinks: tuple[str, ...] = ("tensorboard", "mlflow", "prometheus")

    def __init__(self, folder: Path) -> None:
        from toto_pipeline.events import TrainingLogger

        self._log = TrainingLogger(folder / "runs" / "run", sinks=self.sinks, console=False)
        self._log.__enter__()

    def step(self, step: int, values: Values) -> None:
        self._log.step(**values)

    def epoch(self, step: int, values: Values, weights: Mapping[str, Any], predicted: Any, actual: Any) -> None:
        from toto_pipeline.events import figures

        self._log.epoch(**values)
        for name, tensor in weights.items():
            self._log.histogram(name, tensor)
        self._log.figure("predicted", figures.scatter("Predicted against actual", actual, predicted, diagonal=True))

    def close(self) -> None:
        self._log.__exit__(None, None, None)


class TensorBoard:
    """torch's SummaryWriter."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def step(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def epoch(self, step: int, values: Values, weights: Mapping[str, Any], predicted: Any, actual: Any) -> None:
        self.step(step, values)
        for name, tensor in weights.items():
            self._writer.add_histogram(name, tensor, step)
        self._writer.add_figure("predicted", draw(predicted, actual), step)

    def close(self) -> None:
        self._writer.close()


class Mlflow:
    """MLflow's own fluent calls on a local SQLite store; `synchronous=False` where it is asked for."""

    def __init__(self, folder: Path, *, synchronous: bool = True) -> None:
        import mlflow

        self._synchronous = synchronous
        self._mlflow = mlflow
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.set_experiment("benchmark")
        mlflow.enable_system_metrics_logging()
        mlflow.start_run()

    def step(self, step: int, values: Values) -> None:
        plain = {name: float(value) for name, value in values.items()}
        self._mlflow.log_metrics(plain, step, synchronous=self._synchronous)

    def epoch(self, step: int, values: Values, weights: Mapping[str, Any], predicted: Any, actual: Any) -> None:
        self.step(step, values)
        self._mlflow.log_figure(draw(predicted, actual), f"predicted-{step}.png")

    def close(self) -> None:
        self._mlflow.end_run()


class Lightning:
    """Lightning's TensorBoard, MLflow and CSV loggers together."""

    def __init__(self, folder: Path) -> None:
        from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

        self._tensorboard = TensorBoardLogger(str(folder), name="tensorboard")
        self._loggers = [
            self._tensorboard,
            MLFlowLogger(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}"),
            CSVLogger(str(folder), name="csv"),
        ]

    def step(self, step: int, values: Values) -> None:
        plain = {name: float(value) for name, value in values.items()}
        for logger in self._loggers:
            logger.log_metrics(plain, step)

    def epoch(self, step: int, values: Values, weights: Mapping[str, Any], predicted: Any, actual: Any) -> None:
        self.step(step, values)
        for name, tensor in weights.items():
            self._tensorboard.experiment.add_histogram(name, tensor, step)
        self._tensorboard.experiment.add_figure("predicted", draw(predicted, actual), step)
        for logger in self._loggers:
            logger.save()

    def close(self) -> None:
        for logger in self._loggers:
            logger.finalize("success")


class Wandb:
    """wandb, offline."""

    def __init__(self, folder: Path) -> None:
        import matplotlib.pyplot  # noqa: F401 - wandb.Image compares with it and expects it imported
        import wandb

        os.environ["WANDB_SILENT"] = "true"
        self._wandb = wandb
        self._run = wandb.init(mode="offline", dir=str(folder), project="benchmark")

    def step(self, step: int, values: Values) -> None:
        self._run.log({name: float(value) for name, value in values.items()}, step=step)

    def epoch(self, step: int, values: Values, weights: Mapping[str, Any], predicted: Any, actual: Any) -> None:
        spreads = {name: self._wandb.Histogram(np.asarray(tensor.detach())) for name, tensor in weights.items()}
        figure = self._wandb.Image(draw(predicted, actual))
        self._run.log({**{name: float(value) for name, value in values.items()}, **spreads, "predicted": figure})

    def close(self) -> None:
        self._run.finish()


def draw(predicted: Any, actual: Any) -> Any:
    """The same scatter as a matplotlib figure, which is how the others take one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5))
    axes = figure.add_subplot()
    axes.scatter(actual, predicted, s=4)
    return figure


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "bare": lambda _: Bare(),
    "bare again": lambda _: Bare(),
    "TrainingLogger, all sinks": Ours,
    "TensorBoard": TensorBoard,
    "MLflow": Mlflow,
    "MLflow, asynchronous": lambda folder: Mlflow(folder, synchronous=False),
    "Lightning": Lightning,
    "wandb, offline": Wandb,
}
_PACKAGES = {"Lightning": "lightning", "wandb, offline": "wandb"}


def available() -> list[str]:
    """The names of those whose packages are installed."""
    return [name for name in LOGGERS if importlib.util.find_spec(_PACKAGES.get(name, "torch"))]
