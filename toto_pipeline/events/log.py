"""The append-only event log of a run: its writer and its readers.

The writer appends whole lines with one `os.write` on an append-mode descriptor, so what was flushed survives a SIGKILL
of the process and a torn line can only be the last one. Who appends does not wait: a thread of the writer reads tensors
from their device, encodes, and writes, at most a second later. Readers keep a cursor, a place just behind the last
complete line they have seen; `segments` tells how the log is laid out in files.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import orjson

from toto_pipeline.errors import StorageError
from toto_pipeline.events.schema import ENVELOPE, SCHEMA, Event, number, spell_out
from toto_pipeline.events.segments import (
    FILE_NAME,
    START,
    Compressor,
    Cursor,
    bytes_between,
    close_segment,
    closed_file,
    damage_told,
    end_of_log,
    open_segment,
)
from toto_pipeline.home import storage_errors

__all__ = ["FILE_NAME", "START", "Cursor", "EventWriter", "LogReader", "NoLog", "end_of_log", "read_events"]

FLUSH_SECONDS = 1.0
SEGMENT_BYTES = 64 << 20
"""A segment that has grown to this is closed and compressed; a million steps are about 250 MB of text."""
_Entry = tuple[str, int | None, int | None, dict[str, Any], float, float]
"""What the caller leaves: type, step, epoch, fields, wall time and monotonic time; the rest is the writer thread's."""
_ENCODED_AT_ONCE = 100
"""Events encoded before other threads get a turn: some hundred microseconds."""


class EventWriter:
    """Appends events to the log in `run_folder`. One writer a run at a time; any thread of it may append.

    What was appended is flushed at most `flush_seconds` later. A value may be a zero-dimensional tensor that is not
    written to any more; it is read from its device only then. The field `snapshot` may hold an object whose `resolve()`
    then gives further fields of the event. `watch` is shown the events of each flush in the thread that flushes.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        attempt: int = 1,
        flush_seconds: float = FLUSH_SECONDS,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        watch: Callable[[Sequence[Event]], None] | None = None,
    ) -> None:
        self.run_folder = run_folder
        self.path = run_folder / FILE_NAME
        self.attempt = attempt
        self._flush_seconds = flush_seconds
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._watch = watch
        self._waiting: deque[_Entry] = deque()
        self._unwritten = b""
        self._unwatched: list[Event] = []
        self._writing = threading.RLock()
        self._wake = threading.Event()
        self._is_closing = False
        self._make_durable = False
        self._flusher: threading.Thread | None = None
        self._compressor = Compressor(run_folder, self._not_compressed)
        with storage_errors(run_folder):
            run_folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = _open_to_append(self.path)
            _end_torn_line(self._descriptor)
        self._compressor.start()

    def append(self, type: str, *, step: int | None = None, epoch: int | None = None, **fields: Any) -> None:
        self.put(type, step, epoch, fields)

    def put(self, type: str, step: int | None, epoch: int | None, fields: dict[str, Any]) -> None:
        """`append` for who has the fields in a dictionary, which is the log's from now on."""
        self._waiting.append((type, step, epoch, fields, self._clock(), self._monotonic()))
        if self._flusher is None:
            self._start_flusher()

    def flush(self, *, durable: bool = False) -> None:
        """Write what is waiting; with `durable`, also wait until the disk has it.

        Raises:
            StorageError: the disk does not take it. Nothing is lost: the next flush writes it.
        """
        with self._writing:
            self._write_waiting()
            if durable:
                os.fdatasync(self._descriptor)

    def flush_soon(self) -> None:
        """Have the writer's own thread flush now, durably; the caller does not wait."""
        self._make_durable = True
        self._wake.set()

    def close(self) -> None:
        if self._descriptor < 0:
            return
        self._is_closing = True
        self._wake.set()
        if self._flusher is not None:
            self._flusher.join()
        try:
            self.flush(durable=True)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
            self._compressor.finish()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_flusher(self) -> None:
        with self._writing:
            if self._flusher is None:
                self._flusher = threading.Thread(target=self._flush_now_and_then, name="event-log", daemon=True)
                self._flusher.start()

    def _flush_now_and_then(self) -> None:
        while not self._is_closing:
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            durable, self._make_durable = self._make_durable, False
            try:
                self.flush(durable=durable)
            except (StorageError, OSError) as error:  # raised by the training's own flush if it stays so
                print(f"{error} The events are kept in memory and written later.", file=sys.stderr)

    def _write_waiting(self) -> None:
        while self._waiting or self._unwritten:
            entries = [self._waiting.popleft() for _ in range(min(len(self._waiting), _ENCODED_AT_ONCE))]
            events = [self._event(*entry) for entry in entries]
            plain, lines = encode_all(events)
            self._unwritten += lines
            self._unwatched += plain
            with storage_errors(self.path):
                while self._unwritten:
                    self._unwritten = self._unwritten[os.write(self._descriptor, self._unwritten) :]
            plain, self._unwatched = self._unwatched, []
            if self._watch is not None:
                self._watch(plain)
            if os.fstat(self._descriptor).st_size >= self._segment_bytes:
                self._begin_segment()

    def _event(
        self, type: str, step: int | None, epoch: int | None, fields: dict[str, Any], now: float, monotonic: float
    ) -> Event:
        event = {"schema": SCHEMA, "type": type, "attempt": self.attempt, "time": now, "monotonic": monotonic}
        if step is not None:
            event["step"] = step
        if epoch is not None:
            event["epoch"] = epoch
        return event | fields

    def _begin_segment(self) -> None:
        with storage_errors(self.path):
            os.fdatasync(self._descriptor)
            close_segment(self.run_folder)
            descriptor, self._descriptor = self._descriptor, _open_to_append(self.path)
            os.close(descriptor)
        self._compressor.start()

    def _not_compressed(self, error: OSError) -> None:
        self.append("warning", name="log_not_compressed", message=f"a part of the event log stays as it is: {error}")


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)


