"""Names of processes, by which another process finds out whether they still run."""

from __future__ import annotations

import psutil


def process_name(process: psutil.Process | None = None) -> str:
    """A process (this one, by default), told apart from a later one with the same number."""
    process = process or psutil.Process()
    return f"{process.pid}@{process.create_time():.0f}"


def is_alive(name: str) -> bool:
    """Whether the process called `name` still runs on this machine."""
    try:
        process = psutil.Process(int(name.split("@", maxsplit=1)[0]))
        return process_name(process) == name and process.status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.NoSuchProcess):
        return False
