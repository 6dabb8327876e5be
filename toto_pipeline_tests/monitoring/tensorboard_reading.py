"""What TensorBoard reads of a run, and what it is to read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tensorboard.backend.event_processing import tag_types
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServersAccumulator
from tensorboard.util.tensor_util import make_ndarray

from toto_pipeline.events import figures
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.sink import FollowedRun
from toto_pipeline.monitoring.tensorboard_monitor import TensorBoardMonitor

Points = list[tuple[str, int, float]]

EVERYTHING = {tag_types.TENSORS: 0}


def feed(run: Path, events: Sequence[Event], *, batch: int = 7, state: Any = None) -> Any:
    """Have a new sink write `events` in batches, its state kept as JSON keeps it; the last state."""
    sink = TensorBoardMonitor()
    state = state or {}
    sink.open(FollowedRun(run), state)
    for first in range(0, len(events), batch):
        state = orjson.loads(orjson.dumps(sink.write(events[first : first + batch])))
    sink.close(None)
    return state


def measured(events: Sequence[Event]) -> Points:
    """Every measurement, without those behind the checkpoint that a later attempt went on from."""
    points: Points = []
    for event in events:
        if event["type"] == "run_started" and points:
            resumed_from = event["resumed_from"] or 0
            points = [point for point in points if point[1] <= resumed_from]
        points += [(name, event["step"], _comparable(value)) for name, value in measurements(event)]
    return sorted(points)


def shown(run: Path) -> Points:
    """Every scalar that is no score of the HPARAMS page, read as the server reads it."""
    return points_of(server(run))


def server(run: Path) -> Any:
    return ServersAccumulator(str(run / "tensorboard"), size_guidance=EVERYTHING).Reload()


def points_of(accumulator: Any) -> Points:
    tags = [tag for tag in accumulator.Tags()["tensors"] if plugin_of(accumulator, tag) == "scalars"]
    return sorted(
        (tag, event.step, _comparable(float(make_ndarray(event.tensor_proto))))
        for tag in tags
        if not tag.startswith("hparam/")
        for event in accumulator.Tensors(tag)
    )


def plugin_of(accumulator: Any, tag: str) -> str:
    return str(accumulator.SummaryMetadata(tag).plugin_data.plugin_name)


def tensors(run: Path, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, make_ndarray(event.tensor_proto)) for event in server(run).Tensors(tag)]


def classic_points(run: Path) -> Points:
    """As notebooks and scripts read it, with the accumulator that knows scalars by name."""
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload()
    return sorted(
        (tag, event.step, _comparable(event.value))
        for tag in accumulator.Tags()["scalars"]
        if not tag.startswith("hparam/")
        for event in accumulator.Scalars(tag)
    )


def event_files(run: Path) -> list[Path]:
    return sorted((run / "tensorboard").iterdir())


def records(run: Path) -> Iterator[Any]:
    for path in event_files(run):
        yield from EventFileLoader(str(path)).Load()


def as_read(figure: figures.Figure) -> dict[str, Any]:
    """A figure as it comes out of an event log."""
    read: dict[str, Any] = orjson.loads(orjson.dumps(figure, option=orjson.OPT_SERIALIZE_NUMPY))
    return read


def _comparable(value: float) -> float:
    """As an event file holds it; NaN, which equals nothing, as a number of its own."""
    return -12345.0 if math.isnan(value) else float(np.float32(value))