def _end_torn_line(descriptor: int) -> None:
    """A predecessor killed inside a write left half a line; end it, so that ours starts on its own."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")


class NoLog:
    """The log of a process that keeps none: of several that train together, only the first writes."""

    def append(self, type: str, *, step: int | None = None, epoch: int | None = None, **fields: Any) -> None: ...

    def flush(self, *, durable: bool = False) -> None: ...

    def flush_soon(self) -> None: ...

    def close(self) -> None: ...


def to_plain(events: Sequence[Event]) -> list[Event]:
    """Events as they are written: tensors as numbers, snapshots as what they come to, non-finite numbers as names."""
    for event in events:
        if (snapshot := event.pop("snapshot", None)) is not None:
            event.update(snapshot.resolve())
    numbers = _read_tensors(events)
    return [spell_out({key: numbers.get(id(value), value) for key, value in event.items()}) for event in events]


def _read_tensors(events: Iterable[Event]) -> dict[int, Any]:
    """The numbers of all tensors among the values, by the id of the tensor; one reading for each device."""
    numbers: dict[int, Any] = {}
    on_devices: dict[tuple[Any, Any], list[Any]] = {}
    for event in events:
        for value in event.values():
            if not hasattr(value, "item"):
                continue
            if getattr(value, "is_cuda", False):
                on_devices.setdefault((value.device, value.dtype), []).append(value)
            else:
                numbers[id(value)] = value.item()
    for tensors in on_devices.values():
        torch = sys.modules["torch"]
        values = torch.stack([tensor.detach() for tensor in tensors]).tolist()
        numbers.update((id(tensor), value) for tensor, value in zip(tensors, values, strict=True))
    return numbers


def encode_all(events: Sequence[Event]) -> tuple[list[Event], bytes]:
    """Events as they are written, and their lines; in place of one that cannot be written stands a warning."""
    try:
        plain = to_plain(events)
        return plain, b"".join(map(_line, plain))
    except Exception as error:  # whatever a value of a stranger's type may raise
        if len(events) > 1:
            pairs = [encode_all([event]) for event in events]
            return [event for plain, _ in pairs for event in plain], b"".join(lines for _, lines in pairs)
        (event,) = events
        message = f"an event of type {event['type']} cannot be written: {type(error).__name__}: {error}"
        warning = {name: value for name, value in event.items() if name in ENVELOPE}
        warning |= {"type": "warning", "name": "event_not_written", "message": message}
        return [warning], _line(warning)


def _line(event: Event) -> bytes:
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def encode(event: Event) -> bytes:
    """One event as a line of JSON."""
    return _line(to_plain([event])[0])


class LogReader:
    """Reads a log from a cursor on, across its segments, while it grows or long after. Keeps one file open."""

    def __init__(self, run_folder: Path, cursor: Cursor = START) -> None:
        self.run_folder = run_folder
        self._segment, self._offset = cursor.segment, cursor.offset
        self._file: IO[bytes] | None = None
        self._is_closed = False

    @property
    def cursor(self) -> Cursor:
        """The place behind the last event that was read."""
        return Cursor(self._segment, self._offset)

    def read(self, most: int = 1000) -> list[Event]:
        """The next events, at most so many; none where there are no more by now. Torn and foreign lines are skipped."""
        events: list[Event] = []
        while len(events) < most:
            line = self._next_line()
            if line is None:
                break
            event = decode(line)
            if event is not None:
                events.append(event)
        return events

    def behind(self) -> int:
        """Bytes that are written and not yet read."""
        return bytes_between(self.run_folder, self.cursor, end_of_log(self.run_folder))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_line(self) -> bytes | None:
        """The next complete line; None where the log has no more by now."""
        while self._file is not None or self._open():
            assert self._file is not None  # noqa: S101 - _open has just said so
            with damage_told(self._file):
                line = self._file.readline()
            if line.endswith(b"\n"):
                self._offset += len(line)
                return line
            if line and not self._is_closed:
                self._file.seek(self._offset)  # its writer is not done with it
            if self._is_closed:
                self.close()
                self._segment, self._offset = self._segment + 1, 0
            elif closed_file(self.run_folder, self._segment) is not None:
                self._is_closed = True  # closed since: what was written before that is still to be read
            else:
                return None
        return None

    def _open(self) -> bool:
        opened = open_segment(self.run_folder, self._segment)
        if opened is None:
            return False
        self._file, self._is_closed = opened
        with damage_told(self._file):
            self._file.seek(self._offset)
        return True


def read_events(run_folder: Path, cursor: Cursor = START) -> Iterator[Event]:
    """Every complete event behind `cursor`, in constant memory."""
    for event, _ in read_from(run_folder, cursor):
        yield event


def read_from(run_folder: Path, cursor: Cursor) -> Iterator[tuple[Event, Cursor]]:
    """Pairs of an event and the cursor behind it."""
    with LogReader(run_folder, cursor) as reader:
        while events := reader.read(1):
            yield events[0], reader.cursor


def decode(line: bytes) -> Event | None:
    """The event of a line, or None for a torn line."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "type" in event else None


