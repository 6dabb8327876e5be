"""Saving, finding and loading the checkpoints of a run.

    checkpoints/step_<n>/model.safetensors  optimizer.safetensors  random.safetensors  state.json  manifest.json
    checkpoints/quarantine/                 damaged ones, kept for whoever wants to know

Tensors are safetensors, the rest is JSON; nothing is ever pickled. A checkpoint is verified against its hashes at every
load; a damaged one is set aside and the one before it is used.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from toto_pipeline.checkpoints import retention
from toto_pipeline.checkpoints.manifest import FILE_NAME, Manifest, describe_files, read_manifest, verify
from toto_pipeline.checkpoints.store import publish_folder, remove_temporaries
from toto_pipeline.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
_NAME = re.compile(r"step_(\d+)")
_STATE_FILE = "state.json"


@dataclass(frozen=True)
class State:
    """Everything a training run is at one moment.

    Attributes:
        tensors: one safetensors file for each key (model, optimizer, random).
        values: what is not a tensor; JSON.
    """

    step: int
    epoch: int
    validation_loss: float | None
    tensors: Mapping[str, Tensors]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint on disk."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name


Quarantined = Callable[[Path, Path, str], None]
"""Called with the checkpoint's folder, where it was moved, and why."""


class CheckpointManager:
    """The checkpoints of one run. One process writes; any number may read."""

    def __init__(self, run_folder: Path, *, keep_last: int = 3, clock: Callable[[], float] = time.time) -> None:
        self.folder = run_folder / "checkpoints"
        self._keep_last = keep_last
        self._clock = clock

    def prepare(self) -> None:
        """Make the folder and clear what a killed writer left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)

    def save(self, state: State) -> Checkpoint:
        """Commit `state` and delete what retention lets go.

        Raises:
            StorageError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """

        def fill(folder: Path) -> None:
            for name, tensors in state.tensors.items():
                save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
            (folder / _STATE_FILE).write_text(json.dumps(dict(state.values)), encoding="utf-8")
            manifest = Manifest(state.step, state.epoch, self._clock(), state.validation_loss, describe_files(folder))
            (folder / FILE_NAME).write_bytes(manifest.to_json())

        folder = publish_folder(self.folder / f"step_{state.step}", fill)
        self._apply_retention()
        return Checkpoint(folder, read_manifest(folder))

    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints with a readable manifest, oldest first. Files are not verified here."""
        found = []
        for folder in self._folders():
            try:
                found.append(Checkpoint(folder, read_manifest(folder)))
            except CheckpointError:
                continue  # `latest` and `best` set it aside and report it
        return found

    def latest(self, quarantined: Quarantined) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones on the way are set aside."""
        for folder in reversed(self._folders()):
            checkpoint = self._checked(folder, verify, quarantined)
            if checkpoint is not None:
                return checkpoint
        return None

    def best(self, quarantined: Quarantined) -> Checkpoint | None:
        """The verified checkpoint with the lowest validation loss; the newest where none was validated."""
        while True:
            found = [self._checked(folder, read_manifest, quarantined) for folder in self._folders()]
            checkpoints = {c.name: c for c in found if c is not None}
            chosen = retention.best([_kept(c) for c in checkpoints.values()])
            if chosen is None:
                return self.latest(quarantined)
            checkpoint = self._checked(checkpoints[chosen.name].folder, verify, quarantined)
            if checkpoint is not None:
                return checkpoint

    def load(self, checkpoint: Checkpoint) -> State:
        """The state of a checkpoint, its hashes verified, tensors on the CPU.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        manifest = verify(checkpoint.folder)
        values = json.loads((checkpoint.folder / _STATE_FILE).read_bytes())
        tensors = {
            name.removesuffix(".safetensors"): load_file(checkpoint.folder / name)
            for name in manifest.files
            if name.endswith(".safetensors")
        }
        return State(manifest.step, manifest.epoch, manifest.validation_loss, tensors, values)

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        numbered = [(int(match[1]), f) for f in self.folder.iterdir() if (match := _NAME.fullmatch(f.name))]
        return [folder for _, folder in sorted(numbered)]

    def _checked(self, folder: Path, check: Callable[[Path], Manifest], quarantined: Quarantined) -> Checkpoint | None:
        try:
            return Checkpoint(folder, check(folder))
        except CheckpointError as error:
            moved = self._quarantine(folder)
            quarantined(folder, moved, str(error))
            return None

    def _quarantine(self, folder: Path) -> Path:
        place = self.folder / "quarantine"
        place.mkdir(exist_ok=True)
        target = place / folder.name
        count = 1
        while target.exists():
            count += 1
            target = place / f"{folder.name}.{count}"
        return folder.rename(target)

    def _apply_retention(self) -> None:
        checkpoints = [_kept(c) for c in self.checkpoints()]
        for name in retention.to_delete(checkpoints, keep_last=self._keep_last):
            shutil.rmtree(self.folder / name)


def _kept(checkpoint: Checkpoint) -> retention.Kept:
    manifest = checkpoint.manifest
    return retention.Kept(checkpoint.name, manifest.step, manifest.validation_loss)
