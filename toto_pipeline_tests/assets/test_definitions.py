"""The code location as a person meets it in the UI: assets, descriptions, launchpad, schedule."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from toto_pipeline.assets.launchpad import config_class, to_training, training_config_class
from toto_pipeline.automation.jobs import forecast_config, run_config
from toto_pipeline.config import RetrainSettings, load_settings, training_settings
from toto_pipeline.definitions import build_definitions
from toto_pipeline.errors import ConfigError
from toto_pipeline.settings.data import DataSettings
from toto_pipeline.settings.training import TrainingSettings

ASSETS = {
    "series_snapshot": "data",
    "training_data": "data",
    "trained_model": "training",
    "training_epoch": "training",
    "evaluation_report": "evaluation",
    "promoted_checkpoint": "promotion",
    "run_dashboard": "dashboards",
    "champion_forecast": "forecasts",
    "forecast_accuracy": "forecasts",
}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions(RetrainSettings())


def test_every_asset_says_what_it_is_and_whose(definitions: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    assert {name: spec.group_name for name, spec in specs.items()} == ASSETS
    for spec in specs.values():
        assert len(spec.description or "") > 60
        assert spec.owners and spec.kinds


def test_the_lineage_leads_from_the_promoted_checkpoint_to_the_data(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    upstream = {key.to_user_string() for key in graph.get_ancestor_asset_keys(dg.AssetKey("promoted_checkpoint"))}
    assert upstream == {"evaluation_report", "trained_model", "training_data", "series_snapshot"}


def test_a_retraining_makes_no_forecasts_and_a_forecast_reads_the_data_anew(definitions: dg.Definitions) -> None:
    chosen = {
        name: {key.to_user_string() for key in definitions.resolve_job_def(name).asset_layer.selected_asset_keys}
        for name in ("retrain", "forecast")
    }
    used = {"champion_forecast", "forecast_accuracy"}
    assert chosen["retrain"] == {name for name in ASSETS if name not in {*used, "training_epoch"}}
    assert chosen["forecast"] == {*used, "series_snapshot"}
    dg.validate_run_config(definitions.resolve_job_def("forecast"), forecast_config(RetrainSettings()))


def test_all_checks_block_the_promotion(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    checks = graph.asset_check_keys
    assert {check.name for check in checks} == {"beats_baseline", "not_worse_than_champion", "guards_hold"}
    assert all(graph.get_check_spec(check).blocking for check in checks)


def _fields(job: dg.JobDefinition, op: str) -> dict[str, Any]:
    config = job.run_config_schema.config_type.fields["ops"].config_type.fields[op].config_type.fields["config"]
    return dict(config.config_type.fields)


def test_the_launchpad_describes_every_setting_and_knows_its_default(definitions: dg.Definitions) -> None:
    fields = _fields(definitions.resolve_job_def("retrain"), "series_snapshot")
    for name, setting in DataSettings.model_fields.items():
        assert fields[name].description == setting.description
        if setting.default is not None:
            assert fields[name].default_value == getattr(DataSettings(), name)


def test_the_spelled_out_run_config_is_valid_and_means_the_settings(definitions: dg.Definitions) -> None:
    settings = load_settings("toto2-4m", assignments=["training.epochs=3", "data.duplicates=last"])
    config = run_config(settings)
    dg.validate_run_config(definitions.resolve_job_def("retrain"), config)
    launchpad = training_config_class("sample", TrainingSettings())
    assert to_training(launchpad(**config["ops"]["trained_model"]["config"])) == settings.training


def test_an_empty_launchpad_means_the_preset() -> None:
    launchpad = training_config_class("sample", TrainingSettings())
    assert to_training(launchpad()) == TrainingSettings()
    assert to_training(launchpad(preset="toto2-4m")) == training_settings("toto2-4m", {})


def test_a_wrong_value_in_the_launchpad_gets_the_same_message_as_elsewhere() -> None:
    launchpad = training_config_class("sample", TrainingSettings())
    with pytest.raises(ConfigError, match="did you mean 'toto2-4m'"):
        to_training(launchpad(preset="toto24m"))
    with pytest.raises(ConfigError, match=r"training\.epochs: Input should be greater than or equal to 1"):
        to_training(launchpad(epochs=0))


def test_defaults_come_from_the_settings_file() -> None:
    settings = load_settings(assignments=["data.source=/data/*.csv"])
    assert config_class(DataSettings, settings.data)().model_dump()["source"] == "/data/*.csv"


def test_the_nightly_schedule_is_off_and_follows_the_settings() -> None:
    settings = load_settings(assignments=["schedule.cron=30 4 * * *", "schedule.time_zone=Europe/Paris"])
    schedule = build_definitions(settings).resolve_schedule_def("nightly_retrain")
    assert schedule.cron_schedule == "30 4 * * *"
    assert schedule.execution_timezone == "Europe/Paris"
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED


def test_a_wrong_settings_file_is_refused_when_the_location_loads(tmp_path: Path) -> None:
    (tmp_path / "toto.yaml").write_text("training: {epochz: 3}\n")
    done = subprocess.run(
        [sys.executable, "-c", "import toto_pipeline.definitions"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "toto.yaml: training.epochz: there is no such setting; did you mean 'training.epochs'" in done.stderr
