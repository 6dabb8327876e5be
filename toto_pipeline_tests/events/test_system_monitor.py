# ruff: noqa: N802 - the functions of NVML have the names that its makers gave them

"""Readings come from a thread of their own, and a part that fails costs only itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.gpu_readings import NO_GPU
from toto_pipeline.events.log import EventWriter, read_events
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.system_monitor import SystemMonitor
from toto_pipeline_tests.fixtures.machine import (
    BURN_HALF_A_SECOND,
    FIRST_GPU,
    HOST_NAMES,
    PROCESS_NAMES,
    RATES,
    Clock,
    FakeNvml,
    child_process,
    process_on_gpu,
)


class Reports:
    """What a monitor reported; `wait_for` waits until so many events of a type are there."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, type: str, **fields: Any) -> None:
        with self._changed:
            self.events.append({"type": type, **fields})
            self._changed.notify_all()

    def of(self, type: str) -> list[dict[str, Any]]:
        with self._changed:
            return [event for event in self.events if event["type"] == type]

    def wait_for(self, count: int, type: str = "system") -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len([e for e in self.events if e["type"] == type]) >= count, 60)


def _monitor(report: Callable[..., None], folder: Path, **options: Any) -> SystemMonitor:
    options = {"interval_seconds": 3600, "nvml": FakeNvml(), **options}
    return SystemMonitor(report, paths={"home": folder}, **options)


def test_there_is_a_reading_at_once_and_one_at_the_end_however_long_the_interval(tmp_path: Path) -> None:
    reports = Reports()
    with _monitor(reports, tmp_path):
        reports.wait_for(1)
    assert [event["type"] for event in reports.events] == ["system", "system"]


def test_there_is_a_reading_each_interval_until_the_end_and_none_after(tmp_path: Path) -> None:
    reports = Reports()
    with _monitor(reports, tmp_path, interval_seconds=0.001) as monitor:
        reports.wait_for(4)
    count = len(reports.of("system"))
    assert count >= 5
    monitor.close()
    assert len(reports.of("system")) == count
    assert "system-monitor" not in [thread.name for thread in threading.enumerate()]


def test_an_interval_must_be_above_zero(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="interval_seconds of the system monitor is 0; expected a number above 0"):
        _monitor(Reports(), tmp_path, interval_seconds=0)


def test_a_run_holds_the_names_that_all_tools_show(tmp_path: Path) -> None:
    clock = Clock()
    nvml = FakeNvml()
    nvml.processes = [process_on_gpu(os.getpid(), 5 << 30)]
    with EventWriter(tmp_path) as log:
        reports = Reports()

        def report(type: str, **fields: Any) -> None:
            log.append(type, **fields)
            reports(type, **fields)

        with _monitor(report, tmp_path, nvml=nvml, clock=clock):
            reports.wait_for(1)
            with child_process(BURN_HALF_A_SECOND):
                clock.now = 10
    first, last = read_events(tmp_path)
    assert first["host"].keys() == HOST_NAMES - RATES
    assert first["process"].keys() == PROCESS_NAMES - RATES
    if psutil.disk_io_counters() is not None:
        assert last["host"].keys() == HOST_NAMES
    assert last["process"].keys() == PROCESS_NAMES
    assert last["gpus"][0] == FIRST_GPU
    names = {name for name, _ in measurements(last)}
    assert {"host/cpu_percents/0", "host/memory_used_bytes", "process/resident_bytes", "gpu/1/power_watts"} <= names


def test_parts_that_cannot_be_read_are_left_out_told_once_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports()
    with monkeypatch.context() as without_proc:
        without_proc.setattr(psutil, "PROCFS_PATH", str(tmp_path / "missing"))
        monitor = _monitor(reports, tmp_path, interval_seconds=0.001)
        monitor.start()
        reports.wait_for(3)
        during = reports.of("system")[:3]
    reports.wait_for(len(reports.of("system")) + 2)
    monitor.close()
    for event in during:
        assert "process" not in event
        assert not event["host"].keys() & {"memory_total_bytes", "swap_total_bytes", "cpu_percents"}
        assert event["host"]["disk_total_bytes"] > 0
        assert event["gpus"][1]["utilization_percent"] == 91
    warnings = reports.of("warning")
    assert {event["name"] for event in warnings} == {"system_monitor"}
    told = [event["message"].split(" readings")[0] for event in warnings]
    assert sorted(told) == sorted(set(told)) and {"CPU", "memory", "swap", "process"} <= set(told)
    assert all("missing" in event["message"] for event in warnings if event["message"].startswith("memory"))
    last = reports.of("system")[-1]
    assert last["host"]["memory_total_bytes"] > 0 and last["process"]["threads"] > 0


def test_a_disk_that_is_not_there_is_named(tmp_path: Path) -> None:
    reports = Reports()
    with _monitor(reports, tmp_path / "nowhere"):
        reports.wait_for(1)
    (warning,) = reports.of("warning")
    assert warning["message"].startswith("disk readings are left out") and "nowhere" in warning["message"]
    assert "memory_total_bytes" in reports.of("system")[0]["host"]


def test_a_driver_that_does_not_answer_is_a_warning_once(tmp_path: Path) -> None:
    nvml = FakeNvml()
    nvml.init_error = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    reports = Reports()
    with _monitor(reports, tmp_path, nvml=nvml):
        reports.wait_for(1)
    (warning,) = reports.of("warning")
    assert warning["name"] == "system_monitor"
    assert "GPU readings are left out" in warning["message"] and "version mismatch" in warning["message"]
    assert not any("gpus" in event for event in reports.of("system"))


def test_what_becomes_of_gpus_is_in_the_log(tmp_path: Path) -> None:
    nvml = FakeNvml()
    nvml.faults[0, "*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    reports = Reports()
    with _monitor(reports, tmp_path, nvml=nvml):
        reports.wait_for(1)
    assert [event["name"] for event in reports.of("warning")] == ["gpu_lost"]
    assert nvml.opened == 0
    reports = Reports()
    with _monitor(reports, tmp_path, nvml=FakeNvml(())):
        reports.wait_for(1)
    assert reports.of("text") == [{"type": "text", "name": "system", "text": NO_GPU}]
    assert reports.of("warning") == []


def test_a_log_that_takes_nothing_neither_ends_the_monitor_nor_reaches_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = Reports()

    def full(type: str, **fields: Any) -> None:
        reports(type, **fields)
        raise OSError(28, "No space left on device")

    with _monitor(full, tmp_path, interval_seconds=0.001):
        reports.wait_for(3)
    assert "the system monitor cannot report 'system': [Errno 28] No space left" in capsys.readouterr().err


def test_the_end_does_not_wait_for_a_driver_that_hangs(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Hanging(FakeNvml):
        def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
            entered.set()
            leave.wait()
            return super().nvmlDeviceGetMemoryInfo(handle)

    reports = Reports()
    monitor = _monitor(reports, tmp_path, nvml=Hanging(), close_seconds=0.01)
    with monitor:
        assert entered.wait(60)
    leave.set()
    _join("system-monitor")
    (warning,) = reports.events
    assert warning["message"] == "the last reading of the machine did not end within 0.01 s"


def _join(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()
