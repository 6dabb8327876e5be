"""Readings of a machine and of the processes of a training; `system_monitor` lists the names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

Readings = dict[str, Any]

LEAST_SECONDS = 0.1
"""Nothing is measured over less: the kernel counts the time of processors in steps of 0.01 s."""


class Rates:
    """How fast counters rise between two readings."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._before: dict[str, tuple[float, float]] = {}

    def per_second(self, name: str, total: float) -> Readings:
        """The rate of one counter under `name`; nothing at its first reading, or where it was set back."""
        now = self._clock()
        time_before, total_before = self._before.get(name, (now, total))
        seconds, risen = now - time_before, total - total_before
        if name in self._before and seconds < LEAST_SECONDS:
            return {}
        self._before[name] = now, total
        return {name: risen / seconds} if seconds >= LEAST_SECONDS and risen >= 0 else {}


class HostReader:
    """Reads the machine, part by part, so that one that cannot be read leaves the others."""

    def __init__(self, paths: Mapping[str, Path], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = dict(paths)
        self._rates = Rates(clock)
        self._cores_before: list[_Core] = []

    def parts(self) -> dict[str, Callable[[], Readings]]:
        return {
            "CPU": self.cpu,
            "load": lambda: {"load_1m": os.getloadavg()[0]},
            "memory": memory,
            "swap": swap,
            "disk": self.disks,
            "disk traffic": self.disk_traffic,
            "network": self.network,
        }

    def cpu(self) -> Readings:
        """How busy the cores were since the last reading, all together and each."""
        before, now = self._cores_before, [_Core.of(times) for times in psutil.cpu_times(percpu=True)]
        if len(before) != len(now):
            self._cores_before = now
            return {}
        totals = [core.total - past.total for past, core in zip(before, now, strict=True)]
        if min(totals) < LEAST_SECONDS:
            return {}
        self._cores_before = now
        busy = [core.busy - past.busy for past, core in zip(before, now, strict=True)]
        return {
            "cpu_percent": _percent(sum(busy), sum(totals)),
            "cpu_percents": [_percent(part, total) for part, total in zip(busy, totals, strict=True)],
        }

    def disks(self) -> Readings:
        return {
            f"{'' if name == 'home' else name + '_'}disk_{field}": value
            for name, path in self._paths.items()
            for field, value in disk(path).items()
        }

    def disk_traffic(self) -> Readings:
        """Of all disks of the machine; nothing where it has none of its own."""
        counters = psutil.disk_io_counters()
        if counters is None:
            return {}
        return self._rates.per_second("disk_read_bytes_per_second", counters.read_bytes) | self._rates.per_second(
            "disk_write_bytes_per_second", counters.write_bytes
        )

    def network(self) -> Readings:
        """Of all interfaces but the loopback."""
        interfaces = [counters for name, counters in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        received = sum(counters.bytes_recv for counters in interfaces)
        sent = sum(counters.bytes_sent for counters in interfaces)
        return self._rates.per_second("network_received_bytes_per_second", received) | self._rates.per_second(
            "network_sent_bytes_per_second", sent
        )


class _Core(NamedTuple):
    """Seconds of a core since the machine started."""

    busy: float
    total: float

    @classmethod
    def of(cls, times: Any) -> _Core:
        """From psutil's times; those of guests are part of `user` and `nice`."""
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return cls(total - times.idle - getattr(times, "iowait", 0.0), total)


def _percent(part: float, whole: float) -> float:
    return round(min(max(100 * part / whole, 0.0), 100.0), 2)  # the kernel's time of waiting may step back a little


def memory() -> Readings:
    found = psutil.virtual_memory()
    return {
        "memory_total_bytes": found.total,
        "memory_used_bytes": found.used,
        "memory_available_bytes": found.available,
        "memory_percent": found.percent,
    }


def swap() -> Readings:
    found = psutil.swap_memory()
    return {"swap_total_bytes": found.total, "swap_used_bytes": found.used}


def disk(path: Path) -> Readings:
    """The disk that `path` is on; `percent` is of what those who are not root may use."""
    found = psutil.disk_usage(str(path))
    return {
        "total_bytes": found.total,
        "used_bytes": found.used,
        "free_bytes": found.free,
        "percent": found.percent,
    }


class _Usage(NamedTuple):
    cpu_seconds: float
    resident_bytes: int

    @classmethod
    def of(cls, process: psutil.Process) -> _Usage:
        with process.oneshot():
            times = process.cpu_times()
            return cls(times.user + times.system, process.memory_info().rss)


class ProcessReader:
    """Reads a process and its children, grandchildren and so on.

    Resident bytes of several processes count memory that they share, such as that of a parent that forked, once for
    each of them.

    Attributes:
        pids: the numbers of the processes that were found by the last reading.
    """

    def __init__(self, pid: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.pids: frozenset[int] = frozenset()
        self._pid = pid
        self._process: psutil.Process | None = None
        self._rates = Rates(clock)
        self._cpu_seconds: dict[psutil.Process, float] = {}
        self._cpu_seconds_of_children = 0.0

    def read(self) -> Readings:
        """Raises psutil.NoSuchProcess when the process itself is gone; children may come and go."""
        process = self._process = self._process or psutil.Process(self._pid)
        own, children = _Usage.of(process), _children(process)
        self.pids = frozenset((process.pid, *(child.pid for child in children)))
        self._count_cpu_seconds(children)
        return {
            **self._cpu_percent("cpu_percent", own.cpu_seconds),
            **self._cpu_percent("cpu_percent_with_children", own.cpu_seconds + self._cpu_seconds_of_children),
            "resident_bytes": own.resident_bytes,
            "resident_bytes_with_children": own.resident_bytes + sum(u.resident_bytes for u in children.values()),
            "children": len(children),
            "threads": process.num_threads(),
            "open_files": process.num_fds(),
        }

    def _count_cpu_seconds(self, children: Mapping[psutil.Process, _Usage]) -> None:
        """Sum up over all children there have been: a child that ends takes nothing back, and one is new at 0."""
        for child, usage in children.items():
            self._cpu_seconds_of_children += usage.cpu_seconds - self._cpu_seconds.get(child, 0.0)
        self._cpu_seconds = {child: usage.cpu_seconds for child, usage in children.items()}

    def _cpu_percent(self, name: str, cpu_seconds: float) -> Readings:
        return {key: round(100 * rate, 2) for key, rate in self._rates.per_second(name, cpu_seconds).items()}


def _children(process: psutil.Process) -> dict[psutil.Process, _Usage]:
    found = {}
    for child in process.children(recursive=True):
        try:
            found[child] = _Usage.of(child)
        except psutil.NoSuchProcess:  # it ended since
            continue
    return found
