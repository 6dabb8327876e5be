"""The data assets in Dagster: what the UI is given, and how a fault in the data reads there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from toto_pipeline.assets.data import data_assets
from toto_pipeline.config import RetrainSettings
from toto_pipeline.home import Home
from toto_pipeline.resources import HomeResource
from toto_pipeline_tests.conftest import write_series

PREPARATION = {"context_length": 64, "horizon": 16, "test_windows": 3}


@pytest.fixture
def instance() -> Any:
    with dg.instance_for_test() as instance:
        yield instance


def _materialize(
    home: Home,
    instance: dg.DagsterInstance,
    source: Path,
    names: tuple[str, ...] = ("series_snapshot", "training_data"),
) -> dg.ExecuteInProcessResult:
    assets = data_assets(RetrainSettings())
    config = {"series_snapshot": {"config": {"source": str(source)}}, "training_data": {"config": PREPARATION}}
    return dg.materialize(
        assets,
        selection=list(names),
        instance=instance,
        resources={"home": HomeResource(path=str(home.root))},
        run_config={"ops": {name: config[name] for name in names}},
        raise_on_error=False,
    )


def _metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (materialization,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in materialization.metadata.items()}


def test_the_ui_is_given_what_a_person_wants_to_know(home: Home, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    result = _materialize(home, instance, write_series(tmp_path / "input"))
    assert result.success
    snapshot = _metadata(result, "series_snapshot")
    assert snapshot["series"] == 3
    assert snapshot["dagster/row_count"] == 1800
    assert snapshot["frequency"] == "h"
    assert snapshot["span"] == "2026-01-01T00:00:00 to 2026-01-25T23:00:00"
    assert snapshot["dagster/column_schema"].columns[0].name == "timestamp"
    assert snapshot["picture"].startswith("![](data:image/png;base64,")
    data = _metadata(result, "training_data")
    assert data["snapshot"] == snapshot["fingerprint"]
    assert data["training_from"] < data["validation_from"] < data["test_from"] < data["test_to"]


def _versions(result: dg.ExecuteInProcessResult) -> list[str]:
    found = []
    for name in ("series_snapshot", "training_data"):
        (materialization,) = result.asset_materializations_for_node(name)
        found.append((materialization.tags or {})["dagster/data_version"])
    return found


def test_unchanged_data_keeps_its_version_and_changed_data_does_not(
    home: Home, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    source = write_series(tmp_path / "input")
    first = _versions(_materialize(home, instance, source))
    assert _versions(_materialize(home, instance, source)) == first
    write_series(tmp_path / "input", seed=1)
    assert all(new != old for new, old in zip(_versions(_materialize(home, instance, source)), first, strict=True))


def test_a_fault_in_the_data_fails_the_asset_with_its_message(
    home: Home, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    source = write_series(tmp_path / "input")
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:5], lines[4], *lines[5:]]) + "\n")
    result = _materialize(home, instance, source)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert "series.csv" in str(data.description)
    assert "row 5" in str(data.description)
    assert "data.duplicates" in str(data.description)
    assert data.metadata["error"].value == "DataError"


def test_an_asset_without_its_input_says_what_to_do_first(
    home: Home, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    result = _materialize(home, instance, tmp_path, names=("training_data",))
    (failure,) = result.get_step_failure_events()
    data = failure.step_failure_data.user_failure_data
    assert data is not None and "series_snapshot has not been materialized yet" in str(data.description)


def test_an_asset_builds_on_what_its_own_run_made_not_on_what_another_made_since(
    home: Home, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Two retrainings at once: the newest snapshot is the other one's."""
    source = write_series(tmp_path / "input")

    @dg.asset_check(asset="series_snapshot", blocking=True)
    def another_run_comes_between() -> dg.AssetCheckResult:
        instance.report_runless_asset_event(
            dg.AssetMaterialization("series_snapshot", metadata={"fingerprint": "another run's"})
        )
        return dg.AssetCheckResult(passed=True)

    result = dg.materialize(
        [*data_assets(RetrainSettings()), another_run_comes_between],
        instance=instance,
        resources={"home": HomeResource(path=str(home.root))},
        run_config={
            "ops": {
                "series_snapshot": {"config": {"source": str(source)}},
                "training_data": {"config": PREPARATION},
            }
        },
    )
    assert _metadata(result, "training_data")["snapshot"] == _metadata(result, "series_snapshot")["fingerprint"]
