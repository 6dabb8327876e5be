"""`toto-pipeline forecast`: the champion's forecasts of your series."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from toto_pipeline.commands.shared import Json, absolute_source, console, examples, home_of, print_json, table
from toto_pipeline.home import Home

if TYPE_CHECKING:
    from toto_pipeline.config import RetrainSettings
    from toto_pipeline.forecasting import SeriesForecast
    from toto_pipeline.promotion.registry import ModelVersion

SHOWN_SERIES = 3
DRAWN_SERIES = 12


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "toto-pipeline forecast --data metrics/ --horizon 96",
            "toto-pipeline forecast --data 'x/*.csv' --horizon 48 --output f.csv",
            "toto-pipeline forecast --data x.csv --horizon 48 --pictures pictures/",
            "toto-pipeline forecast --data x.csv --horizon 24 --set data.duplicates=mean",
            "toto-pipeline forecast --data x.parquet --horizon 12 --json",
        )
    )(forecast)


def forecast(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="File, folder or glob of CSV or Parquet; or 'sample'.")],
    horizon: Annotated[int, typer.Option(min=1, help="Steps to forecast behind the end of each series.")],
    output: Annotated[Path | None, typer.Option(help="Write all of it to this .csv or .parquet file.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help=f"Draw the first {DRAWN_SERIES} series as PNG files into this folder.")
    ] = None,
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
    from toto_pipeline.promotion.champion import find_champion

    champion = find_champion(home, model)
    settings = _settings(home, champion, data, horizon, assignments or [])
    found = _forecasts(home, champion, settings, device)
    if pictures is not None:
        from toto_pipeline.forecasting import drawn

        found = drawn(found, pictures, DRAWN_SERIES)
    if output is not None:
        from toto_pipeline.forecasting import check_format, write_forecasts

        check_format(output)
        count = write_forecasts(found, output)
        if json:
            print_json({"output": str(output.absolute()), "series": count, "horizon": horizon})
        else:
            console().print(f"{count} series, {horizon} steps each: {output}", markup=False, soft_wrap=True)
    elif json:
        print_json([_plain(one) for one in found])
    else:
        _show(found)
    if pictures is not None and not json:
        console().print(f"Pictures: {pictures}", markup=False, soft_wrap=True)


def _settings(home: Home, champion: ModelVersion, data: str, horizon: int, assignments: list[str]) -> RetrainSettings:
    """The settings that a retraining of this data would have, with what the champion was trained with."""
    from toto_pipeline.promotion.champion import facts_of
    from toto_pipeline.promotion.frames import forecast_settings

    source = f"data.source={orjson.dumps(absolute_source(data)).decode()}"
    return forecast_settings(facts_of(champion, home), horizon, [source], assignments)


def _forecasts(home: Home, champion: ModelVersion, settings: RetrainSettings, device: str) -> Iterator[SeriesForecast]:
    """Read the source into a snapshot of its own, so that retraining's snapshots stay the newest of their sources."""
    from toto_pipeline.data.snapshot import take_snapshot
    from toto_pipeline.forecasting import forecast as forecast_series

    home.prepare()
    with tempfile.TemporaryDirectory(dir=home.cache, prefix="forecast-") as scratch:
        snapshot = take_snapshot(settings.data, Home(Path(scratch)).prepare())
        from toto_pipeline.models.device import choose_device
        from toto_pipeline.models.families import load_forecaster

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
