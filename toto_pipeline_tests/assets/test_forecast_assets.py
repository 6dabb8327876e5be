"""The assets that use the champion, with real data, a real registry and a tiny real model; and the drift's sensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from toto_pipeline.automation.drift import ACCURACY_ASSET, retrain_on_drift
from toto_pipeline.config import RetrainSettings, load_settings
from toto_pipeline.definitions import build_definitions
from toto_pipeline.home import HOME_VARIABLE, Home
from toto_pipeline.monitoring.mlflow_connection import URI_VARIABLE
from toto_pipeline_tests.conftest import HORIZON, make_training_data, write_series
from toto_pipeline_tests.fixtures.champion import promote_tiny_model
from toto_pipeline_tests.fixtures.mlflow_store import make_empty_database


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_series(tmp_path / "input")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    make_empty_database(tmp_path / "home")
    home = Home(tmp_path / "home").prepare()
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    return home


def run_forecast(source: Path, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = build_definitions(load_settings(assignments=[f"data.source={source}"])).resolve_job_def("forecast")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (materialization,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in materialization.metadata.items()}


@pytest.mark.slow
def test_forecasts_are_made_kept_and_scored_when_the_values_have_come(
    home: Home, source: Path, instance: dg.DagsterInstance
) -> None:
    without = run_forecast(source, instance)
    (failure,) = [event for event in without.all_events if event.is_step_failure]
    assert failure.step_key == "champion_forecast"
    told = failure.step_failure_data.user_failure_data
    assert told is not None
    assert "There is no champion" in str(told.description)
    assert "What to do: run `toto-pipeline retrain`" in str(told.description)

    promote_tiny_model(home, make_training_data(home, source))
    first = run_forecast(source, instance)
    assert first.success
    made = metadata(first, "champion_forecast")
    assert (made["champion_version"], made["horizon"], made["series"]) == ("1", HORIZON, 3)
    assert made["dagster/row_count"] == 3 * HORIZON
    assert made["data_to"] == "2026-01-25T23:00:00"
    assert made["picture_3"].startswith("![](data:image/png;base64,")
    assert len(made["preview"].records) == 10
    table = pd.read_parquet(made["file"])
    assert table.timestamp.min() == pd.Timestamp("2026-01-26")
    nothing = metadata(first, ACCURACY_ASSET)
    assert nothing["scored"] == 0
    assert nothing["result"].startswith("Nothing to score yet")
    assert "drift" not in nothing

    assert metadata(run_forecast(source, instance), "champion_forecast")["forecast"] == made["forecast"]
    assert len(list(home.forecasts.iterdir())) == 1

    write_series(source.parent, steps=612)
    second = run_forecast(source, instance)
    assert second.success
    accuracy = metadata(second, ACCURACY_ASSET)
    assert (accuracy["forecasts"], accuracy["scored"]) == (2, 1)
    assert accuracy["forecast"] == made["forecast"]
    assert accuracy["known_share"] == 12 / HORIZON
    assert accuracy["promised_MASE"] == 0.7362
    assert accuracy["MASE"] == pytest.approx(_mase(table, pd.read_csv(source, parse_dates=["timestamp"])), rel=1e-5)
    assert accuracy["drift"] == pytest.approx(accuracy["SQL"] / 0.5871)
    assert [run.name for run in home.runs.iterdir()] == ["run-1"]


def _mase(table: pd.DataFrame, actual: pd.DataFrame) -> float:
    """Of the 12 known steps, by the definition."""
    errors = []
    for name, forecast in table.groupby("id"):
        values = actual[name].to_numpy()
        history, came = values[:600], values[600:]
        scale = np.abs(history[24:] - history[:-24]).mean()
        errors.append(np.abs(came - forecast["0.5"].to_numpy()[:12]).mean() / scale)
    return float(np.mean(errors))


@pytest.mark.slow
def test_a_forecast_of_which_little_is_known_tells_no_drift(
    home: Home, source: Path, instance: dg.DagsterInstance
) -> None:
    promote_tiny_model(home, make_training_data(home, source))
    assert run_forecast(source, instance).success
    write_series(source.parent, steps=604)
    accuracy = metadata(run_forecast(source, instance), ACCURACY_ASSET)
    assert accuracy["scored"] == 1
    assert "at most 25 % of a forecast's" in accuracy["result"]
    assert "drift" not in accuracy


def report_accuracy(instance: dg.DagsterInstance, **values: Any) -> None:
    materialization = dg.AssetMaterialization(ACCURACY_ASSET, metadata={"champion_version": "3", **values})
    instance.report_runless_asset_event(materialization)


class Sensor:
    """The sensor as the daemon calls it, tick by tick."""

    def __init__(self, instance: dg.DagsterInstance, *assignments: str) -> None:
        settings = load_settings(assignments=list(assignments))
        self.repository = build_definitions(settings).get_repository_def()
        self.sensor = self.repository.get_sensor_def("retrain_on_drift")
        self.instance = instance
        self.cursor: str | None = None

    def tick(self) -> Any:
        context = dg.build_sensor_context(instance=self.instance, repository_def=self.repository, cursor=self.cursor)
        found = self.sensor.evaluate_tick(context)
        self.cursor = found.cursor or self.cursor
        return found


def test_a_drift_above_the_limit_asks_for_one_retraining(instance: dg.DagsterInstance) -> None:
    sensor = Sensor(instance)
    assert "has not been materialized yet" in sensor.tick().skip_message
    report_accuracy(instance)
    assert "tells no drift" in sensor.tick().skip_message
    report_accuracy(instance, drift=1.5)
    assert "1.50, which is not above 1.5" in sensor.tick().skip_message
    report_accuracy(instance, drift=1.6)
    (first,) = sensor.tick().run_requests
    assert first.tags["toto/reason"] == "drift 1.60 of version 3"
    assert not sensor.tick().run_requests
    report_accuracy(instance, drift=1.6)
    (second,) = sensor.tick().run_requests
    assert second.run_key != first.run_key


def test_a_sensor_that_lost_its_cursor_gives_the_same_key(instance: dg.DagsterInstance) -> None:
    report_accuracy(instance, drift=2.0)
    keys = [Sensor(instance).tick().run_requests[0].run_key for _ in range(2)]
    assert keys[0] == keys[1]


def test_the_limit_is_a_setting_and_the_retraining_is_as_the_settings_say(instance: dg.DagsterInstance) -> None:
    report_accuracy(instance, drift=1.6)
    assert not Sensor(instance, "schedule.drift=1.7").tick().run_requests
    (request,) = Sensor(instance, "schedule.drift=1.2", "training.epochs=3").tick().run_requests
    assert request.run_config["ops"]["trained_model"]["config"]["epochs"] == 3


def test_sensor_and_schedule_are_off_until_switched_on() -> None:
    definitions = build_definitions(load_settings(assignments=["schedule.forecast_cron=15 5 * * *"]))
    sensor = retrain_on_drift(definitions.resolve_job_def("retrain"), RetrainSettings())
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    schedule = definitions.resolve_schedule_def("nightly_forecast")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.cron_schedule == "15 5 * * *"


def test_a_damaged_forecast_is_named(tmp_path: Path) -> None:
    from toto_pipeline.errors import StorageError
    from toto_pipeline.promotion.forecasts import kept_forecasts

    home = Home(tmp_path)
    folder = home.forecasts / "abc"
    folder.mkdir(parents=True)
    (folder / "forecast.json").write_text(json.dumps({"model": "toto"}))
    with pytest.raises(StorageError, match=r"abc/forecast\.json: does not describe a forecast"):
        kept_forecasts(home, "toto")
