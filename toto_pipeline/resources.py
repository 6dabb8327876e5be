"""Dagster's handles on the core: the home, and the MLflow run of a Dagster run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
from pydantic import Field

from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import Store
from toto_pipeline.monitoring.mlflow_handle import MlflowRun

_SET_BY_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
"""Variables that MLflow sets for its child processes."""
_ONE_AT_A_TIME = threading.Lock()


class HomeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The folder where runs, snapshots and the registry live."""

    path: str | None = Field(default=None, description="Folder. Unset: $TOTO_HOME, else ./.toto.")

    def open(self) -> Home:
        """The home, created and proven writable."""
        home = Home(Path(self.path).expanduser().absolute()) if self.path else Home.from_environment()
        return home.prepare()


class MlflowResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The one MLflow run of a Dagster run, for any asset that asks for it, in whatever process, step or retry.

    An asset logs through `run(context)`. Nothing of that is global to the process, and nothing connects to MLflow
    before something is logged. The status of the MLflow run is left to the run-status sensors, which alone know how the
    whole Dagster run ended.

    Why this is not dagster-mlflow's `mlflow_tracking`: that resource searches for the run and then creates it, so two
    first steps that start together open two; it looks for the id of the Dagster run at hand, so a retry opens another;
    and the MLflow run ends when a process exits, or when a step fails that is tried again. None of this can be
    configured away. What is sound in dagster-mlflow is what it does with a run that it is given: all of MLflow's own
    functions on one object, for code that was written for them. `fluent(context)` offers that part, inside a guard.
    """

    home: HomeResource
    experiment: str | None = Field(
        default=None,
        description="MLflow experiment of new runs. Unset: $MLFLOW_EXPERIMENT_NAME, else toto_pipeline.",
    )

    def run(self, context: Any) -> MlflowRun:
        """The MLflow run of the Dagster run that `context` (of an asset, op or check) belongs to."""
        return self.run_of(context.run.root_run_id or context.run.run_id)

    def run_of(self, run: str) -> MlflowRun:
        """The MLflow run of a retraining, by its id."""
        return MlflowRun(self.home.open(), run, experiment=self.experiment)

    @contextmanager
    def fluent(self, context: Any) -> Iterator[Any]:
        """dagster-mlflow's object in this Dagster run's MLflow run: `mlflow.log_figure`, autologging and all the rest.

        MLflow's functions find their run and their store in state of the whole process. It is set on the way in and as
        before on the way out, and the MLflow run goes on. A second thread waits until the first is out.

        Raises:
            RegistryError: MLflow cannot be reached, or another MLflow run is active in this process.
        """
        opened = self.run(context)
        with opened.store.talking():
            experiment_id = opened.client.get_run(opened.run_id).info.experiment_id
            experiment = opened.client.get_experiment(experiment_id).name
        with _process_state(opened.store):
            with opened.store.talking():
                functions = _dagster_mlflow(context.log, opened, experiment)
            yield functions

    def metadata(self, context: Any, run: str) -> dict[str, Any]:
        """Where a retraining is to be seen in MLflow, as metadata of an asset; empty where it has no MLflow run.

        A link is no reason to fail: where MLflow cannot be reached, that is a warning in the step's log.
        """
        handle = self.run_of(run)
        try:
            run_id = handle.find()
        except RegistryError as error:
            context.log.warning(f"There is no link to MLflow: {error}")
            return {}
        if run_id is None:
            return {}
        if handle.store.remote:
            return {"mlflow_run": dg.MetadataValue.url(f"{handle.store.page}/#/runs/{run_id}")}
        return {"mlflow_run": run_id, "mlflow_ui": f"mlflow ui --backend-store-uri {handle.store}"}


def _dagster_mlflow(log: Any, opened: MlflowRun, experiment: str) -> Any:
    """dagster-mlflow's object, given a run and an experiment that are there, so that it creates neither."""
    from dagster_mlflow import resources

    make: Any = resources.MlFlow
    settings = {
        "mlflow_tracking_uri": opened.store.uri,
        "mlflow_run_id": opened.run_id,
        "experiment_name": experiment,
    }
    name = opened.run  # it renames the run after the job, and tags it with the id of a retry: both stay what they are
    job = SimpleNamespace(job_name=name)
    return make(SimpleNamespace(log=log, dagster_run=job, run_id=name, resource_config=settings))


@contextmanager
def _process_state(store: Store) -> Iterator[None]:
    """Give back to the process what MLflow's functions keep for the whole of it.

    The run is taken off with the status it has while its Dagster run goes on. That also leaves nothing for MLflow's
    exit handler to end, which dagster-mlflow tries and, with MLflow 3, fails to take away.
    """
    import mlflow
    from mlflow.tracking import fluent

    active = mlflow.active_run()
    if active is not None:
        raise RegistryError(
            f"The MLflow run {active.info.run_id} is active in this process. Expected: none, so that nothing is logged "
            "into the wrong one. What to do: end it (mlflow.end_run) before this, or log through `run(context)`."
        )
    with _ONE_AT_A_TIME:
        experiment = fluent._active_experiment_id  # it cannot be asked for or unset otherwise
        before = {name: os.environ.get(name) for name in _SET_BY_MLFLOW}
        try:
            yield
        finally:
            try:
                _take_off(store)
            finally:
                mlflow.set_tracking_uri(None)
                fluent._active_experiment_id = experiment
                for name, value in before.items():
                    os.environ.pop(name, None)
                    os.environ.update({} if value is None else {name: value})


def _take_off(store: Store) -> None:
    import mlflow

    with store.talking():
        while mlflow.active_run() is not None:  # one that was begun inside of it, and left open, goes first
            mlflow.end_run(status="RUNNING")
