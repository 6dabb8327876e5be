"""Tensors that are spread over the ranks of a job: each rank writes its own part, any number of ranks reads them back.

    shards/shard-<rank + 1>-model-<file>-of-<files>.safetensors

torch.distributed.checkpoint plans which rank writes what and which slices of which files a reader needs. Its usual
storage keeps a pickle beside the tensors; the safetensors storage that is used here keeps none, because the header of
each file says which part of each tensor it holds. No file is ever pickled or unpickled. (Live ranks of one job do send
each other pickled plans and errors, over their process group.)

What the library leaves open is checked here:

- each file of a rank is opened again before the rank reports that it has written;
- the parts that a reader finds must make up the whole tensor: a missing file in the middle would leave numbers unread;
- shape and dtype must be the saved ones: another dtype would be converted without a word;
- a failure of one rank is raised on all, as an `Exception`: the library's own derives from BaseException.

A group of tensors (model, optimizer, ...) is folded into the names on disk: `optimizer/layers.0.weight.exp_avg`.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from toto_pipeline.checkpoints.store import sync_folder
from toto_pipeline.errors import CheckpointError
from toto_pipeline.home import storage_errors

Tensors = dict[str, torch.Tensor]
FOLDER = "shards"
FILE_BYTES = 1 << 30
"""About so many bytes of tensors, over all ranks, go into one file of each: a file is built in memory to be written."""
_SUFFIX = ".safetensors"


def is_sharded(tensors: Mapping[str, Tensors]) -> bool:
    """Whether any of the tensors is a DTensor."""
    return any(isinstance(tensor, DTensor) for group in tensors.values() for tensor in group.values())


@torch.no_grad()
def stage(tensors: Mapping[str, Tensors], into: Mapping[str, Tensors] | None = None) -> dict[str, Tensors]:
    """Copies in CPU memory, which later steps of the training do not change.

    A DTensor stays a DTensor of the same shape and placements, with the copy of this rank's part in it. What is copied
    from a GPU is pinned. All copies are done when this returns.

    Args:
        into: what an earlier call returned. Its memory is used again wherever shape, dtype and placements are the same.
    """
    earlier = {} if into is None else into
    staged = {
        group: {name: _copy(tensor, earlier.get(group, {}).get(name)) for name, tensor in members.items()}
        for group, members in tensors.items()
    }
    for device in {tensor.device for members in tensors.values() for tensor in members.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return staged


def write(folder: Path, staged: Mapping[str, Tensors], group: ProcessGroup | None = None) -> list[Path]:
    """Write the tensors of all ranks below `folder`; each rank of `group` (gloo) calls it with the same names.

    Each rank writes and fsyncs files of its own. What all ranks hold alike (plain tensors, replicated DTensors) is
    written once. A rank waits for the slowest, within the timeout of the group.

    Returns:
        The files that this rank wrote, which may be none.

    Raises:
        StorageError: the disk of one of the ranks is full or cannot be written.
        CheckpointError: another failure of one of the ranks; there are shards in `folder` already.
        RuntimeError: a rank was lost.
    """
    tensors = _fold(staged)
    writer = _Writer(folder / FOLDER, tensors)
    with _failures_of_all_ranks(folder, "written"):
        save_state_dict(tensors, storage_writer=writer, process_group=group)
    return writer.files


def read(folder: Path, into: Mapping[str, Tensors], group: ProcessGroup | None = None) -> None:
    """Read the saved values into the tensors of `into`, in place; what else was saved is left alone.

    The number of ranks need not be the one that wrote. Each rank reads only its own part of a DTensor, and a plain
    tensor whole. Without torch.distributed a single process reads whole tensors.

    Raises:
        CheckpointError: a file is damaged, a part is missing, or a name, shape or dtype is not the saved one. Some
            tensors may have been changed by then.
        RuntimeError: a rank was lost.
    """
    tensors = _fold(into)
    with _failures_of_all_ranks(folder, "read"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        reader = _Reader(folder / FOLDER)
        load_state_dict(tensors, storage_reader=reader, planner=_LoadPlanner(), process_group=group)


def names(folder: Path) -> dict[str, set[str]]:
    """The names of the saved tensors of each group.

    Raises:
        CheckpointError: a file is damaged.
    """
    found: dict[str, set[str]] = {}
    for key in _Reader(folder / FOLDER).read_metadata().state_dict_metadata:
        group, _, name = key.partition("/")
        found.setdefault(group, set()).add(name)
    return found


def _fold(tensors: Mapping[str, Tensors]) -> Tensors:
    assert not any("/" in group for group in tensors), "the name of a group ends at the first slash"  # noqa: S101
    return {f"{group}/{name}": tensor for group, members in tensors.items() for name, tensor in members.items()}


def _copy(tensor: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor:
    if buffer is None or _layout(buffer) != _layout(tensor):
        buffer = torch.empty_like(
            tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=tensor.is_cuda
        )
    _local(buffer).copy_(_local(tensor), non_blocking=True)
    return buffer


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    spread = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
    return tensor.shape, tensor.dtype, spread


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class _Writer(HuggingFaceStorageWriter):
    """The library's writer. It has one thread, whose failure is seen, and looks at its files before it reports them."""

    def __init__(self, folder: Path, tensors: Tensors) -> None:
        ends = itertools.accumulate(tensor.nbytes for tensor in tensors.values())
        numbers = {name: 1 + end // FILE_BYTES for name, end in zip(tensors, ends, strict=True)}
        super().__init__(str(folder), numbers, thread_count=1, save_distributed=True)
        self.folder = folder
        self.files: list[Path] = []

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        # Nobody writes before all ranks have been here: what is found now is left from something else.
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise CheckpointError(f"{self.folder}: holds files of an earlier checkpoint. Expected: an empty folder")
        return super().prepare_local_plan(plan)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = super().write_data(plan, planner)
        self.files = sorted(self.folder.glob(f"shard-{plan.storage_data['shard_index']:05d}-*{_SUFFIX}"))
        found = [part for file in self.files for part in _parts(file)]
        planned = [(item.index.fqn, list(item.tensor_data.chunk.sizes)) for item in plan.items if item.tensor_data]
        if sorted(found) != sorted(planned):
            raise CheckpointError(f"{self.folder}: {len(found)} of {len(planned)} tensors reached the disk")
        sync_folder(self.folder)
        return results


class _Reader(HuggingFaceStorageReader):
    """The library's reader, which says which file is damaged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def read_metadata(self) -> Metadata:
        for file in sorted(self.folder.glob(f"*{_SUFFIX}")):
            _parts(file)
        return super().read_metadata()


class _LoadPlanner(DefaultLoadPlanner):
    """The library's planner, which refuses tensors that the files do not hold whole and as they are."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        saved = {} if metadata is None else metadata.state_dict_metadata
        for name, tensor in state_dict.items():
            problem = _problem(tensor, saved.get(name))
            if problem is not None:
                raise CheckpointError(f"{name}: {problem}")
        super().set_up_planner(state_dict, metadata, is_coordinator)


def _problem(tensor: torch.Tensor, saved: Any) -> str | None:
    if not isinstance(saved, TensorStorageMetadata):
        return "was not saved"
    if saved.size != tensor.shape:
        return f"the files hold shape {list(saved.size)} where {list(tensor.shape)} is expected"
    if saved.properties.dtype != tensor.dtype:
        return f"the files hold {saved.properties.dtype} where {tensor.dtype} is expected"
    held, whole = sum(math.prod(chunk.sizes) for chunk in saved.chunks), tensor.numel()
    if held != whole:
        return f"the files hold {held} of its {whole} numbers"
    return None


def _parts(file: Path) -> list[tuple[str, list[int]]]:
    """Name and shape of each tensor in a file, whose length was checked against its header."""
    try:
        with safe_open(file, framework="pt") as content:
            return [(name, content.get_slice(name).get_shape()) for name in content.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file}: is damaged ({error}). Expected: a whole safetensors file") from error


@contextmanager
def _failures_of_all_ranks(folder: Path, done: str) -> Iterator[None]:
    """Raise what the library gathered from the ranks as what it was."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        if not isinstance(cause, Exception):
            raise cause from error  # an interrupt, which the library passes round like an error
        with storage_errors(folder):
            if isinstance(cause, OSError):
                raise cause from error
        reason = str(cause).removeprefix("metadata is None; global metadata read failed: ")
        raise CheckpointError(f"{folder}: could not be {done} (rank {rank}: {reason})") from error
