"""What is saved, and what is found on the disk."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toto_pipeline.checkpoints.manifest import SCHEMA, Manifest, read_manifest, reading
from toto_pipeline.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class State:
    """Everything a training run is at one moment.

    Attributes:
        metrics: of the validation at this very step; empty for a save in mid-epoch.
        tensors: one safetensors file for each key (model, optimizer, trainer, random). They may be live, on any device.
        values: what is not a tensor; JSON.
        schema: format that it was loaded from.
    """

    step: int
    epoch: int
    metrics: Mapping[str, float]
    tensors: Mapping[str, Tensors]
    values: Mapping[str, Any]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint on disk."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name


def is_sharded(tensors: Mapping[str, Tensors]) -> bool:
    """Whether any of the tensors is a DTensor; looking loads nothing, for where there is one its module is loaded."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and any(isinstance(t, kind) for members in tensors.values() for t in members.values())


def numbered(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, by their steps.

    Raises:
        StorageError: `folder` cannot be read.
    """
    if not folder.is_dir():
        return []
    with reading(folder):
        entries = list(folder.iterdir())
    found = [(int(match[1]), each) for each in entries if (match := _NAME.fullmatch(each.name))]
    return [each for _, each in sorted(found)]


def readable(folder: Path) -> list[Checkpoint]:
    """Those of the checkpoints in `folder` that have a whole manifest, by their steps.

    Raises:
        StorageError: a manifest cannot be read: whether that checkpoint is one is not known.
    """
    found = []
    for each in numbered(folder):
        with suppress(CheckpointError):
            found.append(Checkpoint(each, read_manifest(each)))
    return found
