"""A registered model as MLflow's `python_function`: `mlflow.pyfunc.load_model`, `mlflow models serve`.

The file `MLmodel` of a registered version names this module, so MLflow imports it and calls `_load_pyfunc` with the
folder. It reads JSON and safetensors; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toto_pipeline.promotion.frames import FrameForecaster
from toto_pipeline.promotion.model_folder import ForecastingFacts, read_facts

if TYPE_CHECKING:
    import pandas as pd


class ForecastingModel:
    """What MLflow calls: `predict(frame, params)`."""

    def __init__(self, forecaster: FrameForecaster) -> None:
        self._forecaster = forecaster

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Quantile forecasts of a long frame of id, timestamp and values.

        Args:
            params: `horizon`, the steps to forecast; by default what the model was trained for.

        Raises:
            ForecastInputError: the frame cannot be used.
        """
        return self._forecaster.forecast(frame, (params or {}).get("horizon"))


def open_folder(folder: Path, facts: ForecastingFacts | None = None, *, device: str = "auto") -> FrameForecaster:
    """The model of a registered version's folder.

    Args:
        facts: how it is to be used, where the folder does not say.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        WeightsError: the folder holds no such model.
        ConfigError: there is no such device.
    """
    from toto_pipeline.models.device import choose_device
    from toto_pipeline.models.families import load_forecaster

    known = read_facts(folder) or facts or ForecastingFacts()
    return FrameForecaster(load_forecaster(folder, device=str(choose_device(device))), known)


def _load_pyfunc(path: str) -> ForecastingModel:
    """Called by MLflow."""
    return ForecastingModel(open_folder(Path(path)))
