"""GPUs are read one by one: what one of them lacks or loses costs only itself."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from toto_pipeline.events.gpu_readings import NO_GPU, GpuReader, throttle_reasons, visible_gpus
from toto_pipeline_tests.fixtures.machine import (
    FIRST_GPU,
    MIB,
    FakeNvml,
    process_on_gpu,
)


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

    def read(self, pids: set[int] | None = None) -> list[dict[str, Any]]:
        return self._reader.read(pids or set())

    def close(self) -> None:
        self._reader.close()


def test_every_gpu_is_read_at_its_place() -> None:
    nvml = FakeNvml()
    nvml.processes = [process_on_gpu(10, 2 << 30), process_on_gpu(11, 3 << 30), process_on_gpu(99, 7 << 30)]
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
    nvml.processes = [process_on_gpu(10, None), process_on_gpu(99, 7 << 30)]
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
