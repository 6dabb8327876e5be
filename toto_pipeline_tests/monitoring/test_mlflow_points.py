"""Which numbers of a log MLflow is given, and under which names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.events.log import read_events
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.mlflow_points import Place, fit_name, held_points, is_taken, mlflow_metric, points
from toto_pipeline_tests.fixtures.recorded_run import Recording, record


def event(type: str, **fields: Any) -> Event:
    return {"type": type, "time": 1000.0 + fields.get("step", 0), **fields}


def steps(first: int, last: int) -> list[Event]:
    return [event("step", step=step, loss=1 / step) for step in range(first, last + 1)]


def test_a_short_run_is_taken_whole(tmp_path: Path) -> None:
    events = list(read_events(record(tmp_path, Recording(dies_after=100))))
    found, _ = points(events, Place())
    expected = [
        (*mlflow_metric(name, value), round(1000 * each["time"]), each["step"])
        for each in events
        for name, value in measurements(each)
    ]
    assert found == expected
    assert len(found) > 1000


def test_the_batches_a_log_is_read_in_make_no_difference() -> None:
    events = [event("run_started", total_steps=1000), *steps(1, 700), event("epoch", step=700, epoch=1, train_loss=1.0)]
    events += [*steps(701, 1000), event("run_ended", step=1000, outcome="completed")]
    whole, place = points(events, Place(), 30)
    in_parts, at = [], Place()
    for start in range(0, len(events), 7):
        at = Place.from_state(orjson.loads(orjson.dumps(at.to_state())))
        found, at = points(events[start : start + 7], at, 30)
        in_parts += found
    assert in_parts == whole
    assert at == place


def test_of_a_long_run_every_nth_step_is_taken_and_the_last_of_each_epoch_and_of_the_run() -> None:
    log: list[Event] = [event("run_started", total_steps=1000)]
    for epoch in range(1, 5):
        log += [*steps(250 * epoch - 249, 250 * epoch), event("epoch", step=250 * epoch, epoch=epoch, train_loss=0.5)]
    log += [*steps(1001, 1003), event("run_ended", step=1003, outcome="stopped")]
    found, place = points(log, Place(), 33)
    taken = [point.step for point in found if point.name == "train/loss"]
    assert taken == sorted({*range(31, 1001, 31), 250, 500, 750, 1000, 1003})
    assert [point.step for point in found if point.name == "epoch/train_loss"] == [250, 500, 750, 1000]
    assert place.held is None


def test_the_last_step_of_a_run_that_was_killed_is_not_lost() -> None:
    _, place = points([event("run_started", total_steps=1000), *steps(1, 64)], Place(), 100)
    assert [(point.name, point.step) for point in held_points(place)] == [("train/loss", 64)]


def test_a_step_that_is_not_finite_is_always_taken() -> None:
    log = [event("run_started", total_steps=10**6), event("step", step=7, loss="nan", gradient_norm=1.0)]
    found, _ = points(log, Place())
    assert [(point.name, point.step) for point in found] == [("train/loss", 7), ("train/gradient_norm", 7)]
    assert math.isnan(found[0].value)


def test_a_million_steps_come_to_no_more_than_the_limit_in_constant_memory() -> None:
    for total in (10**6, None):
        place, count = points([event("run_started", total_steps=total)], Place())[1], 0
        for first in range(1, 10**6, 10_000):
            found, place = points(steps(first, first + 9_999), place)
            count += len(found)
            assert len(orjson.dumps(place.to_state())) < 500
        assert 15_000 < count <= 20_000


@given(st.integers(1, 10**6), st.integers(1, 500))
def test_a_known_total_keeps_the_limit(total: int, limit: int) -> None:
    stride = math.ceil(total / limit)
    assert total // stride <= limit
    assert is_taken(stride, total, limit)
    assert stride == 1 or not is_taken(stride - 1, total, limit)


def test_readings_of_the_machine_have_mlflows_own_names() -> None:
    readings = {
        "host": {"cpu_percent": 50.0, "memory_used_bytes": 2_000_000, "disk_free_bytes": 3e9, "load_1m": 1.5},
        "gpus": [{"name": "GPU", "utilization_percent": 90.0, "memory_used_bytes": 7e6, "temperature_celsius": 60.0}],
    }
    log = [event("run_started"), *steps(1, 5), {"type": "system", "time": 1.0, **readings}]
    found, _ = points(log, Place())
    assert {(point.name, point.value, point.step) for point in found if point.name.startswith("system/")} == {
        ("system/cpu_utilization_percentage", 50.0, 5),
        ("system/system_memory_usage_megabytes", 2.0, 5),
        ("system/disk_available_megabytes", 3000.0, 5),
        ("system/host/load_1m", 1.5, 5),
        ("system/gpu_0_utilization_percentage", 90.0, 5),
        ("system/gpu_0_memory_usage_megabytes", 7.0, 5),
        ("system/gpu/0/temperature_celsius", 60.0, 5),
    }


def test_the_names_are_those_of_mlflows_own_monitors() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor

    theirs: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}" for name in monitor.metrics}
    ours = ("cpu_percent", "memory_used_bytes", "memory_percent", "disk_percent", "disk_used_bytes", "disk_free_bytes")
    assert {mlflow_metric(f"host/{name}", 0.0)[0] for name in ours} == theirs


def test_readings_of_a_long_run_are_thinned() -> None:
    log = [{"type": "system", "time": float(n), "host": {"load_1m": 1.0}} for n in range(50_000)]
    found, _ = points(log, Place(), 1000)
    assert 900 < len(found) < 1100


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("train/loss", "train/loss"),
        ("train/loss@5 (mean)", "train/loss_5 _mean_"),
        ("/a//../b", "a/b"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_are_made_fit(name: str, fit: str) -> None:
    assert fit_name(name) == fit


@given(st.text(max_size=300))
def test_mlflow_takes_any_name_that_was_made_fit(name: str) -> None:
    from mlflow.utils.validation import _validate_metric

    _validate_metric(fit_name(name), 1.0, 0, 0)
