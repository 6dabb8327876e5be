"""`toto-pipeline retrain` on the bundled sample in a new home: seconds, lag of the epochs, quality of the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 180.0
LIMIT_RATIO = 0.95
LIMIT_LAG_SECONDS = 1.0


def run(quick: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as home:
        command = [str(Path(sys.executable).with_name("toto-pipeline")), "retrain", "--json"]
        if quick:
            command += ["--set", "training.epochs=3"]
        started = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, "TOTO_HOME": home}, capture_output=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode not in (0, 10):
            raise RuntimeError(f"retrain ended with {done.returncode}:\n{done.stderr.decode()[-2000:]}")
        report = next(Path(home).glob("runs/*/evaluation/report.json"))
        models = json.loads(report.read_bytes())["models"]
        lag = max(_epoch_lags(Path(home)))
    ratio = models["candidate"]["MASE"] / models["seasonal_naive"]["MASE"]
    return [
        _result("retrain on the sample, whole command", seconds, "s", LIMIT_SECONDS),
        _result("slowest epoch from its end to its materialization", lag, "s", LIMIT_LAG_SECONDS),
        _result("MASE of the sample's model / seasonal naive", ratio, "ratio", LIMIT_RATIO),
        {
            "name": "MASE of the sample's model",
            "value": models["candidate"]["MASE"],
            "unit": "",
            "limit": None,
            "ok": None,
        },
    ]


def _epoch_lags(home: Path) -> list[float]:
    """Seconds from each `epoch` event to the materialization of `training_epoch` that Dagster stored."""
    import dagster as dg

    from toto_pipeline.events.log import epochs, read_events

    (run_folder,) = (home / "runs").iterdir()
    ended = {event["epoch"]: event["time"] for event in epochs(read_events(run_folder))}
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        records = instance.fetch_materializations(dg.AssetKey("training_epoch"), limit=1000).records
    return [record.timestamp - ended[record.asset_materialization.metadata["epoch"].value] for record in records]


def _result(name: str, value: float, unit: str, limit: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "limit": f"<= {limit}", "ok": value <= limit}
