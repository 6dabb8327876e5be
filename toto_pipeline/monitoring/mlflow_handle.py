"""A handle on the MLflow run of a pipeline run, for code that has something to add to it.

It connects on first use, and finds the run by its tag or creates it under the lock of `open_run`; so any number of
processes may hold one, and each writes into the same MLflow run. It never gives the run a status: how the run ended is
known only to who executes all of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import TRANSFER_SECONDS, Store
from toto_pipeline.monitoring.mlflow_run import batches, find_run, log_params, log_tags, open_run, put_artifact


class MlflowRun:
    """The MLflow run of one pipeline run. Every method raises RegistryError where MLflow cannot be reached or refuses.

    Args:
        run: id of the pipeline run; of the first one, where it was retried.
        experiment: where a new MLflow run is created; `$MLFLOW_EXPERIMENT_NAME` or `toto_pipeline` by default.
    """

    def __init__(self, home: Home, run: str, *, experiment: str | None = None) -> None:
        self.run = run
        self.store = Store.of(home)
        self._experiment = experiment
        self._client: Any = None
        self._run_id = ""

    @property
    def run_id(self) -> str:
        """Id of the MLflow run, which is created where there is none."""
        if not self._run_id:
            with self.store.talking():
                opened = open_run(self.store, self.client, self.run, experiment=self._experiment)
            self._run_id = str(opened.info.run_id)
        return self._run_id

    @property
    def client(self) -> Any:
        """The connected `mlflow.MlflowClient`, for what this class does not offer."""
        if self._client is None:
            with self.store.talking():
                self._client = self.store.client()
        return self._client

    def find(self) -> str | None:
        """Id of the MLflow run; None where there is none, and none is created."""
        if not self._run_id and not self.store.is_empty():
            with self.store.talking():
                found = find_run(self.client, self.run, experiment=self._experiment)
            self._run_id = "" if found is None else str(found.info.run_id)
        return self._run_id or None

    def log_metric(self, name: str, value: float, *, step: int = 0) -> None:
        self.log_metrics({name: value}, step=step)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add a point to each metric, at this moment."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        run_id = self.run_id
        with self.store.talking():
            for part in batches(points):
                self.client.log_batch(run_id, metrics=part)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record params, nested ones under dotted names. One that has another value already becomes a tag."""
        run_id = self.run_id
        with self.store.talking():
            log_params(self.client, run_id, params)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        run_id = self.run_id
        with self.store.talking():
            log_tags(self.client, run_id, tags)

    def log_artifact(self, file: Path | str, *, folder: str | None = None) -> None:
        """Keep a file, below `folder` among the run's artifacts; one that is there is replaced."""
        content = Path(file).read_bytes()
        self.log_bytes(f"{folder}/{Path(file).name}" if folder else Path(file).name, content)

    def log_bytes(self, name: str, content: bytes) -> None:
        """Keep `content` as the artifact `name`, which may have folders."""
        run_id = self.run_id
        with self.store.talking(TRANSFER_SECONDS):
            put_artifact(self.store, self.client, run_id, name, content)
