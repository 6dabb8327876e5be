"""Folders that are there whole or not at all.

A folder is filled under a temporary name beside its final one, every file and the folder itself are fsynced, and one
rename makes it visible; the parent is fsynced so that the rename survives a power cut.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from toto_pipeline.home import storage_errors

TEMPORARY_PREFIX = ".tmp-"


def publish_folder(final: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write a folder and make it appear as `final`, replacing what stood there.

    Raises:
        StorageError: the disk is full or cannot be written; `final` is as it was.
    """
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{final.name}-{os.getpid()}")
    with storage_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            fill(temporary)
            sync_tree(temporary)
            replace_folder(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(final.parent)
    return final


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`. An older `final` is moved aside first, because a full folder cannot be renamed over."""
    if final.exists():
        old = final.with_name(f"{TEMPORARY_PREFIX}old-{final.name}-{os.getpid()}")
        final.rename(old)
        new.rename(final)
        shutil.rmtree(old)
    else:
        new.rename(final)


def sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name, os.O_RDONLY)
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that a reader sees in its old or its new state, never between."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_temporaries(parent: Path) -> None:
    """Delete what writers that died left behind. Only for the one process that writes to `parent`."""
    for leftover in parent.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
