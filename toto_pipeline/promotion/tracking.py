"""What evaluation and promotion add to the MLflow run of a retraining.

    metrics     evaluation/<metric> of the new model, evaluation/<model>_<metric> of those it is compared with
    tags        toto.decision (the gate's, or `forced` by a person), toto.reasons, toto.version, toto.champion
    artifacts   evaluation/ (report, scores, pictures), decision.json, config.json, report.html,
                predictions.parquet and predictions.json, which MLflow shows as a table

Everything is replaced when it is recorded again, so it may be done after every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from toto_pipeline.errors import EvaluationError
from toto_pipeline.evaluation.backtest import CANDIDATE
from toto_pipeline.evaluation.report import FOLDER, FORECASTS_FILE, REPORT_FILE, SCORES_FILE, load_report
from toto_pipeline.events.schema import number
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import Store
from toto_pipeline.monitoring.mlflow_run import log_params, log_scores, log_tags, open_run, put_artifact
from toto_pipeline.promotion.production import ACCEPTED, FORCED, PROMOTED, REFUSED
from toto_pipeline.promotion.verdict import DECISION_FILE, read_decision

if TYPE_CHECKING:
    import pandas as pd

_TABLE, _TABLE_FILE = "predictions.json", "predictions.parquet"
_TABLES_TAG = "mlflow.loggedArtifacts"
_MOST_ROWS = 10_000
"""Rows of the JSON table, which MLflow's page reads whole; the Parquet file has all."""
_FILES = ("config.json", DECISION_FILE, "report.html", f"{FOLDER}/{REPORT_FILE}", f"{FOLDER}/{SCORES_FILE}")


def track(home: Home, run_folder: Path) -> None:
    """Record what is known of a run's evaluation and promotion by now in its MLflow run.

    Raises:
        EvaluationError: the run was not evaluated.
        RegistryError: MLflow cannot be reached.
    """
    scores, decision = evaluation_scores(run_folder), read_decision(run_folder)
    predictions = read_predictions(run_folder)
    store = Store.of(home)
    with store.talking():
        client = store.client()
        mlflow_run = open_run(store, client, run_folder.name)
        run_id = str(mlflow_run.info.run_id)
        log_params(client, run_id, _settings(run_folder))
        log_scores(client, mlflow_run, scores)
        for name, data in _artifacts(run_folder, predictions).items():
            put_artifact(store, client, run_id, name, data)
        log_tags(client, run_id, {**_decision_tags(decision), **_table_tag(_logged(mlflow_run))})


def evaluation_scores(run_folder: Path) -> dict[str, float]:
    """Scores by name: `MASE` of the new model, `champion_MASE` and `seasonal_naive_MASE` of those it was compared with.

    Raises:
        EvaluationError: the run was not evaluated.
    """
    return {
        name if model == CANDIDATE else f"{model}_{name}": number(value)
        for model, values in load_report(run_folder)["models"].items()
        for name, value in values.items()
    }


def read_predictions(run_folder: Path) -> pd.DataFrame:
    """The forecasts that the report shows, a row a step: id, variate, timestamp, actual, <model>_q<level>.

    Raises:
        EvaluationError: the run was not evaluated, or its forecasts cannot be read.
    """
    import numpy as np
    import pandas as pd

    file = run_folder / FOLDER / FORECASTS_FILE
    try:
        content = orjson.loads(file.read_bytes())
        parts = []
        for series in content["series"]:
            values = {"actual": series["actual"]}
            for model, quantiles_HQ in series["forecasts"].items():
                columns_QH = np.asarray([[number(value) for value in row] for row in quantiles_HQ]).T
                levels = zip(content["quantiles"], columns_QH, strict=True)
                values |= {f"{model}_q{level:g}": column for level, column in levels}
            values["actual"] = [number(value) for value in series["actual"]]
            frame = pd.DataFrame({"timestamp": pd.to_datetime(series["timestamps"]), **values})
            frame.insert(0, "variate", series["variate"])
            frame.insert(0, "id", series["id"])
            parts.append(frame)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{file}: cannot be read ({type(error).__name__}: {error}). Expected: the forecasts of an evaluation. "
            "What to do: evaluate the run again."
        ) from error
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"id": [], "timestamp": []})


def _artifacts(run_folder: Path, predictions: pd.DataFrame) -> dict[str, bytes]:
    present = {name: run_folder / name for name in _FILES if (run_folder / name).is_file()}
    pictures = {f"{FOLDER}/{file.name}": file for file in sorted((run_folder / FOLDER).glob("*.png"))}
    return {
        **{name: file.read_bytes() for name, file in {**present, **pictures}.items()},
        _TABLE_FILE: predictions.to_parquet(index=False),
        _TABLE: table_json(predictions.head(_MOST_ROWS)),
    }


def table_json(frame: pd.DataFrame) -> bytes:
    """A frame as MLflow's tables are kept: names of columns, and rows."""
    text: str = frame.to_json(orient="split", index=False, date_format="iso", date_unit="s")
    return text.encode()


def _settings(run_folder: Path) -> dict[str, Any]:
    """Settings of what comes behind the training; those before it are the tracker's."""
    file = run_folder / "config.json"
    if not file.is_file():
        return {}
    settings = orjson.loads(file.read_bytes())
    return {name: settings[name] for name in ("evaluation", "promotion") if name in settings}


def _decision_tags(decision: Mapping[str, Any]) -> dict[str, Any]:
    version = decision.get("version")
    accepted = PROMOTED if version else ACCEPTED
    gate = accepted if decision["promote"] else REFUSED
    return {
        "toto.decision": FORCED if decision.get("forced") else gate,
        "toto.reasons": "\n".join(str(rule["text"]) for rule in decision["rules"]),
        "toto.version": version,
        "toto.champion": decision.get("champion"),
    }


def _logged(mlflow_run: Any) -> list[dict[str, str]]:
    value: list[dict[str, str]] = orjson.loads(mlflow_run.data.tags.get(_TABLES_TAG, "[]"))
    return value


def _table_tag(logged: list[dict[str, str]]) -> dict[str, str]:
    """What makes MLflow show the table."""
    own = {"path": _TABLE, "type": "table"}
    return {_TABLES_TAG: orjson.dumps([*(each for each in logged if each != own), own]).decode()}
