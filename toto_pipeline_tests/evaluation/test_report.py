"""What an evaluation leaves on disk, and what a person reads of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from toto_pipeline.errors import EvaluationError
from toto_pipeline.evaluation import report as reports
from toto_pipeline.evaluation.backtest import Evaluation, backtest
from toto_pipeline.models.baselines import SeasonalNaive
from toto_pipeline.settings.promotion import EvaluationSettings
from toto_pipeline_tests.evaluation.small_data import HORIZON, SEASON, Steady, small_data, wave


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("evaluation")
    gaps = wave(300, 5)
    gaps[[200, -1]] = np.nan
    series = {"calm": wave(300, 1), "gaps": gaps, "wild $x": wave(300, 3) + 40 * (np.arange(300) > 260)}
    data = small_data(folder, {**series, "flat": np.full(300, 2.0)})
    models = {"candidate": Steady(), "seasonal_naive": SeasonalNaive(SEASON), "champion": Steady(bias=1.0)}
    return backtest(models, data, EvaluationSettings(pictures=3), cache=folder / "cache")


@pytest.fixture(scope="module")
def run_folder(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    reports.write_report(evaluation, folder, identities={"champion": {"version": "3"}})
    return folder


def test_the_folder_holds_what_it_promises(run_folder: Path) -> None:
    names = sorted(file.name for file in (run_folder / "evaluation").iterdir())
    pictures = [f"forecast_{number}.png" for number in (1, 2, 3)]
    worst = [f"worst_{number}.png" for number in (1, 2, 3)]
    tables = ["by_series.parquet", "by_step.parquet"]
    assert names == [*tables, *pictures, "forecasts.json", "report.json", "scores.parquet", *worst]


def test_the_report_reads_back(evaluation: Evaluation, run_folder: Path) -> None:
    report = reports.load_report(run_folder)
    assert list(report["models"]) == ["candidate", "seasonal_naive", "champion"]
    assert report["models"]["candidate"] == dict(evaluation.aggregates["candidate"])
    assert set(report["models"]["champion"]) == {"MASE", "SQL", "WQL", "WAPE", "coverage_80", "interval_width"}
    assert report["identities"]["champion"] == {"name": "steady_1.0", "version": "3"}
    assert report["windows_fingerprint"] == evaluation.windows_fingerprint
    assert report["data_fingerprint"] == evaluation.data_fingerprint
    assert report["windows_scored"] == 16
    assert report["worst_series"][0]["id"] == "wild $x"
    assert set(report["worst_series"][0]["MASE"]) == {"candidate", "seasonal_naive", "champion"}
    assert "flat" not in [row["id"] for row in report["worst_series"]]
    assert any("flat" in note for note in report["notes"])


def test_scores_read_back_as_they_were(evaluation: Evaluation, run_folder: Path) -> None:
    scores = reports.load_scores(run_folder)
    assert scores.column_names == evaluation.scores.column_names
    for name in scores.column_names:
        assert scores.column(name).to_pandas().tolist() == pytest.approx(
            evaluation.scores.column(name).to_pandas().tolist(), nan_ok=True
        ), name


def test_forecasts_hold_whole_series_with_missing_values_spelled_out(run_folder: Path) -> None:
    value = orjson.loads((run_folder / "evaluation" / "forecasts.json").read_bytes())
    assert value["quantiles"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    by_name = {series["id"]: series for series in value["series"]}
    assert by_name["gaps"]["actual"][-1] == "nan"
    for series in value["series"]:
        assert set(series) == {
            "id", "variate", "mase", "timestamps_history", "history", "timestamps", "actual", "forecasts",
        }  # fmt: skip
        assert len(series["history"]) == len(series["timestamps_history"])
        assert len(series["actual"]) == len(series["timestamps"]) == HORIZON
        assert {np.shape(rows) for rows in series["forecasts"].values()} == {(HORIZON, 9)}


def test_pictures_are_pictures(run_folder: Path) -> None:
    for file in (run_folder / "evaluation").glob("*.png"):
        data = file.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000


def test_a_second_report_replaces_the_first_whole(evaluation: Evaluation, tmp_path: Path) -> None:
    reports.write_report(evaluation, tmp_path)
    (tmp_path / "evaluation" / "forecast_9.png").write_bytes(b"of an earlier attempt")
    reports.write_report(evaluation, tmp_path)
    assert not (tmp_path / "evaluation" / "forecast_9.png").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["evaluation"]


def test_the_table_reads_well() -> None:
    full = dict.fromkeys(("MASE", "SQL", "WQL", "WAPE", "interval_width"), 0.5)
    table = reports.markdown_table(
        {"candidate": {**full, "coverage_80": 0.794}, "champion": {**full, "MASE": "nan", "coverage_80": 0.81}}
    )
    assert table.splitlines() == [
        "| Model | MASE | SQL | WQL | WAPE | 80 % coverage | Interval width |",
        "|:--|--:|--:|--:|--:|--:|--:|",
        "| New model | 0.500 | 0.500 | 0.500 | 0.500 | 79.4 % | 0.500 |",
        "| Champion | undefined | 0.500 | 0.500 | 0.500 | 81.0 % | 0.500 |",
    ]


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"a": 1}'])
def test_a_missing_or_damaged_report_is_named(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "evaluation").mkdir()
    if content is not None:
        (tmp_path / "evaluation" / "report.json").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"report\.json: .*What to do"):
        reports.load_report(tmp_path)
    with pytest.raises(EvaluationError, match=r"scores\.parquet: .*What to do"):
        reports.load_scores(tmp_path)
