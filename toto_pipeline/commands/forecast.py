"""`toto-pipeline forecast`: the champion's forecasts of your series."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from toto_pipeline.commands.history import find_champion
from toto_pipeline.commands.shared import Json, absolute_source, console, examples, home_of, print_json, table
from toto_pipeline.home import Home

if TYPE_CHECKING:
    from toto_pipeline.config import RetrainSettings
    from toto_pipeline.forecasting import SeriesForecast
    from toto_pipeline.promotion.registry import ModelVersion

SHOWN_SERIES = 3


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "toto-pipeline forecast --data metrics/ --horizon 96",
            "toto-pipeline forecast --data 'x/*.csv' --horizon 48 --output f.csv",
            "toto-pipeline forecast --data x.csv --horizon 24 --set data.duplicates=mean",
            "toto-pipeline forecast --data x.parquet --horizon 12 --json",
        )
    )(forecast)


def forecast(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="File, folder or glob of CSV or Parquet; or 'sample'.")],
    horizon: Annotated[int, typer.Option(min=1, help="Steps to forecast behind the end of each series.")],
    output: Annotated[Path | None, typer.Option(help="Write all of it to this .csv or .parquet file.")] = None,
    model: Annotated[str, typer.Option(help="Name of the registered model.")] = "toto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of data or preparation; may be given often."),
    ] = None,
    json: Json = False,
) -> None:
    """Forecast every series of a data source with the champion, as quantiles with timestamps."""
    home = home_of(context)
    champion = find_champion(context, model)
    settings = _settings(home, champion, data, horizon, assignments or [])
    if output is not None:
        from toto_pipeline.forecasting import check_format, write_forecasts

        check_format(output)
        count = write_forecasts(_forecasts(home, champion, settings, device), output)
        if json:
            print_json({"output": str(output.absolute()), "series": count, "horizon": horizon})
        else:
            console().print(f"{count} series, {horizon} steps each: {output}", markup=False, soft_wrap=True)
    elif json:
        print_json([_plain(one) for one in _forecasts(home, champion, settings, device)])
    else:
        _show(_forecasts(home, champion, settings, device))


def _settings(home: Home, champion: ModelVersion, data: str, horizon: int, assignments: list[str]) -> RetrainSettings:
    """The settings that a retraining of this data would have, with the context that the champion was trained with."""
    from toto_pipeline.config import load_settings
    from toto_pipeline.runs import CONFIG_FILE, read_json

    config, _ = read_json(home.run(champion.run) / CONFIG_FILE)
    trained = ((config or {}).get("preparation") or {}).get("context_length")
    given = [
        f"data.source={orjson.dumps(absolute_source(data)).decode()}",
        "data.constant_series=keep",
        "data.vanished=accept",
        *([f"preparation.context_length={trained}"] if trained else []),
        *assignments,
        f"preparation.horizon={horizon}",
    ]
    return load_settings(None, None, given)


def _forecasts(home: Home, champion: ModelVersion, settings: RetrainSettings, device: str) -> Iterator[SeriesForecast]:
    """Read the source into a snapshot of its own, so that retraining's snapshots stay the newest of their sources."""
    from toto_pipeline.data.snapshot import take_snapshot
    from toto_pipeline.forecasting import forecast as forecast_series

    home.prepare()
    with tempfile.TemporaryDirectory(dir=home.cache, prefix="forecast-") as scratch:
        snapshot = take_snapshot(settings.data, Home(Path(scratch)).prepare())
        from toto_pipeline.models.device import choose_device
        from toto_pipeline.models.toto2 import load_forecaster

        forecaster = load_forecaster(Path(champion.path), device=str(choose_device(device)))
        yield from forecast_series(
            snapshot, forecaster, settings.preparation, batch_size=settings.evaluation.batch_size
        )


def _plain(one: SeriesForecast) -> dict[str, Any]:
    from toto_pipeline.models.forecaster import QUANTILES

    quantiles = {f"{level:.1f}": one.quantiles_HQ[:, index].tolist() for index, level in enumerate(QUANTILES)}
    return {"id": one.id, "variate": one.variate, "timestamps": _times(one), "quantiles": quantiles}


def _times(one: SeriesForecast) -> list[str]:
    return [str(time) for time in one.timestamps.astype("datetime64[s]")]


def _show(forecasts: Iterator[SeriesForecast]) -> None:
    """The first series as a table; the others are counted."""
    out = console()
    numbers = ("10 %", "median", "90 %")
    view = table("Series", "Variate", "Timestamp", *numbers, right=numbers)
    count = 0
    for count, one in enumerate(forecasts, start=1):
        if count <= SHOWN_SERIES:
            for time, quantiles in zip(_times(one), one.quantiles_HQ, strict=True):
                view.add_row(one.id, one.variate, time, *(f"{quantiles[index]:.5g}" for index in (0, 4, 8)))
            view.add_section()
    out.print(view)
    if count > SHOWN_SERIES:
        out.print(f"{count - SHOWN_SERIES} more series. Write them all with --output forecast.csv", style="dim")
