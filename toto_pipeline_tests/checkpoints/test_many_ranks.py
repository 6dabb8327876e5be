"""The manager in a job of several processes that each hold a part of the tensors."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from toto_pipeline.checkpoints.manager import CheckpointManager, State
from toto_pipeline.checkpoints.sharded import Tensors
from toto_pipeline.errors import CheckpointError, PipelineError, StorageError
from toto_pipeline_tests.checkpoints.test_manager import Reports, settings
from toto_pipeline_tests.checkpoints.test_sharded import on_ranks, starter

__all__ = ["on_ranks", "starter"]  # fixtures


class GlooRanks:
    """The ranks of the default process group, and the same over a group of their own for saves in the background."""

    def __init__(self) -> None:
        self._channel = _Channel()
        self.background = _Channel()
        self.rank, self.size, self.checkpoint_group = (
            self._channel.rank,
            self._channel.size,
            self._channel.checkpoint_group,
        )
        self.gather, self.barrier = self._channel.gather, self._channel.barrier


class _Channel:
    def __init__(self) -> None:
        self.checkpoint_group: Any = dist.new_group(backend="gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.checkpoint_group)
        return values

    def barrier(self) -> None:
        self.gather(None)


def _state(step: int) -> State:
    """The parts of this rank of a state whose numbers tell its step."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight = torch.arange(15.0).reshape(5, 3) + 100 * step
    tensors: dict[str, Tensors] = {
        "model": {"weight": distribute_tensor(weight, mesh, [Shard(0)]), "bias": torch.full((3,), float(step))},
        "optimizer": {"weight.exp_avg": distribute_tensor(weight / 7, mesh, [Shard(0)])},
    }
    return State(step, 1, {"validation_loss": 1 / step}, tensors, {"step": step})


def _whole(tensors: Any) -> list[Any]:
    return [
        (group, name, (t.full_tensor() if isinstance(t, DTensor) else t).tolist())
        for group, members in tensors.items()
        for name, t in members.items()
    ]


def _load(manager: CheckpointManager) -> tuple[str, bool, Any]:
    """Name of the newest, whether it is bit for bit what that step was, and its values."""
    latest = manager.latest()
    assert latest is not None
    into = _state(1000).tensors
    loaded = manager.load(latest, into)
    return latest.name, _whole(loaded.tensors) == _whole(_state(loaded.step).tensors), loaded.values


def _save_some(run: Path) -> list[Any]:
    reports = Reports()
    with CheckpointManager(run, settings(keep_last=1), ranks=GlooRanks(), report=reports) as manager:
        manager.prepare()
        paths = [manager.save(_state(step)) for step in (1, 2, 3)]
        manager.wait()
        return [paths, reports.types, _load(manager)]


def _look(run: Path) -> Any:
    with CheckpointManager(run, settings(), ranks=GlooRanks()) as manager:
        return _load(manager)


def test_ranks_save_one_checkpoint_together_and_any_number_load_it(on_ranks: Any, tmp_path: Path) -> None:
    first, second = on_ranks(2, _save_some, tmp_path)
    paths, found = [f"checkpoints/step_{step}" for step in (1, 2, 3)], ("step_3", True, {"step": 3})
    assert first == [paths, ["checkpoint_saved"] * 3, found]
    assert second == [paths, [], found]
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step_3"]
    assert on_ranks(1, _look, tmp_path) == [found]
    assert on_ranks(3, _look, tmp_path) == [found] * 3


def _no_numbers(state: State, rank: int) -> None:
    if rank == 1:
        weight = state.tensors["model"]["weight"]
        assert isinstance(weight, DTensor)
        weight.to_local()[0, 0] = float("nan")


def _full_disk(state: State, rank: int) -> None:
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


def _full_disk_of_the_first(state: State, rank: int) -> None:
    _full_disk(state, 1 - rank)


