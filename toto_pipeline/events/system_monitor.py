"""Readings of the machine while a run trains: the events of type `system`.

host     cpu_percent, cpu_percents (of each core), load_1m, memory_total_bytes, memory_used_bytes,
         memory_available_bytes, memory_percent, swap_total_bytes, swap_used_bytes,
         disk_total_bytes, disk_used_bytes, disk_free_bytes, disk_percent,
         disk_read_bytes_per_second, disk_write_bytes_per_second,
         network_received_bytes_per_second, network_sent_bytes_per_second
process  cpu_percent, cpu_percent_with_children, resident_bytes, resident_bytes_with_children, children, threads,
         open_files
gpus     of each GPU, at the place of its NVML index: index, name, uuid, visible, utilization_percent,
         memory_utilization_percent, memory_total_bytes, memory_used_bytes, temperature_celsius, power_watts,
         power_limit_watts, sm_clock_hertz, memory_clock_hertz, throttle_reasons, ecc_errors_corrected,
         ecc_errors_uncorrected, process_memory_bytes

Percentages of a CPU are of one core for a process (two busy threads are 200) and of all cores for the host. What is
measured between two readings is absent from the first; what a machine cannot tell is absent from all. A GPU that is
lost keeps its place in the list, with its name and no readings.

Other events: `warning` gpu_lost and gpu_back; `warning` system_monitor for a part that cannot be read, once; `text`
system for what a machine does not have.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.gpu_readings import GpuReader
from toto_pipeline.events.system_readings import HostReader, ProcessReader

Result = TypeVar("Result")

INTERVAL_SECONDS = 10.0
CLOSE_SECONDS = 5.0
"""A driver in trouble can hold a reading for minutes; the end of a training does not wait longer than this."""


class SystemMonitor:
    """Reports readings from a thread of its own: one at once, one each `interval_seconds`, one at the end.

    Used as a context manager inside that of the log. No fault of a reading reaches the thread that trains.

    Args:
        report: `EventWriter.append`, or what wraps it; called from the monitor's thread.
        paths: a name of each disk to watch, and a path on it. The disk called "home" gives `disk_free_bytes` and so
            on, another gives `<name>_disk_free_bytes`.
        pid: the process whose readings, with those of its children, are taken; this one by default.
        nvml: a module with the functions of `pynvml`.

    Raises:
        ConfigError: `interval_seconds` is not above 0.
    """

    def __init__(
        self,
        report: Callable[..., None],
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        paths: Mapping[str, Path],
        pid: int | None = None,
        nvml: Any = None,
        clock: Callable[[], float] = time.monotonic,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        if not interval_seconds > 0:
            raise ConfigError(
                f"interval_seconds of the system monitor is {interval_seconds:g}; expected a number above 0. "
                f"Set it to {INTERVAL_SECONDS:g}."
            )
        self._report = report
        self._interval_seconds = interval_seconds
        self._close_seconds = close_seconds
        self._host = HostReader(paths, clock=clock)
        self._process = ProcessReader(pid, clock=clock)
        self._gpus = GpuReader(self._warn, self._note, nvml=nvml)
        self._failed: set[str] = set()
        self._ending = threading.Event()
        self._reporting = threading.Lock()
        self._is_silent = False
        self._thread = threading.Thread(target=self._run, name="system-monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take the last reading and end. A reading that hangs is left to itself, and will report nothing."""
        self._ending.set()
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self._warn(
                "system_monitor", f"the last reading of the machine did not end within {self._close_seconds:g} s"
            )
            with self._reporting:
                self._is_silent = True

    def __enter__(self) -> SystemMonitor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        self._sample()
        while not self._ending.wait(self._interval_seconds):
            self._sample()
        self._sample()
        self._try("GPU", self._gpus.close)

    def _sample(self) -> None:
        host: dict[str, Any] = {}
        for name, part in self._host.parts().items():
            host |= self._try(name, part) or {}
        process = self._try("process", self._process.read)
        gpus = self._try("GPU", lambda: self._gpus.read(self._process.pids))
        found = {"host": host, "process": process, "gpus": gpus}
        self._say("system", **{name: readings for name, readings in found.items() if readings})

    def _try(self, part: str, read: Callable[[], Result]) -> Result | None:
        """What `read` gives. Whatever goes wrong in it is reported, the first time, and the rest goes on."""
        try:
            return read()
        except Exception as error:
            if part not in self._failed:
                self._failed.add(part)
                reason = f"{type(error).__name__}: {error}"
                self._warn("system_monitor", f"{part} readings are left out as long as they fail: {reason}")
            return None

    def _warn(self, name: str, message: str) -> None:
        self._say("warning", name=name, message=message)

    def _note(self, text: str) -> None:
        self._say("text", name="system", text=text)

    def _say(self, type: str, **fields: Any) -> None:
        with self._reporting:
            if self._is_silent:
                return
            try:
                self._report(type, **fields)
            except Exception as error:  # the log is broken: its own thread tells the training
                print(f"the system monitor cannot report {type!r}: {error}", file=sys.stderr)
