"""Forecasts that the champion made of a snapshot, kept in the home until the actual values have come.

    forecasts/<id>/forecasts.parquet   id, variate, timestamp, and the quantiles 0.1 to 0.9
                   pictures/           the first series, drawn
                   forecast.json       which model, which data, and what the model's evaluation promised

The id follows from model, data and horizon, so the same forecast is made once. The folder appears whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toto_pipeline.checkpoints.store import publish_folder
from toto_pipeline.data.snapshot import Snapshot, open_snapshot
from toto_pipeline.errors import DataError, StorageError
from toto_pipeline.events.schema import number, spell_out
from toto_pipeline.home import Home
from toto_pipeline.promotion.champion import facts_of, find_champion
from toto_pipeline.promotion.frames import forecast_settings
from toto_pipeline.promotion.model_folder import ForecastingFacts
from toto_pipeline.settings.base import fingerprint

if TYPE_CHECKING:
    from toto_pipeline.settings.data import PreparationSettings

TABLE_FILE, FACTS_FILE, PICTURES = "forecasts.parquet", "forecast.json", "pictures"
PROMISED = ("MASE", "SQL", "WQL", "WAPE", "coverage_80")


@dataclass(frozen=True, kw_only=True)
class KeptForecast:
    """A forecast and where it came from.

    Attributes:
        model, version, run: the champion that made it.
        snapshot: fingerprint of the data; end: its last timestamp, ISO 8601.
        frequency, irregular, season: how the data were put on the grid, and the season that scores are scaled by.
        series, rows: how many series (times variates), and rows of the table.
        promised: scores of the model in the evaluation before it was promoted.
        created: ISO 8601, UTC.
    """

    folder: Path
    model: str
    version: str
    run: str
    snapshot: str
    end: str
    horizon: int
    frequency: str
    irregular: str
    season: int
    series: int
    rows: int
    promised: Mapping[str, float]
    created: str

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def table(self) -> Path:
        return self.folder / TABLE_FILE

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.folder / PICTURES).glob("*.png"))


def make_forecast(
    home: Home,
    snapshot: str,
    *,
    model: str = "toto",
    horizon: int | None = None,
    device: str = "auto",
    threads: int = 1,
    batch_size: int = 64,
    pictures: int = 6,
) -> KeptForecast:
    """Forecast every series of a snapshot with the champion, and keep it; one that was made before is returned.

    Args:
        snapshot: its fingerprint.
        horizon: steps; by default what the model was trained for.

    Raises:
        PipelineError: there is no champion, or its files are damaged.
        DataError: the snapshot is not there, or its series have other variates than the model.
    """
    version = find_champion(home, model)
    data = open_snapshot(home.snapshots / snapshot)
    facts = facts_of(version, home)
    _check_variates(facts, data)
    preparation = _preparation(facts, data, facts.horizon if horizon is None else horizon)
    name = fingerprint([model, version.version, version.run, snapshot, preparation.model_dump(mode="json")])[:16]
    folder = home.forecasts / name
    if (folder / FACTS_FILE).is_file():
        return read_forecast(folder)
    kept = KeptForecast(
        folder=folder,
        model=model,
        version=version.version,
        run=version.run,
        snapshot=snapshot,
        end=data.manifest.end,
        horizon=preparation.horizon,
        frequency=str(preparation.frequency),
        irregular=preparation.irregular,
        season=facts.season or _default_season(str(preparation.frequency)),
        series=0,
        rows=0,
        promised={name: version.metrics[name] for name in PROMISED if name in version.metrics},
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )

    def fill(new: Path) -> None:
        from toto_pipeline.forecasting import drawn, forecast, write_forecasts

        forecaster = _load(version.path, device, threads)
        found = forecast(data, forecaster, preparation, batch_size=batch_size)
        series = write_forecasts(drawn(found, new / PICTURES, pictures), new / TABLE_FILE)
        _write(new, replace(kept, series=series, rows=series * preparation.horizon))

    publish_folder(folder, fill)
    return read_forecast(folder)


def kept_forecasts(home: Home, model: str) -> list[KeptForecast]:
    """The forecasts of a registered model's champions, newest first."""
    folders = [file.parent for file in home.forecasts.glob(f"*/{FACTS_FILE}") if not file.parent.name.startswith(".")]
    found = [one for one in map(read_forecast, folders) if one.model == model]
    return sorted(found, key=lambda one: one.created, reverse=True)


def read_forecast(folder: Path) -> KeptForecast:
    """
    Raises:
        StorageError: the folder holds no forecast that can be read.
    """
    file = folder / FACTS_FILE
    try:
        values = json.loads(file.read_bytes())
        known = {one.name: values[one.name] for one in fields(KeptForecast) if one.name != "folder"}
        promised = {name: number(value) for name, value in known.pop("promised").items()}
        return KeptForecast(folder=folder, promised=promised, **known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{file}: does not describe a forecast ({type(error).__name__}: {error}). Expected: the file that was "
            "written with it. What to do: delete the folder; the forecast can be made again."
        ) from error


def _write(folder: Path, forecast: KeptForecast) -> None:
    values: dict[str, Any] = asdict(forecast)
    values.pop("folder")
    (folder / FACTS_FILE).write_text(json.dumps(spell_out(values), indent=2) + "\n", encoding="utf-8")


def _load(folder: Path, device: str, threads: int) -> Any:
    import torch

    from toto_pipeline.models.device import choose_device
    from toto_pipeline.models.families import load_forecaster

    torch.set_num_threads(threads)
    return load_forecaster(folder, device=str(choose_device(device)))


def _preparation(facts: ForecastingFacts, snapshot: Snapshot, horizon: int) -> PreparationSettings:
    """How the model's training data were prepared, with the frequency spelled out."""
    preparation = forecast_settings(facts, horizon).preparation
    frequency = preparation.frequency or snapshot.manifest.frequency or facts.frequency
    return preparation.model_copy(update={"frequency": frequency})


def _default_season(frequency: str) -> int:
    from toto_pipeline.data.frequency import default_season, parse_frequency

    return default_season(parse_frequency(frequency))


def _check_variates(facts: ForecastingFacts, snapshot: Snapshot) -> None:
    found = snapshot.manifest.variates
    if facts.variates and set(found) != set(facts.variates):
        raise DataError(
            f"its variates are {', '.join(found)}",
            expected=f"those that the champion was trained with: {', '.join(facts.variates)}",
            remedy="retrain on this data, or correct data.source or data.value_columns",
            file=snapshot.manifest.source,
        )
