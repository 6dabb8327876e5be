from pathlib import Path

import yaml

from toto_pipeline.automation.instance import instance_settings, prepare_instance
from toto_pipeline.home import Home

ROOT = Path(__file__).resolve().parents[2]


def test_the_checkouts_dagster_yaml_is_what_the_command_line_writes() -> None:
    assert yaml.safe_load((ROOT / "dagster.yaml").read_text()) == instance_settings(".toto/dagster")


def test_nothing_is_sent_anywhere_and_slots_are_freed() -> None:
    settings = instance_settings("x")
    assert settings["telemetry"] == {"enabled": False}
    assert settings["nux"] == {"enabled": False}
    assert settings["concurrency"]["pools"]["default_limit"] == 1
    assert settings["run_monitoring"]["free_slots_after_run_end_seconds"] > 0
    assert settings["run_retries"]["retry_on_asset_or_op_failure"] is False


def test_dagster_accepts_the_file(home: Home) -> None:
    import dagster as dg

    folder = prepare_instance(home)
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert instance.storage_directory().startswith(str(home.root))
        assert instance.telemetry_enabled is False


def test_a_file_that_a_person_made_is_left_alone(home: Home) -> None:
    file = prepare_instance(home) / "dagster.yaml"
    assert file.read_text().startswith("# Written by toto-pipeline")
    file.write_text("telemetry: {enabled: false}\n")
    prepare_instance(home)
    assert file.read_text() == "telemetry: {enabled: false}\n"
