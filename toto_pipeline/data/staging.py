"""Folders that appear whole or not at all.

A folder is filled under a temporary name beside its place, made durable and renamed. What a killed process leaves
behind is removed by the next one: the temporary folder of a living process is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toto_pipeline.home import storage_errors

_PREFIX = ".tmp-"
_GRACE_SECONDS = 60


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end unless `publish` has moved it.

    Raises:
        StorageError: `parent` cannot be created or written.
    """
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, place: Path) -> bool:
    """Move a filled staging folder to its place; False if that is taken, and then stays as it is."""
    with storage_errors(place):
        for entry in [*folder.iterdir(), folder]:
            _sync(entry)
        folder.chmod(0o755)
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        _sync(place.parent)
    return True


def write_atomically(place: Path, text: str) -> None:
    """Replace a small file by a whole new one.

    Raises:
        StorageError: it cannot be written.
    """
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=place.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > _GRACE_SECONDS and not _locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
