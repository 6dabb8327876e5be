"""The copy of a state in memory that is written while the training goes on.

The buffers are kept and used again, so a save costs the training thread one copy and no new memory. What comes from a
GPU goes into pinned memory and is copied when the GPU gets to it: the writer waits for that, not the training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from toto_pipeline.checkpoints import sharded

Tensors = dict[str, torch.Tensor]


class Staging:
    """Buffers for the tensors of one state."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensors] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Start the copy of `tensors`; what is returned may be read after `wait()`, until the next `take()`."""
        if sharded.is_sharded(tensors):
            self._buffers = sharded.stage(tensors, into=self._buffers)
        else:
            self._buffers = {group: self._group(group, members) for group, members in tensors.items()}
            self._copied = _event_after(tensors)
        return self._buffers

    def wait(self) -> None:
        """Wait until the copy is done."""
        if self._copied is not None:
            self._copied.synchronize()

    @torch.no_grad()
    def _group(self, group: str, members: Tensors) -> Tensors:
        earlier = self._buffers.get(group, {})
        buffers = {name: _buffer(tensor, earlier.get(name)) for name, tensor in members.items()}
        if members:
            torch._foreach_copy_(list(buffers.values()), list(members.values()), non_blocking=True)
        return buffers


def _buffer(tensor: torch.Tensor, earlier: torch.Tensor | None) -> torch.Tensor:
    if earlier is not None and (earlier.shape, earlier.dtype) == (tensor.shape, tensor.dtype):
        return earlier
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _event_after(tensors: Mapping[str, Tensors]) -> torch.cuda.Event | None:
    """Something to wait for until all that the GPU was given so far is done; None where nothing is on a GPU."""
    if not any(tensor.is_cuda for members in tensors.values() for tensor in members.values()):
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
