"""What a checkpoint costs: how long a save stops the training, and how long a restore takes.

Each number is a ratio to what the common tools need for the very same state, measured in turn in one run, so that a
busy machine slows both. The state is that of a transformer: many weights, with two AdamW moments each. Restores are
measured in new processes, as they happen: one that has loaded the state before has the memory for it at hand.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import async_save

from toto_pipeline.checkpoints.manager import CheckpointManager, State
from toto_pipeline.settings.training import CheckpointSettings

LIMIT_TO_TORCH_SAVE = 0.25
LIMIT_TO_ASYNC_SAVE = 0.6
LIMIT_TO_TORCH_LOAD = 2.0

Tensors = dict[str, dict[str, torch.Tensor]]


def run(quick: bool) -> list[dict[str, Any]]:
    rounds_of = {50: 5} if quick else {50: 21, 600: 7}
    results, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # as a training does by default; a second one on a busy core is waited for
    try:
        for megabytes, rounds in rounds_of.items():
            with tempfile.TemporaryDirectory() as folder:
                results += _measure(Path(folder), _state(megabytes), rounds, f"{megabytes} MB")
    finally:
        torch.set_num_threads(threads)
    return results


def _state(megabytes: int) -> Tensors:
    """About so many megabytes: layers of a width that grows with the size, as in real models."""
    width = 256 if megabytes < 200 else 512
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,), (width,)]
    layer_bytes = 3 * 4 * sum(torch.Size(shape).numel() for shape in shapes)
    layers = max(1, round(megabytes * 1e6 / layer_bytes))
    names = [(f"layers.{layer}.{index}", shape) for layer in range(layers) for index, shape in enumerate(shapes)]
    model = {name: torch.randn(shape) for name, shape in names}
    moments = {f"{name}.{moment}": torch.rand(shape) for name, shape in names for moment in ("exp_avg", "exp_avg_sq")}
    return {"model": model, "optimizer": moments}


def _measure(folder: Path, tensors: Tensors, rounds: int, size: str) -> list[dict[str, Any]]:
    with _manager(folder / "run") as manager, _OneProcessGroup(folder):
        savers = {
            "ours": lambda number: _save_ours(manager, tensors, number),
            "torch.save": lambda _: _save_torch(folder / "state.pt", tensors),
            "async_save": lambda number: _save_async(folder / f"dcp_{number}", tensors),
        }
        blocked = _in_turn(savers, rounds)
    _save_small(folder)
    with _new_processes() as processes:
        loaders = {
            "ours": lambda _: processes.submit(_load, _load_ours, folder / "small", folder / "run").result(),
            "torch.load": lambda _: processes.submit(
                _load, _load_torch, folder / "small.pt", folder / "state.pt"
            ).result(),
        }
        restored = _in_turn(loaders, min(rounds, 7))
    ours = blocked["ours"]
    return [
        _seconds(f"a save stops the training, {size}", ours),
        _ratio(f"that / torch.save, {size}", ours / blocked["torch.save"], LIMIT_TO_TORCH_SAVE),
        _ratio(f"that / torch.distributed async_save, {size}", ours / blocked["async_save"], LIMIT_TO_ASYNC_SAVE),
        _seconds(f"verify and restore, {size}", restored["ours"]),
        _ratio(f"that / torch.load, {size}", restored["ours"] / restored["torch.load"], LIMIT_TO_TORCH_LOAD),
    ]


def _manager(run_folder: Path) -> CheckpointManager:
    manager = CheckpointManager(run_folder, CheckpointSettings(keep_last=1, reserve_gib=0))
    manager.prepare()
    return manager


def _new_processes() -> ProcessPoolExecutor:
    """Each call in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


def _in_turn(measured: dict[str, Callable[[int], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each; the first round, in which buffers are made, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(rounds + 1):
        for name, measure in measured.items():
            seconds[name].append(measure(number))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def _save_ours(manager: CheckpointManager, tensors: Tensors, number: int) -> float:
    state = State(number, 0, {"validation_loss": 1.0}, tensors, {"note": "a benchmark"})
    started = time.perf_counter()
    manager.save(state)
    seconds = time.perf_counter() - started
    manager.wait()
    return seconds


def _save_torch(file: Path, tensors: Tensors) -> float:
    file.unlink(missing_ok=True)
    started = time.perf_counter()
    torch.save(tensors, file)
    return time.perf_counter() - started


def _save_async(folder: Path, tensors: Tensors) -> float:
    started = time.perf_counter()
    future = async_save(tensors, checkpoint_id=folder)
    seconds = time.perf_counter() - started
    future.result()  # type: ignore[union-attr]
    shutil.rmtree(folder)
    return seconds


def _save_small(folder: Path) -> None:
    """A state that is loaded first, so that the imports of the first load are not counted."""
    tensors = {"model": {"weight": torch.ones(3)}}
    with _manager(folder / "small") as manager:
        _save_ours(manager, tensors, 1)
    _save_torch(folder / "small.pt", tensors)


def _load(load: Callable[[Path], None], first: Path, then: Path) -> float:
    torch.set_num_threads(1)
    load(first)
    started = time.perf_counter()
    load(then)
    return time.perf_counter() - started


def _load_ours(run_folder: Path) -> None:
    manager = CheckpointManager(run_folder)
    checkpoint = manager.latest()
    assert checkpoint is not None
    _touch(dict(manager.load(checkpoint).tensors))


def _load_torch(file: Path) -> None:
    _touch(torch.load(file, weights_only=True))


def _touch(tensors: Tensors) -> None:
    """Read every number once, as the training would: a memory-mapped tensor is not there before that."""
    for members in tensors.values():
        for tensor in members.values():
            tensor.sum()


class _OneProcessGroup:
    """What async_save asks for: a process group on the CPU, here of one."""

    def __init__(self, folder: Path) -> None:
        self._meeting = folder / f"meeting-{os.getpid()}"

    def __enter__(self) -> None:
        dist.init_process_group("gloo", init_method=f"file://{self._meeting}", rank=0, world_size=1)

    def __exit__(self, *error: object) -> None:
        dist.destroy_process_group()


def _seconds(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "s", "limit": None, "ok": None}


def _ratio(name: str, value: float, limit: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "ratio", "limit": f"<= {limit}", "ok": value <= limit}
