"""The sinks that keep the contract of `Sink`, and what each tool shows, by the tool's own reader.

Run as a program it feeds a sink and is killed between a `write` and the keeping of its state:
`python -m ... TOOL RUN_FOLDER EVENTS` with the number of events to be taken in.
"""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toto_pipeline.events.log import read_events
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, Sink

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sqlite_sink" / "src"
NAN = -12345.0
"""NaN equals nothing, itself included; in comparisons it stands as a number of its own."""

Shown = list[tuple[str, int | None, float]]


@dataclass(frozen=True)
class Tool:
    """A sink and how to look at what it did.

    Attributes:
        make: a sink that is not yet open; its module is imported only then.
        shown: what the tool shows of a run while the sink is open.
        expected: what it is to show of events.
        says: what the tool tells of the end of a run when the sink is closed.
        word: what it is to tell of an outcome.
    """

    make: Callable[[], Sink]
    shown: Callable[[FollowedRun], Shown]
    expected: Callable[[Sequence[Event]], Shown]
    says: Callable[[FollowedRun], Any]
    word: Callable[[RunOutcome], Any]


def comparable(value: float | None) -> float:
    return NAN if value is None or math.isnan(value) else value


def every_number(events: Sequence[Event]) -> Shown:
    """Each measurement of each attempt."""
    return sorted(
        (name, event.get("step"), comparable(value)) for event in events for name, value in measurements(event)
    )


# SQLite: the example


def _sqlite() -> Sink:
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    from toto_sqlite_sink import SqliteSink

    sink: Sink = SqliteSink()
    return sink


def query(run: FollowedRun, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(run.folder / "sqlite" / "measurements.db")) as database:
        return database.execute(text).fetchall()


def _rows(run: FollowedRun) -> Shown:
    found = query(run, "SELECT name, step, value FROM measurements")
    return sorted((name, step, comparable(value)) for name, step, value in found)


def _outcome(run: FollowedRun) -> Any:
    return query(run, "SELECT outcome FROM runs")[0][0]


# TensorBoard


def _tensorboard() -> Sink:
    from toto_pipeline.monitoring.tensorboard_monitor import TensorBoardMonitor

    return TensorBoardMonitor()


def _scalars(run: FollowedRun) -> Shown:
    from toto_pipeline_tests.monitoring.tensorboard_reading import shown

    return list(shown(run.folder))


def _measured(events: Sequence[Event]) -> Shown:
    from toto_pipeline_tests.monitoring.tensorboard_reading import measured

    return list(measured(events))


def _session_has_succeeded(run: FollowedRun) -> bool | None:
    """What the HPARAMS page says; None for a run under way."""
    from tensorboard.plugins.hparams import api_pb2, metadata

    from toto_pipeline_tests.monitoring.tensorboard_reading import server

    shown = server(run.folder)
    if metadata.SESSION_END_INFO_TAG not in shown.Tags()["tensors"]:
        return None
    content = shown.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    return bool(metadata.parse_session_end_info_plugin_data(content).status == api_pb2.STATUS_SUCCESS)


# MLflow


def _mlflow() -> Sink:
    from toto_pipeline.monitoring.mlflow_tracker import MlflowTracker

    return MlflowTracker()


def _mlflow_run(run: FollowedRun) -> tuple[Any, Any]:
    """The client and the only run there is."""
    from toto_pipeline.monitoring.mlflow_connection import Store

    assert run.home is not None
    client = Store.of(Home(run.home)).client()
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return client, found


def _points(run: FollowedRun) -> Shown:
    client, found = _mlflow_run(run)
    return sorted(
        (name, metric.step, comparable(metric.value))
        for name in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, name)
    )


def _mlflow_status(run: FollowedRun) -> str:
    return str(_mlflow_run(run)[1].info.status)


_MLFLOW_WORDS = {"completed": "FINISHED", "stopped": "FINISHED", "canceled": "KILLED", "killed": "KILLED"}


# Prometheus: it shows what is now, not what has been


def _prometheus() -> Sink:
    from toto_pipeline.monitoring.prometheus_exporter import PrometheusExporter

    return PrometheusExporter(linger_seconds=0, farewell_seconds=0)


def _samples(run: FollowedRun) -> Shown:
    from toto_pipeline_tests.monitoring.prometheus_help import read, samples, target_address

    assert run.home is not None
    found = samples(read(target_address(run.home, run.name)))
    return sorted((f"{name}{sorted(labels)}", None, comparable(value)) for (name, labels), value in found.items())


def _counts(events: Sequence[Event]) -> Shown:
    """What shows that no event is missing and none counted twice, among much else that is shown."""
    steps = [event for event in events if event["type"] == "step"]
    finite = [event["seconds"] for event in steps if not isinstance(event["seconds"], str)]
    epochs = [event for event in events if event["type"] == "epoch"]
    return [
        ("toto_training_checkpoints_saved_total[]", None, len(epochs)),
        ("toto_training_step[]", None, steps[-1]["step"]),
        ("toto_training_step_seconds_count[]", None, len(finite)),
        ("toto_training_steps_total[]", None, len(steps)),
        ("toto_training_validation_loss[]", None, epochs[-1]["validation_loss"]),
    ]


def _is_a_target(run: FollowedRun) -> bool:
    assert run.home is not None
    return any((run.home / "prometheus" / "targets").iterdir())


TOOLS = {
    "sqlite": Tool(_sqlite, _rows, every_number, _outcome, lambda outcome: outcome),
    "tensorboard": Tool(
        _tensorboard, _scalars, _measured, _session_has_succeeded, lambda outcome: outcome in ("completed", "stopped")
    ),
    "mlflow": Tool(
        _mlflow, _points, every_number, _mlflow_status, lambda outcome: _MLFLOW_WORDS.get(outcome, "FAILED")
    ),
    "prometheus": Tool(_prometheus, _samples, _counts, _is_a_target, lambda _: False),
}


def main(tool: str, folder: Path, count: int) -> None:
    sink = TOOLS[tool].make()
    sink.open(FollowedRun(folder, folder.parent.parent), {})
    sink.write(list(read_events(folder))[:count])
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
