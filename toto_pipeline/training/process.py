"""What a training process needs of the operating system: to die with its parent, and to be the only one in its run."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from pathlib import Path

from toto_pipeline.errors import TrainingError

LOCK_NAME = "trainer.lock"
_PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process `death_signal` when its parent dies (Linux; elsewhere nothing happens)."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    except (OSError, AttributeError):
        return  # not Linux: an orphan is then stopped by the run's lock at the next start
    if os.getppid() == 1 and os.environ.get("TOTO_PARENT") not in (None, "1"):
        os.kill(os.getpid(), death_signal)  # the parent died before the kernel was asked


def lock_run(run_folder: Path) -> int:
    """Take the run's lock for the life of this process, and write the pid into it.

    Raises:
        TrainingError: another process trains in this run.
    """
    descriptor = os.open(run_folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise TrainingError(
            f"{run_folder}: process {owner or 'unknown'} is already training in this run. "
            "Expected: one trainer a run. What to do: wait for it, or stop it."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
