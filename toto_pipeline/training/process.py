"""What a training process needs of the operating system: to die with its parent, and to be the only one in its run."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import time
from pathlib import Path

from toto_pipeline.errors import TrainingError
from toto_pipeline.events.processes import is_alive, process_name

LOCK_NAME = "trainer.lock"
PARENT_VARIABLE, LAUNCHER_VARIABLE = "TOTO_PARENT", "TOTO_LAUNCHER"
_PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process `death_signal` when its parent dies (Linux; elsewhere nothing happens)."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    except (OSError, AttributeError):
        return  # not Linux: an orphan is then stopped by the run's lock at the next start
    if os.getppid() == 1 and os.environ.get(PARENT_VARIABLE) not in (None, "1"):
        os.kill(os.getpid(), death_signal)  # the parent died before the kernel was asked


def lock_run(run_folder: Path, patience_seconds: float = 0.0) -> int:
    """Take the run's lock for the life of this process, and write into it who holds it for whom.

    A trainer whose launcher is gone is about to end: it is waited for, up to `patience_seconds`.

    Raises:
        TrainingError: another process trains in this run.
    """
    descriptor = os.open(run_folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + patience_seconds
    while not _try_lock(descriptor):
        owner, launcher = _holder(descriptor)
        if time.monotonic() >= end or is_alive(launcher):
            os.close(descriptor)
            raise _already_training(run_folder, owner)
        time.sleep(0.1)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{process_name()} {os.environ.get(LAUNCHER_VARIABLE, '')}".encode(), 0)
    return descriptor


def refuse_a_second_launcher(run_folder: Path) -> None:
    """Raise where somebody who still lives has a training under way in this run.

    Raises:
        TrainingError: names the process that trains.
    """
    descriptor = os.open(run_folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(descriptor):
            owner, launcher = _holder(descriptor)
            if is_alive(launcher):
                raise _already_training(run_folder, owner)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> tuple[str, str]:
    """The process that holds the lock, and the launcher it holds it for."""
    owner, _, launcher = os.pread(descriptor, 200, 0).decode(errors="replace").strip().partition(" ")
    return owner, launcher


def _already_training(run_folder: Path, owner: str) -> TrainingError:
    return TrainingError(
        f"{run_folder}: process {owner.split('@', maxsplit=1)[0] or 'unknown'} is already training in this run. "
        "Expected: one trainer a run. What to do: wait for it, or stop it."
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
