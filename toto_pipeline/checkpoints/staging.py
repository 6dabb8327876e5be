"""The copy of a state in memory that is written while the training goes on.

The buffers are kept and used again, so a save costs the training thread one copy and no new memory. What comes from a
GPU goes into pinned memory and is copied when the GPU gets to it: the writer waits for that, not the training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from toto_pipeline.checkpoints.state import Tensors, is_sharded


class Staging:
    """Buffers for the tensors of one state."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensors] = {}
        self._copied: list[torch.cuda.Event] = []

    def take(self, tensors: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Start the copy of `tensors`; what is returned may be read after `wait()`, until the next `take()`."""
        if is_sharded(tensors):
            from toto_pipeline.checkpoints import sharded

            self._buffers = sharded.stage(tensors, into=self._buffers)
        else:
            self._buffers = {group: self._group(group, members) for group, members in tensors.items()}
            self._copied = _events_after(tensors)
        return self._buffers

    def wait(self) -> None:
        """Wait until the copy is done."""
        for event in self._copied:
            event.synchronize()

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


def _events_after(tensors: Mapping[str, Tensors]) -> list[torch.cuda.Event]:
    """For each GPU that holds a tensor, be it the current one or not, an event after all that it was given so far."""
    devices = {tensor.device for members in tensors.values() for tensor in members.values() if tensor.is_cuda}
    events = []
    for device in devices:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits without a busy loop
        event.record(torch.cuda.current_stream(device))
        events.append(event)
    return events
