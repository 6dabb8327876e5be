"""champion_forecast and forecast_accuracy: the model in production at work, and whether it keeps what it promised."""

import math
from typing import TYPE_CHECKING, Any

import dagster as dg
import pydantic

from toto_pipeline.assets.common import OWNERS, picture, table, upstream_fact, user_errors
from toto_pipeline.automation.drift import ACCURACY_ASSET, DRIFT, VERSION
from toto_pipeline.config import RetrainSettings
from toto_pipeline.resources import HomeResource
from toto_pipeline.settings.base import fingerprint

if TYPE_CHECKING:
    from toto_pipeline.promotion.accuracy import Accuracy
    from toto_pipeline.promotion.forecasts import KeptForecast

_SHOWN = ("MASE", "SQL", "WQL", "WAPE", "coverage_80")
_PREVIEW_ROWS = 10


def forecast_assets(settings: RetrainSettings) -> list[dg.AssetsDefinition]:
    return [_champion_forecast(settings), _forecast_accuracy(settings)]


def _champion_forecast(settings: RetrainSettings) -> dg.AssetsDefinition:
    config_cls = _config(
        "ChampionForecastConfig",
        model_name=(settings.promotion.model_name, "Name of the registered model in MLflow."),
        device=(settings.evaluation.device, "auto, cpu, cuda or cuda:N."),
        threads=(settings.evaluation.threads, "CPU threads used for forecasting."),
        batch_size=(settings.evaluation.batch_size, "Series forecast at once."),
        pictures=(settings.evaluation.pictures, "Series to draw: the first ones."),
        horizon=(0, "Steps to forecast. 0: what the champion was trained for."),
    )

    @dg.asset(
        group_name="forecasts",
        kinds={"parquet", "pytorch"},
        owners=OWNERS,
        deps=["series_snapshot", "promoted_checkpoint"],
        description="Quantile forecasts of every series of the newest snapshot by the model in production, kept as "
        "Parquet with the champion's version and the data's fingerprint, so that they can be scored later.",
    )
    def champion_forecast(
        context: dg.AssetExecutionContext, config: config_cls, home: HomeResource
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.promotion.forecasts import make_forecast

        snapshot = upstream_fact(context, "series_snapshot", "fingerprint")
        values = config.model_dump()
        model, horizon = values.pop("model_name"), values.pop("horizon") or None
        with user_errors():
            made = make_forecast(home.open(), snapshot, model=model, horizon=horizon, **values)
        return dg.MaterializeResult(data_version=dg.DataVersion(made.id), metadata=_forecast_metadata(made))

    return champion_forecast


def _forecast_metadata(made: "KeptForecast") -> dict[str, Any]:
    return {
        "forecast": made.id,
        VERSION: made.version,
        "trained_by": made.run,
        "snapshot": made.snapshot,
        "data_to": made.end,
        "horizon": made.horizon,
        "frequency": made.frequency,
        "series": made.series,
        "dagster/row_count": made.rows,
        "preview": table(_preview(made)),
        **{f"picture_{number}": picture(file) for number, file in enumerate(made.pictures, start=1)},
        "file": dg.MetadataValue.path(str(made.table)),
    }


def _preview(made: "KeptForecast") -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(made.table, pre_buffer=False) as parquet:
        first: list[dict[str, Any]] = next(parquet.iter_batches(_PREVIEW_ROWS)).to_pylist()
    return first


def _forecast_accuracy(settings: RetrainSettings) -> dg.AssetsDefinition:
    config_cls = _config(
        "ForecastAccuracyConfig",
        model_name=(settings.promotion.model_name, "Name of the registered model in MLflow."),
        metric=(settings.promotion.metric, "The metric whose drift is told: MASE, SQL, WQL or WAPE."),
    )

    @dg.asset(
        key=ACCURACY_ASSET,
        group_name="forecasts",
        kinds={"python"},
        owners=OWNERS,
        deps=["series_snapshot", "champion_forecast"],
        description="How good earlier forecasts were, now that actual values have come: MASE, SQL, WQL, WAPE and 80 % "
        "coverage beside what the evaluation promised. Drift is the one divided by the other; 1 is as promised.",
    )
    def forecast_accuracy(
        context: dg.AssetExecutionContext, config: config_cls, home: HomeResource
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.data.snapshot import open_snapshot
        from toto_pipeline.errors import ConfigError
        from toto_pipeline.evaluation.metrics import METRICS
        from toto_pipeline.promotion.accuracy import score_forecasts, settled
        from toto_pipeline.promotion.forecasts import kept_forecasts

        data = upstream_fact(context, "series_snapshot", "fingerprint")
        with user_errors():
            if config.metric not in METRICS:
                raise ConfigError(f"metric: there is no {config.metric!r}. Expected one of: {', '.join(METRICS)}.")
            opened = home.open()
            kept = kept_forecasts(opened, config.model_name)
            scored = score_forecasts(kept, open_snapshot(opened.snapshots / data))
        newest = settled(scored, kept[0].version) if kept else None
        identity = [data, config.metric, [one.forecast.id for one in scored]]
        return dg.MaterializeResult(
            data_version=dg.DataVersion(fingerprint(identity)),
            metadata={
                "snapshot": data,
                "metric": config.metric,
                "forecasts": len(kept),
                "scored": len(scored),
                **_headline(newest, scored, config.metric),
                "scores": table([_row(one, config.metric) for one in scored]),
            },
        )

    return forecast_accuracy


def _headline(newest: "Accuracy | None", scored: "list[Accuracy]", metric: str) -> dict[str, Any]:
    """The numbers that the UI plots: of the newest forecast that enough is known of."""
    if newest is None:
        return {"result": _why_nothing(scored)}
    drift = newest.drift(metric)
    numbers = {
        **{name: newest.scores[name] for name in _SHOWN},
        **{f"promised_{name}": newest.forecast.promised.get(name, math.nan) for name in _SHOWN},
        DRIFT: drift,
        "known_share": newest.known_share,
    }
    told = "nothing was promised to compare with" if math.isnan(drift) else f"{drift:.2f} times what was promised"
    return {
        "result": f"{metric} {newest.scores[metric]:.4g} of forecast {newest.forecast.id} by version "
        f"{newest.forecast.version}: {told}.",
        "forecast": newest.forecast.id,
        VERSION: newest.forecast.version,
        **{name: value for name, value in numbers.items() if math.isfinite(value)},
    }


def _why_nothing(scored: "list[Accuracy]") -> str:
    if not scored:
        return "Nothing to score yet: no actual values have come for the steps of an earlier forecast."
    share = max(one.known_share for one in scored)
    return (
        f"Too little to tell a drift yet: of no forecast by the present champion are enough actual values known "
        f"(at most {100 * share:.0f} % of a forecast's)."
    )


def _row(one: "Accuracy", metric: str) -> dict[str, Any]:
    return {
        "forecast": one.forecast.id,
        VERSION: one.forecast.version,
        "data_to": one.forecast.end,
        "known_steps": f"{one.known} of {one.forecast.rows}",
        **{name: _rounded(one.scores[name]) for name in _SHOWN},
        **{f"promised_{name}": _rounded(one.forecast.promised.get(name, math.nan)) for name in _SHOWN},
        DRIFT: _rounded(one.drift(metric)),
    }


def _rounded(value: float) -> float | str:
    return round(value, 4) if math.isfinite(value) else "undefined"


def _config(name: str, **fields: tuple[Any, str]) -> Any:
    """A config class of fields with their defaults and descriptions."""
    described: dict[str, Any] = {
        field: (type(value), pydantic.Field(default=value, description=text)) for field, (value, text) in fields.items()
    }
    return pydantic.create_model(name, __base__=dg.Config, **described)
