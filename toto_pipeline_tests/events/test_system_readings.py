"""The numbers of the machine and of processes are those that real causes make."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from toto_pipeline.events.system_readings import HostReader, ProcessReader, Rates
from toto_pipeline_tests.fixtures.machine import (
    BURN_HALF_A_SECOND,
    HOLD_64_MIB,
    MIB,
    RATES,
    Clock,
    child_process,
)


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
    with child_process(BURN_HALF_A_SECOND):
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
        monkeypatch.setattr(psutil, "cpu_times", lambda **_: list(cores))
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


def test_traffic_has_its_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are made up, since a machine may have neither a disk of its own nor a network."""
    clock = Clock()
    reader = HostReader({}, clock=clock)

    def read_at(seconds: float, read: int, written: int, received: int, sent: int) -> dict[str, Any]:
        clock.now = seconds
        card = SimpleNamespace(bytes_recv=received, bytes_sent=sent)
        counters = SimpleNamespace(read_bytes=read, write_bytes=written)
        monkeypatch.setattr(psutil, "disk_io_counters", lambda: counters)
        monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {"eth0": card, "eth1": card})
        return reader.disk_traffic() | reader.network()

    assert read_at(0, 1, 2, 3, 4) == {}
    assert read_at(10, 1001, 2002, 3003, 4004) == {
        "disk_read_bytes_per_second": 100.0,
        "disk_write_bytes_per_second": 200.0,
        "network_received_bytes_per_second": 600.0,
        "network_sent_bytes_per_second": 800.0,
    }
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    assert reader.disk_traffic() == {}


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


def test_memory_is_resident_once_it_is_touched() -> None:
    reader = ProcessReader()
    with mmap.mmap(-1, 64 * MIB) as held:
        before = reader.read()  # memory that was asked for and never touched takes no room
        for offset in range(0, len(held), mmap.PAGESIZE):
            held[offset] = 1
        after = reader.read()
    assert 60 * MIB < after["resident_bytes"] - before["resident_bytes"] < 100 * MIB


def test_children_are_counted_with_their_memory_until_they_end() -> None:
    reader = ProcessReader()
    before, others = reader.read(), reader.pids
    with child_process(HOLD_64_MIB) as child:
        during = reader.read()
        assert reader.pids == others | {child.pid}
    after = reader.read()
    assert [each["children"] - before["children"] for each in (during, after)] == [1, 0]
    assert 64 * MIB < _of_children(during) - _of_children(before) < 100 * MIB
    assert _of_children(after) == pytest.approx(_of_children(before), abs=MIB)
    assert reader.pids == others >= {os.getpid()}


def _of_children(readings: dict[str, Any]) -> int:
    """Their memory. Processes that other tests have left, such as multiprocessing's, are among them and are idle."""
    return int(readings["resident_bytes_with_children"] - readings["resident_bytes"])


def test_children_of_children_are_counted() -> None:
    grandchild = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)"
    reader = ProcessReader()
    before = reader.read()["children"]
    with child_process(grandchild):
        assert reader.read()["children"] == before + 2


def test_a_child_that_is_killed_while_it_is_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    children = psutil.Process.children
    earlier = ProcessReader()
    before = earlier.read()["children"]
    with child_process("") as doomed, child_process("") as other:

        def children_then_kill(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
            found = children(process, recursive=recursive)
            doomed.kill()
            doomed.wait()
            return found

        monkeypatch.setattr(psutil.Process, "children", children_then_kill)
        reader = ProcessReader()
        assert reader.read()["children"] == before + 1
        assert reader.pids == earlier.pids | {other.pid}


def test_a_zombie_is_no_trouble() -> None:
    before = ProcessReader().read()
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie from here on
    try:
        assert _of_children(ProcessReader().read()) == pytest.approx(_of_children(before), abs=MIB)
    finally:
        child.communicate()


def test_a_busy_child_shows_from_its_first_reading_and_is_not_taken_back_when_it_ends() -> None:
    clock = Clock()
    reader = ProcessReader(clock=clock)
    assert not reader.read().keys() & RATES
    with child_process(BURN_HALF_A_SECOND):
        clock.now = 10
        busy = reader.read()
    clock.now = 20
    after = reader.read()
    assert 4.8 <= busy["cpu_percent_with_children"] - busy["cpu_percent"] < 20
    assert after["cpu_percent_with_children"] == pytest.approx(after["cpu_percent"], abs=0.02)


def test_a_busy_process_shows_and_an_idle_one_does_not() -> None:
    clock = Clock()
    with child_process("") as child:
        busy, idle = ProcessReader(clock=clock), ProcessReader(child.pid, clock=clock)
        busy.read(), idle.read()
        burnt = _own_cpu_seconds() + 0.3
        while _own_cpu_seconds() < burnt:
            pass
        clock.now = 10
        assert busy.read()["cpu_percent"] >= 2.8
        assert idle.read()["cpu_percent"] <= 1


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
    with (tmp_path / "a").open("w"), socket.socket():
        during = reader.read()
    leave.set()
    for thread in threads:
        thread.join()
    assert during["threads"] == before["threads"] + 3
    assert during["open_files"] == before["open_files"] + 2