def follow(
    run_folder: Path,
    ended: Callable[[], bool],
    *,
    cursor: Cursor = START,
    poll_seconds: float = 0.1,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Events as they are written, until `ended()` is true and everything written by then has been read."""
    with LogReader(run_folder, cursor) as reader:
        while True:
            last_round = ended()
            while events := reader.read():
                yield from events
            if last_round:
                return
            sleep(poll_seconds)


def latest_attempt(events: Iterable[Event]) -> list[Event]:
    """`step` and `epoch` events in order, where a later attempt's stands for an earlier attempt's of the same number.

    A restart goes back to its checkpoint, so steps behind it are recorded twice; the later record is the one whose
    weights live on. Steps the earlier attempt did and the later did not reach are kept.
    """
    chosen: dict[tuple[str, int], Event] = {}
    for event in events:
        kind = event["type"]
        if kind in ("step", "epoch"):
            chosen[kind, int(event[kind])] = event
    return sorted(chosen.values(), key=lambda event: (int(event["step"]), event["type"] == "epoch"))


def epochs(events: Iterable[Event]) -> list[Event]:
    """The `epoch` events of the latest attempts, in order."""
    return [event for event in latest_attempt(events) if event["type"] == "epoch"]


def finite_or_none(value: Any) -> float | None:
    """A number fit for JSON and plots: None where it is missing or not finite."""
    result = number(value)
    return result if result - result == 0 else None
