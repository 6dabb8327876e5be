"""Event files of TensorBoard that hold every record exactly once, through kills and full disks.

What is written follows from the event log alone, so a process that starts again makes the same records again. It
compares them with what lies behind the place it remembers: records that are there already are passed over, a torn one
is completed, and one that differs (the log went on in another way) ends the file, and a new one goes on from there.
Nothing that a running TensorBoard has read is ever written a second time or changed.

A folder holds `events.out.tfevents.00001.toto`, then `...00002...`; TensorBoard reads them in this order. A record is
    length (8 bytes), its masked CRC-32C (4), a serialized Event, its masked CRC-32C (4).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event as Record
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from toto_pipeline.errors import ConfigError

FILE_VERSION = "brain.Event:2"
_ENOUGH_BYTES = 1 << 20
"""How much is gathered before it is handed to the file."""


@dataclass(frozen=True)
class Place:
    """Behind `length` bytes of file number `file`."""

    file: int = 1
    length: int = 0


def file_name(number: int) -> str:
    return f"events.out.tfevents.{number:05d}.toto"


def framed(record: Any) -> bytes:
    """A record as it lies in the file; the same one gives the same bytes in every process."""
    data: bytes = record.SerializeToString(deterministic=True)
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


class EventFiles:
    """The event files of one run, open behind `place`.

    After an OSError the object is of no more use: open another at the place of the last `commit`.

    Raises:
        ConfigError: the files hold less than `place` says.
    """

    def __init__(self, folder: Path, place: Place) -> None:
        self._folder = folder
        self._pending = bytearray()
        folder.mkdir(parents=True, exist_ok=True)
        self._open(place.file, place.length)
        if self._there < place.length:
            self.close()
            raise ConfigError(
                f"{folder / file_name(place.file)} has {self._there} bytes; expected at least {place.length}, which "
                f"were written before: it was cut or deleted. What to do: delete the folder {folder} and the cursor "
                "of the sink `tensorboard`, and TensorBoard's files are made anew from the event log"
            )

    def append(self, record: Any) -> None:
        if self._position == self._there and (self._folder / file_name(self._number + 1)).exists():
            self._move_to_next()
        data = framed(record)
        if not self._put(data, record.wall_time):
            self._start_next_file(record.wall_time)
            self._put(data, record.wall_time)
        if len(self._pending) >= _ENOUGH_BYTES:
            self._write_pending()

    def commit(self) -> Place:
        """Have everything on the disk; the place behind it."""
        self._write_pending()
        os.fdatasync(self._descriptor)
        return Place(self._number, self._position)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self, number: int, position: int) -> None:
        path = self._folder / file_name(number)
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._number, self._position = number, position
        self._there = os.fstat(self._descriptor).st_size
        if is_new:
            _sync_folder(self._folder)

    def _at_the_end(self) -> bool:
        return self._position >= self._there

    def _put(self, data: bytes, wall_time: float) -> bool:
        """Add a record, or find that it is there; False if another one is."""
        if self._position == 0 and not self._put_bytes(_header(wall_time)):
            return False
        return self._put_bytes(data)

    def _put_bytes(self, data: bytes) -> bool:
        rest = data
        if not self._at_the_end():
            there = os.pread(self._descriptor, len(data), self._position)
            if not data.startswith(there):
                return False
            rest = data[len(there) :]
        self._pending += rest
        self._position += len(data)
        return True

    def _start_next_file(self, wall_time: float) -> None:
        """The next file is there before this one is cut: TensorBoard, at the end of this one, always finds it."""
        keep, old = self._position, self._descriptor
        try:
            self._open(self._number + 1, 0)
            os.ftruncate(self._descriptor, 0)
            self._there = 0
            self._put_bytes(_header(wall_time))
            self._write_pending()
            os.ftruncate(old, keep)
            os.fdatasync(old)
        finally:
            if self._descriptor != old:
                os.close(old)

    def _move_to_next(self) -> None:
        os.close(self._descriptor)
        self._open(self._number + 1, 0)

    def _write_pending(self) -> None:
        while self._pending:
            del self._pending[: os.write(self._descriptor, self._pending)]


def _header(wall_time: float) -> bytes:
    return framed(Record(wall_time=wall_time, file_version=FILE_VERSION))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
