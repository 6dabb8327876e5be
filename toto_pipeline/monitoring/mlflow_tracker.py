"""The sink that keeps a run in MLflow: one MLflow run, across restarts of the training and of whoever feeds this.

    run_started   params, tags, the data set as an input, config.json, and the status RUNNING
    numbers       metrics, as `mlflow_points` says, with the event's own time and step
    figure        figures/<name>/step_<step>.png
    text          text/<name>.md
    model         model_structure.json
    warning       the tag toto.warning.<name>
    run_ended     tags: outcome, reason, the best epoch

When the run has ended, the status: FINISHED for completed and stopped, KILLED for canceled and killed, else FAILED.

What is written twice is there once: MLflow ignores a metric of the same name, time, step and value, and all else is
replaced by the same. After a restart of the training MLflow keeps what an earlier attempt measured beside what the
later one did at the same steps, since it deletes no metric; the later ones have the later time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import Store
from toto_pipeline.monitoring.mlflow_description import dataset_input, describe_run, run_settings
from toto_pipeline.monitoring.mlflow_points import LIMIT, Place, Point, fit_name, held_points, points
from toto_pipeline.monitoring.mlflow_run import (
    Running,
    Status,
    batches,
    log_params,
    log_tags,
    open_run,
    put_artifact,
    set_status,
)
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, State

NAME = "mlflow"
METRICS_AT_ONCE = 1000
_STATUS: dict[str, Status] = {
    "completed": "FINISHED",
    "stopped": "FINISHED",
    "canceled": "KILLED",
    "killed": "KILLED",
    "failed": "FAILED",
}


class MlflowTracker:
    """See the module, and `Sink` for its methods.

    Args:
        experiment: where a new run is created; `$MLFLOW_EXPERIMENT_NAME` or `toto_pipeline` by default.
        points: the most steps to keep of a run.

    Raises:
        ConfigError: `points` is not above 0.
    """

    name = NAME

    def __init__(self, *, experiment: str | None = None, points: int = LIMIT) -> None:
        if points < 1:
            raise ConfigError(
                f"monitoring.sinks.mlflow.points is {points}; expected a number above 0. Set it to {LIMIT}."
            )
        self._experiment = experiment
        self._limit = points
        self._place = Place()
        self._run_id = ""

    def open(self, run: FollowedRun, state: State) -> None:
        """Connect. A run outside of a home has its records in its own folder, unless `$MLFLOW_TRACKING_URI` is set."""
        self._run = run
        self._store = Store.of(Home(run.home or run.folder / NAME))
        with self._store.talking():
            self._client = self._store.client()
        self._place = Place.from_state(state)
        self._run_id = ""

    def write(self, events: Sequence[Event]) -> State:
        if events:
            with self._store.talking():
                self._find_run(events[0])
                for event in events:
                    handler = _HANDLERS.get(event["type"])
                    if handler is not None:
                        handler(self, event)
                found, place = points(events, self._place, self._limit)
                self._log(found)
            self._place = place
        return self._place.to_state()

    def close(self, outcome: RunOutcome | None) -> None:
        if outcome is None or not self._place.time:
            return  # the follower leaves, or the run never began
        with self._store.talking():
            self._find_run()
            self._log(held_points(self._place))
            self._set_status(_STATUS[outcome], self._place.time)
            self._tag({"toto.outcome": outcome})

    def _find_run(self, first: Event | None = None) -> None:
        """Find the MLflow run, or create it as begun with the event `first`."""
        if self._run_id:
            return
        started = first is not None and first["type"] == "run_started"
        opened = open_run(
            self._store,
            self._client,
            self._run.name,
            experiment=self._experiment,
            started=float(first["time"]) if first else None,
            tags=describe_run(self._run.folder, first) if first and started else None,
        )
        self._run_id = str(opened.info.run_id)

    def _log(self, found: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for part in batches(found, METRICS_AT_ONCE):
            metrics = [Metric(each.name, each.value, each.milliseconds, each.step) for each in part]
            self._client.log_batch(self._run_id, metrics=metrics)

    def _set_status(self, status: Status | Running, at: float) -> None:
        set_status(self._store, self._client, self._run_id, status, at, self._run.name)

    def _tag(self, tags: Mapping[str, Any]) -> None:
        log_tags(self._client, self._run_id, tags)

    def _put(self, name: str, data: bytes) -> None:
        put_artifact(self._store, self._client, self._run_id, name, data)

    def _started(self, event: Event) -> None:
        settings = run_settings(self._run.folder, event)
        log_params(self._client, self._run_id, settings)
        self._tag(describe_run(self._run.folder, event))
        data = dataset_input(self._run, event, settings)
        if data is not None:
            self._client.log_inputs(self._run_id, datasets=[data])
        self._put("config.json", orjson.dumps(settings, option=orjson.OPT_INDENT_2))
        self._set_status("RUNNING", float(event["time"]))

    def _figure(self, event: Event) -> None:
        from toto_pipeline.monitoring.drawing import DrawingError, draw

        try:
            png = draw(event["figure"])
        except DrawingError as error:
            self._warn(f"figure.{event['name']}", f"The figure cannot be drawn: {error}")
        else:
            self._put(f"figures/{file_name(event['name'])}/step_{int(event.get('step', 0)):08d}.png", png)

    def _text(self, event: Event) -> None:
        self._put(f"text/{file_name(event['name'])}.md", str(event["text"]).encode())

    def _model(self, event: Event) -> None:
        self._put("model_structure.json", orjson.dumps(event["modules"], option=orjson.OPT_INDENT_2))

    def _warning(self, event: Event) -> None:
        self._warn(str(event.get("name")), str(event.get("message")))

    def _warn(self, name: str, message: str) -> None:
        self._tag({fit_name(f"toto.warning.{name}"): message})

    def _ended(self, event: Event) -> None:
        best = event.get("best") or {}
        tags = {f"toto.best.{name}": best.get(name) for name in ("epoch", "step", "validation_loss", "checkpoint")}
        self._tag({**tags, "toto.outcome": event["outcome"], "toto.reason": event.get("reason")})


_HANDLERS: dict[str, Callable[[MlflowTracker, Event], None]] = {
    "run_started": MlflowTracker._started,
    "figure": MlflowTracker._figure,
    "text": MlflowTracker._text,
    "model": MlflowTracker._model,
    "warning": MlflowTracker._warning,
    "run_ended": MlflowTracker._ended,
}


def file_name(name: object) -> str:
    """A name as a path of plain parts."""
    return fit_name(str(name)).replace(":", "_").replace(" ", "_")
