"""The files of an event log: the one that grows, and the closed ones before it.

    events-000001.jsonl.gz   closed and compressed
    events-000002.jsonl      closed, not yet compressed
    events.jsonl             segment 3, which grows

A segment is closed by renaming it, so its number is known from the names beside it, and what is open stays readable.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from toto_pipeline.errors import StorageError

FILE_NAME = "events.jsonl"
_CLOSED = re.compile(r"events-(\d{6})\.jsonl(?:\.gz)?")
_COMPRESSION_LEVEL = 5
_LOW_PRIORITY = 10


@dataclass(frozen=True, order=True)
class Cursor:
    """A place in a log: behind `offset` bytes (of the uncompressed text) of segment number `segment`."""

    segment: int = 1
    offset: int = 0

    def to_json(self) -> list[int]:
        return [self.segment, self.offset]

    @classmethod
    def from_json(cls, value: Any) -> Cursor:
        segment, offset = value
        return cls(int(segment), int(offset))


START = Cursor()


def closed_file(run_folder: Path, segment: int) -> Path | None:
    """The file of a closed segment; None where the segment still grows, or there is none."""
    plain = run_folder / f"events-{segment:06d}.jsonl"
    packed = Path(f"{plain}.gz")
    return plain if plain.exists() else packed if packed.exists() else None


def growing_segment(run_folder: Path) -> int:
    """The number of the segment that grows."""
    numbers = [int(found[1]) for path in run_folder.glob("events-*") if (found := _CLOSED.fullmatch(path.name))]
    return max(numbers, default=0) + 1


def log_files(run_folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    closed = [closed_file(run_folder, segment) for segment in range(1, growing_segment(run_folder))]
    growing = run_folder / FILE_NAME
    return [path for path in closed if path is not None] + ([growing] if growing.exists() else [])


def open_segment(run_folder: Path, segment: int) -> tuple[IO[bytes], bool] | None:
    """A segment's text and whether it is closed; None where it has not begun."""
    while True:
        closed = closed_file(run_folder, segment)
        try:
            if closed is not None:
                return _open_closed(closed), True
            if segment != growing_segment(run_folder):
                return None
            file = (run_folder / FILE_NAME).open("rb")
        except FileNotFoundError:
            if closed is None and closed_file(run_folder, segment) is None:
                return None
            continue  # renamed or compressed between the look and the opening
        if closed_file(run_folder, segment) is None:
            return file, False
        file.close()  # what was opened may already be the next segment


def _open_closed(file: Path) -> IO[bytes]:
    if file.suffix != ".gz":
        return file.open("rb")
    if file.stat().st_size == 0:  # which gzip takes for an empty text, so that its events would be passed over
        raise _damaged(file, "it is empty")
    return cast(IO[bytes], gzip.open(file, "rb"))


@contextlib.contextmanager
def damage_told(file: IO[bytes]) -> Iterator[None]:
    """Around what reads a segment: name the file and the way out where its compressed text is damaged.

    Raises:
        StorageError: it is.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(Path(file.name), error) from error


def _damaged(file: Path, found: object) -> StorageError:
    return StorageError(
        f"{file}: this part of the event log is damaged ({found}). Expected: the file as it was compressed. What to "
        "do: restore it from a backup; what follows on it is not read until then, and not lost."
    )


def end_of_log(run_folder: Path) -> Cursor:
    """The place behind everything that is written by now."""
    while True:
        segment = growing_segment(run_folder)
        try:
            size = (run_folder / FILE_NAME).stat().st_size
        except FileNotFoundError:
            size = 0
        if segment == growing_segment(run_folder):
            return Cursor(segment, size)


def bytes_between(run_folder: Path, begin: Cursor, end: Cursor) -> int:
    """Bytes of text from one place to a later one."""
    sizes = [_text_size(run_folder, segment) for segment in range(begin.segment, end.segment)]
    return max(0, sum(sizes) - begin.offset + end.offset)


def _text_size(run_folder: Path, segment: int) -> int:
    """The size of a closed segment's text; a gzip file ends with it."""
    while (file := closed_file(run_folder, segment)) is not None:
        try:
            with file.open("rb") as opened:
                if file.suffix != ".gz":
                    return os.fstat(opened.fileno()).st_size
                opened.seek(-4, os.SEEK_END)
                return int.from_bytes(opened.read(4), "little")
        except FileNotFoundError:
            continue  # compressed between the look and the opening
    return 0


def close_segment(run_folder: Path) -> None:
    """Give the growing segment its number. Who writes has written everything to it, and opens a new one."""
    number = growing_segment(run_folder)
    os.rename(run_folder / FILE_NAME, run_folder / f"events-{number:06d}.jsonl")  # noqa: PTH104 - the old name stays told
    sync_folder(run_folder)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Compressor:
    """Compresses closed segments in a thread of low priority; what a killed process left is done by the next."""

    def __init__(self, run_folder: Path, failed: Callable[[OSError], None]) -> None:
        self._run_folder = run_folder
        self._failed = failed
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Compress what is closed, unless that is under way; then the next start finds the rest."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="event-log-compressor", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait until all that is closed by now is compressed, or has failed to be."""
        if self._thread is not None:
            self._thread.join()
        self.start()  # what was closed while the thread was at its end
        assert self._thread is not None  # noqa: S101 - just started
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # priority is a favour; not every system lets a thread have its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
        for plain in sorted(self._run_folder.glob("events-*.jsonl")):
            try:
                compress(plain)
            except OSError as error:
                self._failed(error)
                return


def compress(plain: Path) -> None:
    """Replace a closed segment by its compressed form; at every instant one of the two is whole."""
    packed, temporary = Path(f"{plain}.gz"), Path(f"{plain}.gz.tmp")
    try:
        with plain.open("rb") as source, temporary.open("wb") as target:
            with gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=_COMPRESSION_LEVEL) as zipped:
                shutil.copyfileobj(source, zipped, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(packed)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(plain.parent)
    plain.unlink()
