"""Folders that are there whole or not at all.

A folder is filled under a temporary name beside its final one, every file and the folder itself are fsynced, and one
rename makes it visible; the parent is fsynced so that the rename survives a power cut. A folder that already exists is
exchanged for the new one in one step where the system can do that (Linux), and else moved aside first; what a crash
between the two moves leaves is put back by the cleaner.

Everything that is done to the disk goes through a `FileSystem`, so that a test can fail or die at each operation.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from toto_pipeline.home import storage_errors

TEMPORARY_PREFIX = ".tmp-"
_OLD_PREFIX = f"{TEMPORARY_PREFIX}old-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class FileSystem(Protocol):
    """What the store does to a disk."""

    def make_folder(self, folder: Path) -> None: ...

    def write(self, file: Path, data: bytes) -> None: ...

    def sync(self, path: Path) -> None:
        """Wait until the disk has the content of a file, or the entries of a folder."""
        ...

    def rename(self, path: Path, target: Path) -> None: ...

    def exchange(self, path: Path, other: Path) -> bool:
        """Let two folders change their names in one step; False where the system cannot."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder and all in it."""
        ...

    def share(self, file: Path) -> None:
        """Let all read a file, and write it, who may do so with the folder that it is in."""
        ...


class LocalFileSystem:
    """The disk of this machine."""

    def make_folder(self, folder: Path) -> None:
        folder.mkdir()

    def write(self, file: Path, data: bytes) -> None:
        file.write_bytes(data)

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        path.rename(target)

    def exchange(self, path: Path, other: Path) -> bool:
        try:
            rename = ctypes.CDLL(None, use_errno=True).renameat2
        except (OSError, AttributeError):
            return False  # not Linux
        if rename(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return True
        if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            return False  # a file system without it
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))

    def remove(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def share(self, file: Path) -> None:
        mode = stat.S_IMODE(file.stat().st_mode)
        wanted = mode | (file.parent.stat().st_mode & 0o666)
        if mode != wanted:
            file.chmod(wanted)


LOCAL = LocalFileSystem()


def publish_folder(final: Path, fill: Callable[[Path], None], *, files: FileSystem = LOCAL) -> Path:
    """Let `fill` write a folder and make it appear as `final`, replacing what stood there.

    Raises:
        StorageError: the disk is full or cannot be written; `final` is as it was.
    """
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{final.name}-{os.getpid()}")
    with storage_errors(final.parent):
        make_folders(final.parent, files=files)
        _clear_leftovers(final, files)
        files.make_folder(temporary)
        try:
            fill(temporary)
            sync_tree(temporary, files=files)
            replace_folder(temporary, final, files=files)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        files.sync(final.parent)
    return final


def replace_folder(new: Path, final: Path, *, files: FileSystem = LOCAL) -> None:
    """Make `new` appear as `final`; an older `final` is there until then, and gone afterwards."""
    if not final.exists():
        files.rename(new, final)
        return
    if files.exchange(new, final):
        old = new
    else:
        old = final.with_name(f"{_OLD_PREFIX}{final.name}-{os.getpid()}")
        files.rename(final, old)
        try:
            files.rename(new, final)
        except OSError:
            files.rename(old, final)
            raise
    files.sync(final.parent)
    files.remove(old)


def discard_folder(folder: Path, *, files: FileSystem = LOCAL) -> None:
    """Remove a folder that a reader sees whole or not at all."""
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}-{os.getpid()}")
    files.rename(folder, temporary)
    files.sync(folder.parent)
    files.remove(temporary)


def sync_tree(folder: Path, *, files: FileSystem = LOCAL) -> None:
    """Wait until the disk has all below `folder`, open to whom the umask lets in.

    Libraries write some files for their user alone (safetensors: mode 0600). The folders were made under the umask,
    which a process cannot look up without changing it for all its threads; so each file takes after its folder.
    """
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            files.share(Path(root) / name)
            files.sync(Path(root) / name)
        files.sync(Path(root))


def make_folders(folder: Path, *, files: FileSystem = LOCAL) -> None:
    """Make a folder and those above it that are missing, so that they survive a power cut."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        files.sync(made.parent)


def sync_folder(folder: Path) -> None:
    LOCAL.sync(folder)


def write_file(path: Path, data: bytes, *, files: FileSystem = LOCAL) -> None:
    """Write a file that a reader sees in its old or its new state, never between."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.write(temporary, data)
            files.sync(temporary)
            files.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        files.sync(path.parent)


def remove_temporaries(parent: Path, *, files: FileSystem = LOCAL) -> None:
    """Clear what writers that died left behind. Only for the one process that writes to `parent`."""
    for leftover in sorted(parent.glob(f"{TEMPORARY_PREFIX}*")):
        _clear(leftover, files)


def _clear_leftovers(final: Path, files: FileSystem) -> None:
    for prefix in (_OLD_PREFIX, TEMPORARY_PREFIX):
        for leftover in sorted(final.parent.glob(f"{prefix}*")):
            number = leftover.name.removeprefix(f"{prefix}{final.name}-")  # else the name of another folder is in it
            if number.isdecimal() and not _is_at_work(int(number)):
                _clear(leftover, files)


def _is_at_work(process: int) -> bool:
    """Whether a process still runs, and is another one than this."""
    return process != os.getpid() and Path("/proc", str(process)).exists()


def _clear(leftover: Path, files: FileSystem) -> None:
    """Remove a leftover, or put it back where it is the only one of its name."""
    name = leftover.name.removeprefix(_OLD_PREFIX).rpartition("-")[0]
    if leftover.name.startswith(_OLD_PREFIX) and not leftover.with_name(name).exists():
        files.rename(leftover, leftover.with_name(name))
    else:
        files.remove(leftover)
