"""`versions`, `promote`, `rollback` and `why`, as a person or a program runs them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from toto_pipeline import cli
from toto_pipeline.errors import EvaluationError, RegistryError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import DATABASE_FILE
from toto_pipeline.promotion.registry import Registry
from toto_pipeline_tests.conftest import make_training_data, write_series
from toto_pipeline_tests.fixtures.champion import write_run
from toto_pipeline_tests.fixtures.mlflow_store import make_empty_database
from toto_pipeline_tests.fixtures.recorded_run import forecasts


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_database(tmp_path_factory.mktemp("initialised"))


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home with one run, `run-1`, that the gate accepted and nobody promoted."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", "")  # what a command sets is undone
    home = Home(tmp_path / "home").prepare()
    shutil.copy(empty_database, home.registry / DATABASE_FILE)
    accepted(home, "run-1")
    return home


def accepted(home: Home, run: str, champion: str | None = None) -> Path:
    source = home.root.parent / "input"
    data = make_training_data(home, write_series(source))
    folder = write_run(home, data, run=run, seed=int(run[-1]), replaced=champion)
    (folder / "evaluation" / "forecasts.json").write_text(json.dumps(forecasts(("Appliances",))))
    return folder


def run(home: Home, *words: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(cli.app, ["--home", str(home.root), *words], input=answer, env={**os.environ})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_champion_is_promoted_replaced_and_gone_back_to(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(home, "promote", "run-1").stdout
    assert "Version 1 of toto is the champion." in said
    accepted(home, "run-2", champion="1")
    promoted: dict[str, Any] = json.loads(run(home, "promote", "run-2", "--json").stdout)
    assert (promoted["version"], promoted["change"]["replaced"]) == ("2", "1")

    refused = run(home, "rollback", answer="n\n")
    assert refused.exit_code == 1
    assert "Replace version 2 of toto by version 1?" in refused.output
    registry = Registry(home, "toto")
    assert registry.with_alias("champion") == "2"
    done = json.loads(run(home, "rollback", "--yes", "--reason", "too low", "--json").stdout)
    assert (done["version"], done["change"]["kind"], done["change"]["reason"]) == ("1", "rollback", "too low")
    listed = json.loads(run(home, "versions", "--json").stdout)
    assert [(one["version"], one["aliases"]) for one in listed] == [("2", []), ("1", ["champion"])]
    assert "too low" in listed[0]["tags"]["rolled_back"]
    assert "rolled back" in run(home, "versions").stdout
    with pytest.raises(RegistryError, match="rolled back"):
        run(home, "promote", "run-2")
    again = json.loads(run(home, "promote", "run-2", "--force", "--reason", "it was right", "--json").stdout)
    assert (again["version"], again["change"]["kind"], again["tags"]["decision"]) == ("2", "forced", "forced")
    client = registry.store.client()
    assert client.get_run(again["mlflow_run"]).data.tags["toto.decision"] == "forced"

    answer = json.loads(run(home, "why", "--json").stdout)
    assert (answer["version"], answer["change"]["kind"]) == ("2", "forced")
    assert "it was right" in run(home, "why").stdout
    assert run(home, "why", "2", "--markdown").stdout.startswith("**Version 2 of toto became champion")

    import dagster as dg

    monkeypatch.setenv("DAGSTER_HOME", str(home.dagster))
    with dg.DagsterInstance.get() as instance:
        key = dg.AssetKey("promoted_checkpoint")
        records = instance.fetch_materializations(key, limit=10, ascending=True).records
    kinds = [one.asset_materialization.metadata["decision"].value for one in records if one.asset_materialization]
    assert kinds == ["promotion", "promotion", "rollback", "forced"]


def test_mistakes_are_told(home: Home) -> None:
    with pytest.raises(RegistryError, match="no champion of 'toto'"):
        run(home, "rollback", "--yes")
    assert "No versions of 'toto'" in run(home, "versions").stdout
    file = home.run("run-1") / "decision.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "promote": False}))
    with pytest.raises(EvaluationError, match="--force --reason TEXT"):
        run(home, "promote", "run-1")
