"""Readings of NVIDIA GPUs by NVML; `system_monitor` lists the names."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Readings = dict[str, Any]

NO_GPU = "no NVIDIA GPU: GPU readings are left out"

THROTTLE_REASONS = {
    0x001: "idle",
    0x002: "application clocks setting",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability",
}
"""Bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h, nvmlClocksThrottleReasons)."""

HERTZ_PER_MEGAHERTZ = 1_000_000
MILLIWATTS = 1000


@dataclass
class _Gpu:
    index: int
    identity: dict[str, str] = field(default_factory=dict)
    """name and uuid, once they were read"""
    is_lost: bool = False

    def __str__(self) -> str:
        return " ".join([f"GPU {self.index}", *self.identity.values()])


class GpuReader:
    """Reads all GPUs of the machine.

    What a GPU does not support is left out without a word, and what this user or driver may not read with a note. By
    any other error a GPU counts as lost until it answers again.

    Args:
        warn: takes a name and a message.
        note: takes a text.
        nvml: a module with the functions of `pynvml`, which is the default.
        environment: tells which GPUs a training in this process sees.
    """

    def __init__(
        self,
        warn: Callable[[str, str], None],
        note: Callable[[str], None],
        *,
        nvml: Any = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._warn = warn
        self._note = note
        self._nvml = nvml
        self._visible_devices = environment.get("CUDA_VISIBLE_DEVICES")
        self._device_order = environment.get("CUDA_DEVICE_ORDER")
        self._gpus: list[_Gpu] | None = None
        self._is_open = False
        self._noted: set[str] = set()

    def read(self, pids: Collection[int]) -> list[Readings]:
        """Readings of each GPU, in the order of NVML; `pids` are the processes whose memory on it is summed up.

        Raises:
            pynvml.NVMLError: the driver is there and does not answer.
        """
        if self._gpus is None:
            self._gpus = self._open()
        readings = [self._read(gpu, pids) for gpu in self._gpus]
        visible = visible_gpus([gpu.identity for gpu in self._gpus], self._visible_devices, self._device_order)
        for reading, is_visible in zip(readings, visible, strict=True):
            if is_visible is not None:
                reading["visible"] = is_visible
        return readings

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()

    def _open(self) -> list[_Gpu]:
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        count = 0
        try:
            if not self._is_open:
                self._nvml.nvmlInit()
                self._is_open = True
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            if error.value not in (self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND, self._nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                raise
        if count == 0:
            self._note(NO_GPU)
        return [_Gpu(index) for index in range(count)]

    def _read(self, gpu: _Gpu, pids: Collection[int]) -> Readings:
        values: Readings = {}
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(gpu.index)
            if not gpu.identity:
                gpu.identity = {
                    "name": self._nvml.nvmlDeviceGetName(handle),
                    "uuid": self._nvml.nvmlDeviceGetUUID(handle),
                }
            for what, read in self._values(handle, pids).items():
                values |= self._supported(what, read)
        except self._nvml.NVMLError as error:
            values = {}
            if not gpu.is_lost:
                self._warn("gpu_lost", f"{gpu} cannot be read: {error}")
            gpu.is_lost = True
        else:
            if gpu.is_lost:
                self._warn("gpu_back", f"{gpu} can be read again")
            gpu.is_lost = False
        return {"index": gpu.index, **gpu.identity, **values}

    def _values(self, handle: Any, pids: Collection[int]) -> dict[str, Callable[[], Readings]]:
        """What to read, one call of NVML each, since any of them may be unsupported."""
        nvml = self._nvml

        def clock(kind: int) -> int:
            return int(nvml.nvmlDeviceGetClockInfo(handle, kind)) * HERTZ_PER_MEGAHERTZ

        def ecc_errors(kind: int) -> int:
            return int(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, nvml.NVML_VOLATILE_ECC))

        def reasons() -> list[str]:
            return throttle_reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))

        return {
            "utilization": lambda: _utilization(nvml.nvmlDeviceGetUtilizationRates(handle)),
            "memory": lambda: _memory(nvml.nvmlDeviceGetMemoryInfo(handle)),
            "temperature": lambda: {
                "temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            },
            "power": lambda: {"power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / MILLIWATTS},
            "power limit": lambda: {"power_limit_watts": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / MILLIWATTS},
            "clock": lambda: {"sm_clock_hertz": clock(nvml.NVML_CLOCK_SM)},
            "memory clock": lambda: {"memory_clock_hertz": clock(nvml.NVML_CLOCK_MEM)},
            "throttle reasons": lambda: {"throttle_reasons": reasons()},
            "corrected errors": lambda: {"ecc_errors_corrected": ecc_errors(nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)},
            "uncorrected errors": lambda: {
                "ecc_errors_uncorrected": ecc_errors(nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
            },
            "processes": lambda: _process_memory(nvml.nvmlDeviceGetComputeRunningProcesses(handle), pids),
        }

    def _supported(self, what: str, read: Callable[[], Readings]) -> Readings:
        """What `read` gives, or nothing where this GPU, driver or user does not have it."""
        nvml = self._nvml
        try:
            return read()
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                self._note_once(f"GPU readings of {what} are left out: {error}")
            elif error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
                raise
            return {}

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)


def throttle_reasons(bits: int) -> list[str]:
    """Why the clocks are lower than they could be, as texts; unknown reasons by their bit."""
    known = [text for bit, text in THROTTLE_REASONS.items() if bits & bit]
    unknown = bits & ~sum(THROTTLE_REASONS)
    return known + ([f"unknown ({unknown:#x})"] if unknown else [])


def visible_gpus(
    gpus: Sequence[Mapping[str, str]], visible_devices: str | None, device_order: str | None
) -> list[bool | None]:
    """Which of the GPUs (name and uuid, in the order of NVML) CUDA shows to a process; None where that is not known.

    As in the CUDA C++ Programming Guide, "CUDA Environment Variables": numbers, or beginnings of UUIDs; the first one
    that does not exist ends the list. CUDA's numbers are those of NVML when it counts by PCI bus, or when all GPUs are
    alike; otherwise it counts the fastest first.
    """
    if visible_devices is None:
        return [True for _ in gpus]
    words = [word.strip() for word in visible_devices.split(",")]
    is_numbered_alike = device_order == "PCI_BUS_ID" or len({gpu["name"] for gpu in gpus if gpu}) <= 1
    chosen: set[int] = set()
    for word in words:
        if word.startswith("MIG-") or (word.isdecimal() and not is_numbered_alike):
            return [None for _ in gpus]
        index = _gpu_called(word, gpus)
        if index is None:
            break
        chosen.add(index)
    return [index in chosen for index in range(len(gpus))]


def _gpu_called(word: str, gpus: Sequence[Mapping[str, str]]) -> int | None:
    if word.isdecimal():
        return int(word) if int(word) < len(gpus) else None
    found = [index for index, gpu in enumerate(gpus) if word and gpu.get("uuid", "").startswith(word)]
    return found[0] if len(found) == 1 else None


def _utilization(rates: Any) -> Readings:
    return {"utilization_percent": rates.gpu, "memory_utilization_percent": rates.memory}


def _memory(memory: Any) -> Readings:
    return {"memory_total_bytes": memory.total, "memory_used_bytes": memory.used}


def _process_memory(processes: Iterable[Any], pids: Collection[int]) -> Readings:
    """Nothing where none of the processes is listed: in a container the driver may know them by other numbers."""
    used = [process.usedGpuMemory for process in processes if process.pid in pids]
    return {"process_memory_bytes": sum(used)} if used and None not in used else {}
