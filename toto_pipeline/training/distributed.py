"""Several processes that train one model: who they are, what they tell each other, how the model is spread over them.

Torch elastic starts the processes and tells each its rank. A step's batch is shared out over them; gradients are
averaged by DDP or FSDP2; numbers that decide anything are summed over all, so every process decides alike. A training
in one process is the same code with a `World` of one.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toto_pipeline.checkpoints.ranks import OneRank, Ranks
from toto_pipeline.models.forecaster import TrainableForecaster
from toto_pipeline.settings.training import DistributedSettings

Synchronize = Callable[[bool], AbstractContextManager[None]]
"""`with synchronize(last):` around the backward pass of a micro-batch; gradients are averaged in the last one."""


class World:
    """The processes of this training, of which there is one. Sums and votes are then what is put in."""

    rank = 0
    size = 1
    background: Ranks = OneRank()
    """The same ranks over channels of their own, for saving while the training goes on."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on each of them."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer."""
        return flag

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in the order of their ranks."""
        return [value]

    def barrier(self) -> None:
        """Wait for all processes."""

    def leave(self) -> None:
        """Take leave of the other processes."""


class ManyProcesses(World):
    """A `World` of several, over torch.distributed: NCCL between GPUs, gloo between hosts."""

    def __init__(self, device: torch.device, timeout_seconds: float) -> None:
        timeout = datetime.timedelta(seconds=timeout_seconds)
        dist.init_process_group("cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo", timeout=timeout)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._hosts = _Hosts(timeout)
        self.checkpoint_group = self._hosts.checkpoint_group
        self.background: Ranks = _Hosts(timeout)

    def sum(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        return any(self._hosts.gather(flag))

    def gather(self, value: Any) -> list[Any]:
        return self._hosts.gather(value)

    def barrier(self) -> None:
        self._hosts.barrier()

    def leave(self) -> None:
        dist.destroy_process_group()


class _Hosts:
    """Messages between the processes' hosts, over a gloo group of their own."""

    def __init__(self, timeout: datetime.timedelta) -> None:
        self.checkpoint_group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout)  # type: ignore[assignment]
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.checkpoint_group)
        return values

    def barrier(self) -> None:
        self.gather(None)


def local_device(name: str) -> str:
    """The device that a setting means for this process: each of several on a machine takes a GPU of its own."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


def join_world(device: torch.device, timeout_seconds: float) -> World:
    """The world that torch elastic started this process in."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return ManyProcesses(device, timeout_seconds)


def spread(forecaster: TrainableForecaster, settings: DistributedSettings, world: World) -> Synchronize:
    """Spread the model over the processes of `world`, as `settings.strategy` says."""
    if world.size == 1:
        return _always
    if settings.strategy == "fsdp":
        return _shard(forecaster)
    return _replicate(forecaster)


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole or sharded tensors into a module, sharded as its own are."""
    own = module.state_dict()
    module.load_state_dict({name: _spread_like(own.get(name), tensor) for name, tensor in tensors.items()})


def _spread_like(own: Tensor | None, tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)


@contextlib.contextmanager
def _always(last: bool) -> Iterator[None]:  # noqa: ARG001 - one process has nothing to average
    yield


def _replicate(forecaster: TrainableForecaster) -> Synchronize:
    from torch.nn.parallel import DistributedDataParallel

    replicas: list[DistributedDataParallel] = []

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        device = next(module.parameters()).device
        replicas.append(
            DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
            )
        )
        return replicas[0]

    forecaster.wrap(wrap)

    @contextlib.contextmanager
    def synchronize(last: bool) -> Iterator[None]:
        with contextlib.nullcontext() if last else replicas[0].no_sync():
            yield

    return synchronize


def _shard(forecaster: TrainableForecaster) -> Synchronize:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    from toto_pipeline.models.optimizer import remember_scales, restore_scales

    module = forecaster.module
    scales = remember_scales(module)
    mesh = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
    for block in forecaster.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)  # a forecast must leave the parameters sharded
    if hasattr(module, "forecast"):  # other families forecast by the module's forward
        register_fsdp_forward_method(module, "forecast")
    restore_scales(module, scales)
    assert isinstance(module, FSDPModule)  # noqa: S101 - fully_shard makes it one

    @contextlib.contextmanager
    def synchronize(last: bool) -> Iterator[None]:
        module.set_requires_gradient_sync(last)
        yield

    return synchronize