def _fail_then_save(run: Path, cause: Callable[[State, int], None]) -> list[Any]:
    reports = Reports()
    manager = CheckpointManager(run, settings(), ranks=GlooRanks(), report=reports)
    manager.prepare()
    manager.save(_state(1), wait=True)
    bad = _state(2)
    cause(bad, dist.get_rank())
    manager.save(bad)
    error = None
    try:
        manager.wait()
    except PipelineError as raised:
        error = raised
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    dist.barrier()
    left = sorted(entry.name for entry in manager.folder.iterdir())
    before = _load(manager)[:2]
    manager.save(_state(3), wait=True)
    manager.close()
    return [error, reports.types, left, before, _load(manager)[:2]]


@pytest.mark.parametrize(
    ("cause", "kind", "text"),
    [
        (_no_numbers, CheckpointError, "not finite"),
        (_full_disk, StorageError, "the disk is full"),
        (_full_disk_of_the_first, StorageError, "the disk is full"),
    ],
)
def test_what_fails_on_one_rank_fails_on_all_and_the_save_after_works(
    on_ranks: Any, tmp_path: Path, cause: Any, kind: type[Exception], text: str
) -> None:
    for rank, answer in enumerate(on_ranks(2, _fail_then_save, tmp_path, cause)):
        error, types, left, before, after = answer
        assert isinstance(error, kind)
        assert text in str(error)
        assert "checkpoint_failed" in types
        assert left == ["step_1"]
        assert (before, after) == (("step_1", True), ("step_3", True))
        assert types.count("checkpoint_saved") == (2 if rank == 0 else 0)


def _one_cannot_begin(run: Path, kind: str) -> Any:
    first = dist.get_rank() == 0

    def fail() -> None:
        if first:
            raise StorageError("the history cannot be written")

    chosen = settings(reserve_gib=1e9) if first and kind == "room" else settings()
    before = fail if kind == "history" else lambda: None
    manager = CheckpointManager(run, chosen, ranks=GlooRanks(), before_commit=before)
    manager.save(_state(1), wait=True)


@pytest.mark.parametrize(("kind", "text"), [("history", "history"), ("room", "MiB are free")])
def test_a_rank_that_cannot_begin_does_not_keep_the_others_waiting(
    on_ranks: Any, tmp_path: Path, kind: str, text: str
) -> None:
    for error in on_ranks(2, _one_cannot_begin, tmp_path, kind):
        assert isinstance(error, StorageError)
        assert text in str(error)


def _count_hashes(run: Path) -> int:
    from toto_pipeline.checkpoints import manifest

    count, original = 0, manifest.sha256_of

    def counted(file: Path) -> str:
        nonlocal count
        count += 1
        return original(file)

    manifest.sha256_of = counted
    _look(run)
    return count


def test_only_one_rank_hashes_what_all_load(on_ranks: Any, tmp_path: Path) -> None:
    on_ranks(2, _save_some, tmp_path)
    first, *others = on_ranks(3, _count_hashes, tmp_path)
    assert first > 0
    assert others == [0, 0]


def _damage_and_look(run: Path, place: int) -> list[Any]:
    reports = Reports()
    with CheckpointManager(run, settings(), ranks=GlooRanks(), report=reports) as manager:
        for step in (1, 2):
            manager.save(_state(step), wait=True)
        dist.barrier()
        if dist.get_rank() == 1:
            shard = sorted((run / "checkpoints/step_2/shards").iterdir())[place]
            shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
        dist.barrier()
        reports.clear()
        return [*_load(manager)[:2], reports.types]


@pytest.mark.parametrize("place", [0, -1])
def test_a_damaged_shard_of_any_rank_is_set_aside_and_all_use_the_one_before(
    on_ranks: Any, tmp_path: Path, place: int
) -> None:
    first, second = on_ranks(2, _damage_and_look, tmp_path, place)
    assert first == ["step_1", True, ["checkpoint_quarantined"]]
    assert second == ["step_1", True, []]
