"""Readings of the machine are right, come from a thread of their own, and a part that fails costs only itself."""

# ruff: noqa: N802 - the functions of NVML have the names that its makers gave them

from __future__ import annotations

import inspect
import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.gpu_readings import NO_GPU, GpuReader, throttle_reasons, visible_gpus
from toto_pipeline.events.log import EventWriter, read_events
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.system_monitor import SystemMonitor
from toto_pipeline.events.system_readings import HostReader, ProcessReader, Rates

MIB = 1 << 20
Events = list[dict[str, Any]]

HOST_NAMES = {
    "cpu_percent",
    "cpu_percents",
    "load_1m",
    "memory_total_bytes",
    "memory_used_bytes",
    "memory_available_bytes",
    "memory_percent",
    "swap_total_bytes",
    "swap_used_bytes",
    "disk_total_bytes",
    "disk_used_bytes",
    "disk_free_bytes",
    "disk_percent",
    "disk_read_bytes_per_second",
    "disk_write_bytes_per_second",
    "network_received_bytes_per_second",
    "network_sent_bytes_per_second",
}
PROCESS_NAMES = {
    "cpu_percent",
    "cpu_percent_with_children",
    "resident_bytes",
    "resident_bytes_with_children",
    "children",
    "threads",
    "open_files",
}
RATES = {name for name in HOST_NAMES | PROCESS_NAMES if "per_second" in name or name.startswith("cpu_percent")}


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def _child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A child that has said its first line, and waits for one after what `code` does."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint('done', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "done\n"
        yield child
    finally:
        child.kill()
        child.communicate()


HOLD_64_MIB = "held = b'x' * (64 << 20)"
BURN_HALF_A_SECOND = "import time\nwhile time.process_time() < 0.5: pass"


# The host


def test_memory_and_processors_are_those_of_the_kernel(tmp_path: Path) -> None:
    host = _read_host(HostReader({"home": tmp_path}))
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kernel = {name: 1024 * int(value.split()[0]) for name, value in meminfo.items()}
    assert host["memory_total_bytes"] == kernel["MemTotal"]
    assert host["swap_total_bytes"] == kernel["SwapTotal"]
    assert 0 < host["memory_available_bytes"] <= host["memory_total_bytes"]
    assert 0 < host["memory_used_bytes"] < host["memory_total_bytes"]
    assert host["load_1m"] >= 0


def test_disks_are_those_of_the_paths(tmp_path: Path) -> None:
    for _ in range(1000):  # until nobody writes between the readings
        before = shutil.disk_usage(tmp_path)
        host = HostReader({"home": tmp_path, "cache": tmp_path}).disks()
        if before == shutil.disk_usage(tmp_path):
            break
    assert (host["disk_total_bytes"], host["disk_used_bytes"], host["disk_free_bytes"]) == before
    assert host["disk_percent"] == pytest.approx(100 * before.used / (before.used + before.free), abs=0.1)
    assert host["cache_disk_total_bytes"] == before.total


def test_a_busy_child_makes_the_processors_busy() -> None:
    reader = HostReader({})
    assert reader.cpu() == {}
    with _child(BURN_HALF_A_SECOND):
        busy = reader.cpu()
    assert len(busy["cpu_percents"]) == psutil.cpu_count()
    assert all(0 <= percent <= 100 for percent in busy["cpu_percents"])
    assert 0 < busy["cpu_percent"] <= 100
    assert min(busy["cpu_percents"]) <= busy["cpu_percent"] <= max(busy["cpu_percents"])


def test_percentages_of_processors_are_of_the_time_between_two_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    (idle, *_) = psutil.cpu_times(percpu=True)
    idle = idle._replace(**dict.fromkeys(idle._fields, 0.0))
    started = idle._replace(user=100.0, idle=900.0)

    def read_at(reader: HostReader, *cores: Any) -> dict[str, Any]:
        monkeypatch.setattr(psutil, "cpu_times", lambda percpu: list(cores))
        return reader.cpu()

    reader = HostReader({})
    assert read_at(reader, started, started) == {}
    later = started._replace(user=103.0, guest=2.0, idle=901.0, iowait=1.0), started._replace(idle=905.0)
    assert read_at(reader, *later) == {"cpu_percent": 30.0, "cpu_percents": [60.0, 0.0]}
    assert read_at(reader, *later) == {}
    assert read_at(reader, later[0]) == {}
    backwards = later[0]._replace(iowait=0.0, idle=912.0)
    assert read_at(reader, backwards) == {"cpu_percent": 0.0, "cpu_percents": [0.0]}


