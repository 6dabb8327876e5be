"""How far apart two checkpoints are, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from toto_pipeline.checkpoints.state import Checkpoint
from toto_pipeline.errors import CheckpointError


@dataclass(frozen=True)
class Difference:
    """Of one tensor: the largest difference of two numbers, and that over the largest number in either.

    Both are infinite where the shapes differ or only one checkpoint has it.
    """

    group: str
    name: str
    absolute: float
    relative: float


def compare(one: Checkpoint, other: Checkpoint) -> list[Difference]:
    """The difference of each tensor of the model and the optimizer, largest relative difference first.

    Raises:
        CheckpointError: one of them is sharded.
    """
    for checkpoint in (one, other):
        if checkpoint.manifest.format == "sharded":
            raise CheckpointError(f"{checkpoint.folder}: is sharded; only plain checkpoints can be compared")
    differences = [d for group in ("model", "optimizer") for d in _group(group, one.folder, other.folder)]
    return sorted(differences, key=lambda d: -d.relative)


def _group(group: str, one: Path, other: Path) -> Iterator[Difference]:
    file = f"{group}.safetensors"
    with safe_open(one / file, framework="pt") as first, safe_open(other / file, framework="pt") as second:
        names = set(first.keys()), set(second.keys())
        for name in sorted(names[0] ^ names[1]):
            yield Difference(group, name, float("inf"), float("inf"))
        for name in sorted(names[0] & names[1]):
            yield _difference(group, name, first.get_tensor(name), second.get_tensor(name))


def _difference(group: str, name: str, one: torch.Tensor, other: torch.Tensor) -> Difference:
    if one.shape != other.shape:
        return Difference(group, name, float("inf"), float("inf"))
    if one.numel() == 0:
        return Difference(group, name, 0.0, 0.0)
    first, second = one.double(), other.double()
    absolute = float((first - second).abs().max())
    largest = max(float(first.abs().max()), float(second.abs().max()))
    return Difference(group, name, absolute, absolute / largest if largest else 0.0)
