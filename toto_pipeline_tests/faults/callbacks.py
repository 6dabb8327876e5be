"""Callbacks that break things, named in the settings of a run as a user names his own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from toto_pipeline.training.callbacks import Action, Callback, EpochResult, StepResult


class KillRank(Callback):
    """Kills the process of a rank once: when it sees `step`, or when its state is taken for save number `save`."""

    def __init__(self, marker: str, rank: int, step: int | None = None, save: int | None = None) -> None:
        self._marker = Path(marker)
        self._is_mine = os.environ.get("RANK", "0") == str(rank)
        self._step = step
        self._save = save
        self._saves = 0

    def after_steps(self, steps: Sequence[StepResult]) -> Iterable[Action]:
        if self._step is not None and any(step.step >= self._step for step in steps):
            self._kill()
        return []

    def state_dict(self) -> dict[str, Any]:
        self._saves += 1
        if self._saves == self._save:
            self._kill()
        return {}

    def _kill(self) -> None:
        if self._is_mine and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class KillLoaderWorker(Callback):
    """Kills the processes that read windows ahead, once, after the first epoch."""

    def __init__(self, marker: str) -> None:
        self._marker = Path(marker)

    def after_epoch(self, result: EpochResult) -> Iterable[Action]:  # noqa: ARG002
        if not self._marker.exists():
            self._marker.touch()
            for child in psutil.Process().children(recursive=True):
                if "forkserver" in " ".join(child.cmdline()) and not child.children():
                    child.kill()
        return []