def test_a_rate_is_what_a_counter_rose_by_between_two_readings() -> None:
    clock = Clock()
    rates = Rates(clock)
    assert rates.per_second("read", 1000) == {}
    clock.now = 10
    assert rates.per_second("read", 3000) == {"read": 200.0}
    assert rates.per_second("written", 1) == {}
    clock.now = 15
    assert rates.per_second("read", 3000) == {"read": 0.0}


def test_no_rate_is_measured_over_an_instant_nor_of_a_counter_that_was_set_back() -> None:
    clock = Clock()
    rates = Rates(clock)
    rates.per_second("read", 1000)
    clock.now = 0.01
    assert rates.per_second("read", 2000) == {}
    clock.now = 10
    assert rates.per_second("read", 3000) == {"read": 200.0}
    clock.now = 20
    assert rates.per_second("read", 500) == {}
    clock.now = 30
    assert rates.per_second("read", 1500) == {"read": 100.0}


def test_the_traffic_of_disks_is_what_the_kernel_counts(tmp_path: Path) -> None:
    def written() -> int:
        counters = psutil.disk_io_counters()
        return 0 if counters is None else counters.write_bytes

    if psutil.disk_io_counters() is None:
        assert HostReader({}).disk_traffic() == {}
        return

    def cause() -> None:
        with (tmp_path / "file").open("wb") as file:
            file.write(os.urandom(8 * MIB))
            os.fsync(file.fileno())

    _assert_counted(HostReader.disk_traffic, "disk_write_bytes_per_second", written, cause)


def test_the_traffic_of_the_network_is_what_the_kernel_counts_without_the_loopback() -> None:
    def received() -> int:
        return sum(nic.bytes_recv for name, nic in psutil.net_io_counters(pernic=True).items() if name != "lo")

    def cause() -> None:
        receiving, sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        with receiving, sending:
            receiving.bind(("127.0.0.1", 0))
            for _ in range(1000):
                sending.sendto(bytes(32_000), receiving.getsockname())

    loopback = psutil.net_io_counters(pernic=True)["lo"].bytes_recv
    _assert_counted(HostReader.network, "network_received_bytes_per_second", received, cause)
    assert psutil.net_io_counters(pernic=True)["lo"].bytes_recv > loopback


def _assert_counted(
    read: Callable[[HostReader], dict[str, Any]], name: str, total: Callable[[], int], cause: Callable[[], None]
) -> None:
    """The reader's second reading lies between what was counted just around its two readings."""
    clock = Clock()
    reader = HostReader({}, clock=clock)
    first = total()
    assert read(reader) == {}
    second = total()
    cause()
    clock.now = 10
    third = total()
    counted = 10 * read(reader)[name]
    assert third - second <= counted <= total() - first


def _read_host(reader: HostReader) -> dict[str, Any]:
    host: dict[str, Any] = {}
    for part in reader.parts().values():
        host |= part()
    return host


# Processes


def test_allocated_memory_is_resident() -> None:
    reader = ProcessReader()
    before = reader.read()
    with mmap.mmap(-1, 64 * MIB) as held:
        for offset in range(0, len(held), mmap.PAGESIZE):
            held[offset] = 1
        after = reader.read()
    assert 60 * MIB < after["resident_bytes"] - before["resident_bytes"] < 100 * MIB


def test_children_are_counted_with_their_memory_until_they_end() -> None:
    reader = ProcessReader()
    before = reader.read()
    with _child(HOLD_64_MIB) as child:
        during = reader.read()
        assert reader.pids == {os.getpid(), child.pid}
    after = reader.read()
    assert (before["children"], during["children"], after["children"]) == (0, 1, 0)
    of_children = during["resident_bytes_with_children"] - during["resident_bytes"]
    assert 64 * MIB < of_children < 100 * MIB
    assert after["resident_bytes_with_children"] == after["resident_bytes"]
    assert reader.pids == {os.getpid()}


def test_children_of_children_are_counted() -> None:
    grandchild = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)"
    reader = ProcessReader()
    with _child(grandchild):
        assert reader.read()["children"] == 2


