"""The model in production, ready to forecast: what `toto_pipeline.load_champion` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toto_pipeline.errors import PipelineError
from toto_pipeline.home import Home
from toto_pipeline.promotion.frames import FrameForecaster
from toto_pipeline.promotion.model_folder import ForecastingFacts, facts_of_run, read_facts
from toto_pipeline.promotion.registry import ModelVersion, Registry

if TYPE_CHECKING:
    import pandas as pd


class Champion:
    """The champion of a registered model. Its files were verified when it was loaded."""

    def __init__(self, version: ModelVersion, forecaster: FrameForecaster) -> None:
        self._version = version
        self._forecaster = forecaster

    @property
    def version(self) -> str:
        """Its version in the model registry."""
        return self._version.version

    @property
    def run(self) -> str:
        """The id of the retraining that made it."""
        return self._version.run

    @property
    def metrics(self) -> Mapping[str, float]:
        """Its scores in the evaluation before it was promoted."""
        return self._version.metrics

    @property
    def facts(self) -> ForecastingFacts:
        """The variates, frequency, season, context and horizon that it was trained with."""
        return self._forecaster.facts

    def forecast(
        self, frame: pd.DataFrame, horizon: int | None = None, *, settings: Sequence[str] = ()
    ) -> pd.DataFrame:
        """Quantile forecasts of the steps behind the end of every series of `frame`.

        Args:
            frame: long (id, timestamp, and a column for each variate, `target` where there is one), or wide (timestamp,
                and a column for each series).
            horizon: steps ahead; by default what the model was trained for.
            settings: of `data` and `preparation`, as for `--set`, such as `data.duplicates=mean`.

        Returns:
            A row for each series, variate and step: id, variate, timestamp, and the quantiles 0.1 to 0.9.

        Raises:
            ForecastInputError: the frame cannot be used; names the column and the row.
        """
        return self._forecaster.forecast(frame, horizon, settings)

    def __repr__(self) -> str:
        return f"<Champion version {self.version}, from run {self.run}>"


def load_champion(model: str = "toto", *, home: Home | Path | str | None = None, device: str = "auto") -> Champion:
    """The champion of a registered model.

    Args:
        model: name of the registered model.
        home: where the registry is; by default $TOTO_HOME, else ./.toto.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        PipelineError: nothing has been promoted yet.
        RegistryError: its files are damaged, or the registry cannot be reached.
    """
    from toto_pipeline.promotion.pyfunc import open_folder

    place = _home(home)
    version = find_champion(place, model)
    return Champion(version, open_folder(version.path, facts_of(version, place), device=device))


def find_champion(home: Home, model: str) -> ModelVersion:
    """The champion's version, its files verified.

    Raises:
        PipelineError: there is none.
        RegistryError: its files are damaged, or the registry cannot be reached.
    """
    version = Registry(home, model).champion()
    if version is None:
        raise PipelineError(
            f"There is no champion of {model!r} in {home.root}. Expected: a promoted model. What to do: run "
            "`toto-pipeline retrain`, or name another home or model."
        )
    return version


def facts_of(version: ModelVersion, home: Home) -> ForecastingFacts:
    """How a version is to be used: as its folder says, or the settings of its run where it was registered before."""
    return read_facts(version.path) or facts_of_run(home.run(version.run))


def _home(home: Home | Path | str | None) -> Home:
    if home is None:
        return Home.from_environment()
    return home if isinstance(home, Home) else Home(Path(home).expanduser().absolute())
