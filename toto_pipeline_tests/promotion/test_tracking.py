"""What evaluation and promotion add to a run's MLflow run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from toto_pipeline.errors import EvaluationError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import Store
from toto_pipeline.monitoring.mlflow_run import artifact_folder, find_run
from toto_pipeline.promotion.tracking import track
from toto_pipeline_tests.fixtures.recorded_run import Recording, record


def _tracked(home: Home, *, promoted: bool) -> tuple[mlflow.entities.Run, Path]:
    folder = record(home.runs, Recording(), promoted=promoted)
    track(home, folder)
    track(home, folder)  # after another stage: nothing is there twice
    store = Store.of(home)
    found = find_run(mlflow.MlflowClient(store.uri), folder.name)
    assert found is not None
    return found, artifact_folder(store, found.info.run_id)


@pytest.mark.parametrize(("promoted", "decision"), [(True, "promoted"), (False, "refused")])
def test_scores_decision_and_files_are_recorded(home: Home, promoted: bool, decision: str) -> None:
    run, artifacts = _tracked(home, promoted=promoted)
    assert run.data.metrics["evaluation/MASE"] == 0.7362
    assert run.data.metrics["evaluation/champion_MASE"] == 0.7518
    assert run.data.tags["toto.decision"] == decision
    assert "SQL" in run.data.tags["toto.reasons"]
    assert json.loads((artifacts / "decision.json").read_text())["promote"] is promoted
    assert (artifacts / "evaluation" / "report.json").is_file()
    assert run.data.params["promotion.model_name"] == "toto"


def test_predictions_are_a_table(home: Home) -> None:
    run, artifacts = _tracked(home, promoted=True)
    frame = pd.read_parquet(artifacts / "predictions.parquet")
    assert {"id", "timestamp", "actual", "candidate_q0.1", "candidate_q0.9", "seasonal_naive_q0.5"} <= set(frame)
    assert (frame["candidate_q0.1"] <= frame["candidate_q0.9"]).all() and frame["actual"].notna().all()
    shown = pd.read_json(io.StringIO((artifacts / "predictions.json").read_text()), orient="split")
    assert len(shown) == len(frame)
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "predictions.json", "type": "table"}]


def test_a_run_that_was_not_evaluated_is_told(home: Home) -> None:
    folder = record(home.runs, Recording(), evaluated=False, promoted=None)
    with pytest.raises(EvaluationError):
        track(home, folder)