def test_a_child_that_is_killed_while_it_is_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    children = psutil.Process.children
    with _child("") as doomed, _child("") as other:

        def children_then_kill(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
            found = children(process, recursive=recursive)
            doomed.kill()
            doomed.wait()
            return found

        monkeypatch.setattr(psutil.Process, "children", children_then_kill)
        reader = ProcessReader()
        assert reader.read()["children"] == 1
        assert reader.pids == {os.getpid(), other.pid}


def test_a_zombie_is_no_trouble() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie from here on
    try:
        readings = ProcessReader().read()
        assert readings["resident_bytes_with_children"] == readings["resident_bytes"]
    finally:
        child.communicate()


def test_a_busy_child_shows_from_its_first_reading_and_is_not_taken_back_when_it_ends() -> None:
    clock = Clock()
    reader = ProcessReader(clock=clock)
    assert not reader.read().keys() & RATES
    with _child(BURN_HALF_A_SECOND):
        clock.now = 10
        busy = reader.read()
    clock.now = 20
    after = reader.read()
    assert 4.8 <= busy["cpu_percent_with_children"] - busy["cpu_percent"] < 20
    assert after["cpu_percent_with_children"] == pytest.approx(after["cpu_percent"], abs=0.02)


def test_a_busy_process_shows() -> None:
    clock = Clock()
    with _child("") as child:
        reader = ProcessReader(child.pid, clock=clock)
        reader.read()
        clock.now = 10
        assert reader.read()["cpu_percent"] <= 1
    reader = ProcessReader(clock=clock)
    reader.read()
    burnt = _own_cpu_seconds() + 0.3
    while _own_cpu_seconds() < burnt:
        pass
    clock.now = 20
    assert reader.read()["cpu_percent"] >= 2.8


def _own_cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def test_threads_and_open_files_are_counted(tmp_path: Path) -> None:
    reader = ProcessReader()
    before = reader.read()
    leave = threading.Event()
    threads = [threading.Thread(target=leave.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        during = reader.read()
    leave.set()
    for thread in threads:
        thread.join()
    assert during["threads"] == before["threads"] + 3
    assert during["open_files"] == before["open_files"] + 2


# GPUs


class FakeNvml:
    """NVML as pynvml shows it, with GPUs made up here. `faults` raises an error code for a function of a GPU."""

    def __init__(self, names: tuple[str, ...] = ("H100", "H100")) -> None:
        self.names = names
        self.faults: dict[tuple[int, str], int] = {}
        self.init_error: int | None = None
        self.processes: list[Any] = []
        self.opened = 0

    def __getattr__(self, name: str) -> Any:
        """Constants and classes are the real ones."""
        if name.startswith("NVML"):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return self._answer(index, index)

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self._answer(handle, self.names[handle])

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self._answer(handle, f"GPU-{handle}abc")

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._answer(handle, SimpleNamespace(gpu=90 + handle, memory=40 + handle))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._answer(handle, SimpleNamespace(total=80 << 30, used=handle << 30, free=(80 - handle) << 30))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return self._answer(handle, {pynvml.NVML_TEMPERATURE_GPU: 60 + handle}[sensor])

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._answer(handle, 345_600)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return self._answer(handle, 700_000)

    def nvmlDeviceGetClockInfo(self, handle: int, type: int) -> int:
        return self._answer(handle, {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[type])

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self._answer(
            handle, pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
        )

    def nvmlDeviceGetTotalEccErrors(self, handle: int, errorType: int, counterType: int) -> int:
        assert counterType == pynvml.NVML_VOLATILE_ECC
        kinds = {pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED: 3, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED: 1}
        return self._answer(handle, kinds[errorType])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return self._answer(handle, self.processes)

    def _answer(self, handle: int, value: Any) -> Any:
        function = sys._getframe(1).f_code.co_name
        for key in ((handle, function), (handle, "*")):
            if key in self.faults:
                raise pynvml.NVMLError(self.faults[key])
        return value


class Gpus:
    """A reader of GPUs whose words are kept."""

    def __init__(self, nvml: Any, **environment: str) -> None:
        self.warnings: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._reader = GpuReader(
            lambda name, message: self.warnings.append((name, message)),
            self.notes.append,
            nvml=nvml,
            environment=environment,
        )

    def read(self, pids: set[int] | None = None) -> Events:
        return self._reader.read(pids or set())

    def close(self) -> None:
        self._reader.close()


FIRST_GPU = {
    "index": 0,
    "name": "H100",
    "uuid": "GPU-0abc",
    "visible": True,
    "utilization_percent": 90,
    "memory_utilization_percent": 40,
    "memory_total_bytes": 80 << 30,
    "memory_used_bytes": 0,
    "temperature_celsius": 60,
    "power_watts": 345.6,
    "power_limit_watts": 700.0,
    "sm_clock_hertz": 1_980_000_000,
    "memory_clock_hertz": 2_619_000_000,
    "throttle_reasons": ["software power cap", "hardware thermal slowdown"],
    "ecc_errors_corrected": 3,
    "ecc_errors_uncorrected": 1,
    "process_memory_bytes": 5 << 30,
}


def _process_on_gpu(pid: int, used: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_every_gpu_is_read_at_its_place() -> None:
    nvml = FakeNvml()
    nvml.processes = [_process_on_gpu(10, 2 << 30), _process_on_gpu(11, 3 << 30), _process_on_gpu(99, 7 << 30)]
    gpus = Gpus(nvml)
    first, second = gpus.read({10, 11, 12})
    assert first == FIRST_GPU
    assert (second["index"], second["uuid"], second["utilization_percent"]) == (1, "GPU-1abc", 91)
    assert (gpus.warnings, gpus.notes) == ([], [])
    gpus.read()
    assert nvml.opened == 1
    gpus.close()
    gpus.close()
    assert nvml.opened == 0


def test_memory_of_processes_that_the_driver_does_not_know_is_left_out() -> None:
    nvml = FakeNvml()
    nvml.processes = [_process_on_gpu(10, None), _process_on_gpu(99, 7 << 30)]
    for pids in ({10}, {11}, set()):
        assert "process_memory_bytes" not in Gpus(nvml).read(pids)[0]


def test_what_a_gpu_does_not_support_is_left_out_without_a_word() -> None:
    nvml = FakeNvml()
    for function in ("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates"):
        nvml.faults[0, function] = pynvml.NVML_ERROR_NOT_SUPPORTED
    gpus = Gpus(nvml)
    first, second = gpus.read()
    missing = {name for name in second if name not in first}
    assert missing == {
        "ecc_errors_corrected",
        "ecc_errors_uncorrected",
        "power_watts",
        "utilization_percent",
        "memory_utilization_percent",
    }
    assert (gpus.warnings, gpus.notes) == ([], [])


def test_what_may_not_be_read_is_noted_once() -> None:
    nvml = FakeNvml()
    nvml.faults[0, "nvmlDeviceGetComputeRunningProcesses"] = pynvml.NVML_ERROR_NO_PERMISSION
    nvml.faults[1, "nvmlDeviceGetTemperature"] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    gpus = Gpus(nvml)
    gpus.read()
    assert "temperature_celsius" not in gpus.read()[1]
    assert gpus.warnings == []
    assert gpus.notes == [
        "GPU readings of processes are left out: Insufficient Permissions",
        "GPU readings of temperature are left out: Function Not Found",
    ]


@pytest.mark.parametrize("function", ["*", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetTotalEccErrors"])
def test_a_gpu_that_is_lost_is_told_once_and_keeps_its_place_until_it_comes_back(function: str) -> None:
    nvml = FakeNvml()
    gpus = Gpus(nvml)
    gpus.read()
    nvml.faults[0, function] = pynvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(3):
        first, second = gpus.read()
        assert first == {"index": 0, "name": "H100", "uuid": "GPU-0abc", "visible": True}
        assert second["utilization_percent"] == 91
    assert gpus.warnings == [("gpu_lost", "GPU 0 H100 GPU-0abc cannot be read: GPU is lost")]
    nvml.faults.clear()
    for _ in range(3):
        assert gpus.read()[0]["utilization_percent"] == 90
    assert gpus.warnings[1:] == [("gpu_back", "GPU 0 H100 GPU-0abc can be read again")]


def test_a_gpu_that_is_lost_from_the_start_is_told_by_its_number() -> None:
    nvml = FakeNvml()
    nvml.faults[1, "nvmlDeviceGetHandleByIndex"] = pynvml.NVML_ERROR_UNKNOWN
    gpus = Gpus(nvml)
    assert gpus.read()[1] == {"index": 1, "visible": True}
    assert gpus.warnings == [("gpu_lost", "GPU 1 cannot be read: Unknown Error")]
    nvml.faults.clear()
    assert gpus.read()[1]["name"] == "H100"


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, None])
def test_a_machine_without_gpus_says_so_once_and_warns_of_nothing(error: int | None) -> None:
    nvml = FakeNvml(())
    nvml.init_error = error
    gpus = Gpus(nvml)
    assert [gpus.read(), gpus.read()] == [[], []]
    assert (gpus.warnings, gpus.notes) == ([], [NO_GPU])
    gpus.close()


def test_the_made_up_nvml_has_the_functions_of_the_real_one() -> None:
    functions = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(functions) > 10
    for name in functions:
        needed = [p for p in _parameters(getattr(pynvml, name)) if p.default is inspect.Parameter.empty]
        assert len(_parameters(getattr(FakeNvml(), name))) == len(needed), name


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize(
    ("visible_devices", "order", "expected"),
    [
        (None, None, [True, True, True]),
        ("", None, [False, False, False]),
        ("-1", None, [False, False, False]),
        ("2,0", None, [True, False, True]),
        (" 1 ", None, [False, True, False]),
        ("1,-1,2", None, [False, True, False]),
        ("1,7,2", None, [False, True, False]),
        ("GPU-b", None, [False, True, False]),
        ("GPU-c1,GPU-a", None, [True, False, True]),
        ("GPU-", None, [False, False, False]),
        ("MIG-123", None, [None, None, None]),
    ],
)
def test_visible_gpus_are_those_that_cuda_shows(
    visible_devices: str | None, order: str | None, expected: list[bool | None]
) -> None:
    gpus = [{"name": "H100", "uuid": uuid} for uuid in ("GPU-a1", "GPU-b1", "GPU-c1")]
    assert visible_gpus(gpus, visible_devices, order) == expected


def test_numbers_of_gpus_that_differ_are_known_only_by_the_order_of_the_bus() -> None:
    gpus = [{"name": "T4", "uuid": "GPU-a"}, {"name": "H100", "uuid": "GPU-b"}]
    assert visible_gpus(gpus, "0", None) == [None, None]
    assert visible_gpus(gpus, "0", "PCI_BUS_ID") == [True, False]
    assert visible_gpus(gpus, "GPU-b", None) == [False, True]


def test_gpus_are_marked_as_the_environment_says() -> None:
    assert [gpu["visible"] for gpu in Gpus(FakeNvml(), CUDA_VISIBLE_DEVICES="1").read()] == [False, True]
    readings = Gpus(FakeNvml(("T4", "H100")), CUDA_VISIBLE_DEVICES="1").read()
    assert not any("visible" in gpu for gpu in readings)


def test_reasons_for_low_clocks_are_texts() -> None:
    assert throttle_reasons(0) == []
    assert throttle_reasons(0x8 | 0x4000) == ["hardware slowdown", "unknown (0x4000)"]
    known = {
        value
        for name, value in vars(pynvml).items()
        if name.startswith("nvmlClocksThrottleReason") and not name.endswith(("All", "None"))
    }
    assert not any("unknown" in text for bit in known for text in throttle_reasons(bit))


def _gpus_here() -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


@pytest.mark.skipif(_gpus_here() == 0, reason="needs a GPU")
def test_a_real_gpu_tells_of_memory_that_is_taken() -> None:
    import torch

    gpus = Gpus(None)
    before = gpus.read({os.getpid()})
    torch.cuda.init()
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    held = torch.ones(256 * MIB, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    after = gpus.read({os.getpid()})
    assert [gpu["index"] for gpu in after] == list(range(len(after)))
    (index,) = (gpu["index"] for gpu in after if gpu["uuid"] == uuid)
    assert after[index]["memory_used_bytes"] - before[index]["memory_used_bytes"] >= held.nbytes
    assert after[index].get("process_memory_bytes", held.nbytes) >= held.nbytes  # absent in a container
    assert 0 < after[index]["temperature_celsius"] < 120
    assert gpus.warnings == []
    gpus.close()


@pytest.mark.skipif(_gpus_here() > 0, reason="needs a machine without a GPU")
def test_the_real_library_finds_no_gpu_here() -> None:
    gpus = Gpus(None)
    assert gpus.read() == []
    assert gpus.notes == [NO_GPU]


# The monitor


class Reports:
    """What a monitor reported; `wait_for` waits until so many events of a type are there."""

    def __init__(self) -> None:
        self.events: Events = []
        self._changed = threading.Condition()

    def __call__(self, type: str, **fields: Any) -> None:
        with self._changed:
            self.events.append({"type": type, **fields})
            self._changed.notify_all()

    def of(self, type: str) -> Events:
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
    nvml.processes = [_process_on_gpu(os.getpid(), 5 << 30)]
    with EventWriter(tmp_path) as log:
        reports = Reports()

        def report(type: str, **fields: Any) -> None:
            log.append(type, **fields)
            reports(type, **fields)

        with _monitor(report, tmp_path, nvml=nvml, clock=clock):
            reports.wait_for(1)
            with _child(BURN_HALF_A_SECOND):
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
