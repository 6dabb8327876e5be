"""The champion in use: from a data frame to quantiles, through our own door and through MLflow's."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import toto_pipeline
from toto_pipeline.checkpoints.manifest import describe_files
from toto_pipeline.errors import ForecastInputError, PipelineError, RegistryError, WeightsError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import DATABASE_FILE, URI_VARIABLE
from toto_pipeline.promotion.champion import Champion
from toto_pipeline.promotion.release import promote
from toto_pipeline_tests.conftest import CONTEXT_LENGTH, HORIZON, make_training_data, write_series
from toto_pipeline_tests.fixtures.champion import promote_tiny_model, write_run
from toto_pipeline_tests.fixtures.mlflow_store import Server

QUANTILES = [f"0.{k}" for k in range(1, 10)]
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Any:
    """A home with a champion, and the wide frame that it was trained on."""
    folder = tmp_path_factory.mktemp("champion")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        home = Home(folder / "home").prepare()
        shutil.copy(empty_database, home.registry / DATABASE_FILE)
        source = write_series(folder / "input")
        promote_tiny_model(home, make_training_data(home, source))
        yield home, pd.read_csv(source, parse_dates=["timestamp"])


@pytest.fixture(scope="module")
def champion(place: tuple[Home, pd.DataFrame]) -> Champion:
    return toto_pipeline.load_champion(home=place[0].root, device="cpu")


@pytest.fixture(scope="module")
def long(place: tuple[Home, pd.DataFrame]) -> pd.DataFrame:
    return place[1].melt("timestamp", var_name="id", value_name="target")


def test_the_champion_says_what_it_is(champion: Champion) -> None:
    assert (champion.version, champion.run) == ("1", "run-1")
    assert champion.metrics["MASE"] == 0.7362
    facts = champion.facts
    assert (facts.variates, facts.frequency, facts.season) == (("target",), "h", 24)
    assert (facts.context_length, facts.horizon) == (CONTEXT_LENGTH, HORIZON)


def test_a_long_frame_becomes_quantiles_behind_the_end_of_each_series(champion: Champion, long: pd.DataFrame) -> None:
    found = champion.forecast(long)
    assert list(found.columns) == ["id", "variate", "timestamp", *QUANTILES]
    assert found.groupby("id").size().to_dict() == {f"sensor_{number}": HORIZON for number in range(3)}
    one = found[found.id == "sensor_1"]
    assert list(one.timestamp) == list(pd.date_range("2026-01-26", periods=HORIZON, freq="h"))
    assert (np.diff(found[QUANTILES].to_numpy(), axis=1) >= 0).all()
    assert len(champion.forecast(long, 5)) == 15


def test_a_wide_frame_and_an_index_of_times_mean_the_same(champion: Champion, place: Any, long: pd.DataFrame) -> None:
    wide, expected = place[1], champion.forecast(long, 4)
    pd.testing.assert_frame_equal(champion.forecast(wide, 4), expected)
    pd.testing.assert_frame_equal(champion.forecast(wide.set_index("timestamp"), 4), expected)
    pd.testing.assert_frame_equal(
        champion.forecast(long.rename(columns={"id": "unique_id", "target": "y"}), 4), expected
    )


def test_the_model_sees_no_more_than_the_context_that_it_was_trained_with(
    champion: Champion, long: pd.DataFrame
) -> None:
    end = long.groupby("id").tail(CONTEXT_LENGTH)
    pd.testing.assert_frame_equal(champion.forecast(end, 4), champion.forecast(long, 4))
    shorter = long.groupby("id").tail(CONTEXT_LENGTH // 2)
    assert not champion.forecast(shorter, 4)["0.5"].equals(champion.forecast(long, 4)["0.5"])


def test_a_series_of_one_row_is_forecast_at_the_step_of_the_training(champion: Champion, long: pd.DataFrame) -> None:
    found = champion.forecast(long.iloc[[0]], 2)
    assert list(found.timestamp) == list(pd.date_range("2026-01-01T01", periods=2, freq="h"))


def _at(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    changed = frame.astype({column: object})
    changed.iloc[row, changed.columns.get_loc(column)] = value
    return changed


@pytest.mark.parametrize(
    ("spoil", "column", "row", "found"),
    [
        (lambda frame: frame.drop(columns="target"), "target", None, "it is not there; the columns are timestamp, id"),
        (lambda frame: frame.drop(columns="timestamp"), "timestamp", None, "it is not there"),
        (lambda frame: frame.assign(price=1.0), "price", None, "it is no variate of the model"),
        (lambda frame: _at(frame, "target", 7, "oops"), "target", 8, "'oops' is not a number"),
        (lambda frame: frame.assign(target=frame.timestamp), "target", 1, "is not a number"),
        (lambda frame: _at(frame, "id", 3, None), "id", 4, "the series id is missing"),
        (lambda frame: _at(frame, "timestamp", 4, None), "timestamp", 5, "the timestamp is missing"),
        (lambda frame: _at(frame, "timestamp", 4, "soon"), "timestamp", 5, "'soon' is not a timestamp"),
        (lambda frame: _at(frame, "target", 9, float("inf")), "target", 10, "is infinite"),
        (lambda frame: pd.concat([frame, frame.iloc[[-1]]]), "timestamp", 1801, "2026-01-25T23:00:00"),
        (lambda frame: frame.iloc[:0], None, None, "it has 0 rows"),
        (lambda frame: frame.to_dict(), None, None, "it is a dict"),
        (lambda frame: pd.concat([frame, frame[["target"]]], axis=1), "target", None, "it is there twice"),
    ],
)
def test_what_cannot_be_forecast_is_named_by_column_and_row(
    champion: Champion,
    long: pd.DataFrame,
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    column: str | None,
    row: int | None,
    found: str,
) -> None:
    with pytest.raises(ForecastInputError) as raised:
        champion.forecast(spoil(long))
    error = raised.value
    assert (error.column, error.row) == (column, row)
    assert found in error.found
    assert str(error).startswith("the data frame")
    assert "frame.parquet" not in str(error)


def test_settings_mend_a_frame_as_they_mend_files(champion: Champion, long: pd.DataFrame) -> None:
    twice = pd.concat([long, long.iloc[[-1]]])
    pd.testing.assert_frame_equal(
        champion.forecast(twice, 4, settings=["data.duplicates=last"]), champion.forecast(long, 4)
    )


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True])
def test_a_horizon_that_is_none_is_refused(champion: Champion, long: pd.DataFrame, horizon: Any) -> None:
    with pytest.raises(ForecastInputError, match="at least 1"):
        champion.forecast(long, horizon)


def test_a_home_without_a_champion_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="What to do: run `toto-pipeline retrain`"):
        toto_pipeline.load_champion(home=tmp_path)


def test_importing_the_package_loads_nothing_of_the_champion() -> None:
    import subprocess

    script = "import sys, toto_pipeline; print(*(n for n in sys.modules if n.startswith('toto_pipeline')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["toto_pipeline"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toto_pipeline.nothing  # noqa: B018


def test_mlflow_loads_the_champion_and_forecasts_the_same(
    place: Any, champion: Champion, long: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv(URI_VARIABLE, f"sqlite:///{place[0].registry / DATABASE_FILE}")
    model = mlflow.pyfunc.load_model("models:/toto@champion")
    assert [column.name for column in model.metadata.get_input_schema()] == ["id", "timestamp", "target"]
    assert [column.name for column in model.metadata.get_output_schema()] == ["id", "variate", "timestamp", *QUANTILES]
    pd.testing.assert_frame_equal(model.predict(long, params={"horizon": 5}), champion.forecast(long, 5))
    assert len(model.predict(long)) == 3 * HORIZON


def test_the_registered_folder_holds_no_pickle_and_opens_with_nothing_of_ours(place: Any) -> None:
    import pickletools

    from toto2 import Toto2Model

    home: Home = place[0]
    version = toto_pipeline.load_champion(home=home)._version
    names = {file.name for file in version.path.rglob("*")}
    assert {"MLmodel", "forecasting.json", "requirements.txt", "python_env.yaml", "model.safetensors"} <= names
    for file in version.path.rglob("*"):
        assert file.suffix not in PICKLED
        content = file.read_bytes()
        assert content[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        with pytest.raises(Exception, match=r".*"):
            list(pickletools.genops(content))
    assert "python_model" not in (version.path / "MLmodel").read_text()
    for folder in (version.path, home.run("run-1") / "model"):
        assert Toto2Model.from_pretrained(str(folder)).config.patch_size == 8


def test_the_hashes_of_the_version_cover_what_stands_beside_the_weights(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Home(tmp_path / "moved")
    shutil.copytree(place[0].root, moved.root)
    (facts,) = moved.registry.rglob("forecasting.json")
    facts.write_text(facts.read_text().replace('"season": 24', '"season": 25'))
    with pytest.raises(RegistryError, match=r"forecasting\.json: its content was changed"):
        toto_pipeline.load_champion(home=moved)


def test_what_stands_beside_the_weights_is_written_alike_by_a_second_attempt(
    place: Any, tmp_path: Path, training_data: Any, home: Home
) -> None:
    from toto_pipeline.promotion.model_folder import complete

    written = []
    for _ in range(2):
        folder = write_run(home, training_data, run="run-1", seed=0)
        complete(folder / "model", folder, training_data, code_version="0.1.0")
        written.append(describe_files(folder / "model"))
        shutil.rmtree(folder)
    assert written[0] == written[1]


def test_a_champion_registered_before_is_used_as_its_run_says(
    home: Home, training_data: Any, monkeypatch: pytest.MonkeyPatch, long: pd.DataFrame
) -> None:
    from toto_pipeline.promotion import model_folder

    monkeypatch.delenv(URI_VARIABLE, raising=False)
    folder = write_run(home, training_data, run="run-1", seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "complete", lambda *_, **__: None)
        promote(home, folder, "toto", {})
    old = toto_pipeline.load_champion(home=home, device="cpu")
    assert not (old._version.path / "forecasting.json").exists()
    assert (old.facts.context_length, old.facts.variates) == (CONTEXT_LENGTH, ())
    assert len(old.forecast(long)) == 3 * HORIZON
    promote(home, folder, "toto", {})  # again, now that folders are completed: nothing about the version changes
    assert toto_pipeline.load_champion(home=home, device="cpu").version == "1"


def test_facts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    from toto_pipeline.promotion.model_folder import read_facts

    (tmp_path / "forecasting.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(WeightsError, match=r"forecasting\.json: does not say how the model is to be used"):
        read_facts(tmp_path)


def test_a_model_of_several_variates_takes_them_by_name(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toto_pipeline.data.snapshot import take_snapshot
    from toto_pipeline.data.training_data import prepare_training_data
    from toto_pipeline.settings.data import DataSettings
    from toto_pipeline_tests.conftest import tiny_preparation

    monkeypatch.delenv(URI_VARIABLE, raising=False)
    source = write_series(tmp_path / "in")
    frame = pd.read_csv(source, parse_dates=["timestamp"])
    snapshot = take_snapshot(DataSettings(source=str(source), layout="symbols"), home)
    promote_tiny_model(home, prepare_training_data(snapshot, tiny_preparation(), home))
    champion = toto_pipeline.load_champion(home=home, device="cpu")
    assert champion.facts.variates == ("sensor_0", "sensor_1", "sensor_2")
    found = champion.forecast(frame[["sensor_2", "timestamp", "sensor_0", "sensor_1"]], 4)
    assert found.id.unique().tolist() == ["series"]
    assert found.variate.unique().tolist() == ["sensor_0", "sensor_1", "sensor_2"]
    assert found[found.variate == "sensor_2"]["0.5"].between(20, 40).all()
    with pytest.raises(ForecastInputError, match="column 'sensor_1': it is not there"):
        champion.forecast(frame.drop(columns="sensor_1"))


@pytest.mark.slow
def test_with_a_server_both_ways_load_the_same_champion(
    training_data: Any,
    home: Home,
    empty_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    long: pd.DataFrame,
) -> None:
    import mlflow

    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_database, folder / DATABASE_FILE)
    server = Server(folder)
    try:
        server.start()
        monkeypatch.setenv(URI_VARIABLE, server.uri)
        promote_tiny_model(home, training_data)
        elsewhere = toto_pipeline.load_champion(home=tmp_path / "elsewhere", device="cpu")
        served = mlflow.pyfunc.load_model("models:/toto@champion")
        pd.testing.assert_frame_equal(served.predict(long, params={"horizon": 5}), elsewhere.forecast(long, 5))
    finally:
        server.stop()
