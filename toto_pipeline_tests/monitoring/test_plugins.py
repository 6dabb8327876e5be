"""Sinks by name, out of the packages that are installed; and the settings that name them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from toto_pipeline.assets.launchpad import to_monitoring, training_config_class
from toto_pipeline.automation.jobs import run_config
from toto_pipeline.config import RetrainSettings, load_settings
from toto_pipeline.definitions import build_definitions
from toto_pipeline.errors import ConfigError
from toto_pipeline.monitoring.plugins import load_sinks
from toto_pipeline.settings.monitoring import MonitoringSettings
from toto_pipeline.settings.plugins import installed
from toto_pipeline.settings.sinks import SINK_GROUP
from toto_pipeline.settings.training import TrainingSettings
from toto_pipeline_tests.monitoring.small_sinks import SINKS, FileSink, environment, make_package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_package(tmp_path / "package", {**SINKS, "status": SINKS["file"], "a/b": SINKS["file"]})
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_package_offers_its_own_sinks() -> None:
    assert {"tensorboard", "mlflow", "prometheus"} <= set(installed(SINK_GROUP))
    assert set(MonitoringSettings().sinks) == {"tensorboard", "mlflow", "prometheus"}


@pytest.mark.usefixtures("package")
def test_a_sink_of_another_package_is_found_by_its_name() -> None:
    makers = load_sinks({"file": {"folder": "elsewhere"}})
    assert isinstance(makers["file"](), FileSink)


@pytest.mark.usefixtures("package")
def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_sinks({"tensorbord": {}})
    message = str(caught.value)
    assert "there is no sink 'tensorbord'; did you mean 'tensorboard'?" in message
    for name in ("broken", "file", "mlflow", "other", "prometheus", "tensorboard"):
        assert name in message


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["status", "a/b"])
def test_a_name_that_would_be_another_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a sink"):
        load_sinks({name: {}})


@pytest.mark.usefixtures("package")
def test_a_plug_in_that_cannot_be_imported_is_named_with_its_package_and_holds_nobody() -> None:
    makers = load_sinks({"broken": {}, "file": {}})
    assert isinstance(makers["file"](), FileSink)
    with pytest.raises(ConfigError, match=r"no_such_module_of_a_plug_in:Sink of small-sinks 1\.2 cannot be imported"):
        makers["broken"]()


@pytest.mark.usefixtures("package")
def test_settings_that_a_sink_does_not_take_are_named() -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.sinks\.file: .* does not take the settings {'colour': 'red'}"):
        load_sinks({"file": {"colour": "red"}})["file"]()


def test_a_misspelt_sink_is_refused_when_the_settings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "toto.yaml"
    file.write_text("monitoring: {sinks: {tensorbord: {}}}\n")
    with pytest.raises(ConfigError, match=r"toto\.yaml: monitoring\.sinks: .*did you mean 'tensorboard'"):
        load_settings(file=file)


def test_naming_any_sink_replaces_the_default() -> None:
    settings = load_settings(assignments=["monitoring.sinks={mlflow: {experiment: nightly}}"])
    assert settings.monitoring.sinks == {"mlflow": {"experiment": "nightly"}}
    assert load_settings(assignments=["monitoring.sinks={}"]).monitoring.sinks == {}


def test_the_settings_are_checked_without_importing_a_sink(package: Path) -> None:
    script = (
        "import sys; from toto_pipeline.config import load_settings\n"
        "load_settings(assignments=['monitoring.sinks={tensorboard: {}, mlflow: {}, prometheus: {}, broken: {}}'])\n"
        "heavy = ('mlflow', 'tensorboard', 'prometheus_client', 'toto_pipeline.monitoring')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(package), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_launchpad_shows_the_group_and_means_its_values() -> None:
    settings = load_settings(
        assignments=["monitoring.sinks={mlflow: {experiment: nightly}}", "monitoring.drain_seconds=7"]
    )
    launchpad = training_config_class(settings.preset, settings.training, settings.monitoring)
    assert to_monitoring(launchpad()) == settings.monitoring
    config = run_config(settings)
    dg.validate_run_config(build_definitions(RetrainSettings()).resolve_job_def("retrain"), config)
    plain = training_config_class("sample", TrainingSettings())
    assert to_monitoring(plain(**config["ops"]["trained_model"]["config"])) == settings.monitoring
    assert to_monitoring(plain()) == MonitoringSettings()


def test_a_wrong_value_in_the_launchpad_gets_the_same_message_as_elsewhere() -> None:
    launchpad = training_config_class("sample", TrainingSettings())
    with pytest.raises(ConfigError, match=r"monitoring\.drain_seconds: Input should be greater than 0"):
        to_monitoring(launchpad(monitoring={"drain_seconds": 0}))
