"""The append-only event log of a run: its writer and its readers.

The writer appends whole lines with one `os.write` on an append-mode descriptor, so what was flushed survives a SIGKILL
of the process and a torn line can only be the last one. Readers keep a cursor, a byte offset just behind the last
complete line they have seen.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from toto_pipeline.events.schema import SCHEMA, Event, number, spell_out
from toto_pipeline.home import storage_errors

FILE_NAME = "events.jsonl"
FLUSH_SECONDS = 1.0


class EventWriter:
    """Appends events to `<run>/events.jsonl`. One writer a run at a time; any thread of it may append.

    `append` buffers and flushes at most `flush_seconds` later; a value may be a zero-dimensional tensor, which is read
    from its device only at the flush.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        attempt: int = 1,
        flush_seconds: float = FLUSH_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = run_folder / FILE_NAME
        self.attempt = attempt
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._buffer: list[Event] = []
        self._lock = threading.RLock()
        self._flushed_at = monotonic()
        with storage_errors(run_folder):
            run_folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._end_torn_line()

    def append(self, type: str, *, step: int | None = None, epoch: int | None = None, **fields: Any) -> None:
        now = self._monotonic()
        event: Event = {
            "schema": SCHEMA,
            "type": type,
            "attempt": self.attempt,
            "time": self._clock(),
            "monotonic": now,
        }
        if step is not None:
            event["step"] = step
        if epoch is not None:
            event["epoch"] = epoch
        event.update(fields)
        with self._lock:
            self._buffer.append(event)
            if now - self._flushed_at >= self._flush_seconds:
                self.flush()

    def flush(self, *, durable: bool = False) -> None:
        """Write what is buffered; with `durable`, also wait until the disk has it."""
        with self._lock:
            self._flushed_at = self._monotonic()
            if self._buffer:
                lines = b"".join(encode(event) for event in self._buffer)
                with storage_errors(self.path):
                    _write_all(self._descriptor, lines)
                self._buffer.clear()
        if durable:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            self.flush(durable=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_torn_line(self) -> None:
        """A predecessor killed inside a write left half a line; end it, so that ours starts on its own."""
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")


class NoLog:
    """The log of a process that keeps none: of several that train together, only the first writes."""

    def append(self, type: str, *, step: int | None = None, epoch: int | None = None, **fields: Any) -> None: ...

    def flush(self, *, durable: bool = False) -> None: ...

    def close(self) -> None: ...


def encode(event: Event) -> bytes:
    """One event as a line of JSON; tensors become numbers, non-finite numbers their names."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in event.items()}
    return orjson.dumps(spell_out(plain), option=orjson.OPT_APPEND_NEWLINE)


def read_events(run_folder: Path, cursor: int = 0) -> Iterator[Event]:
    """Every complete event behind `cursor`; torn or foreign lines are skipped."""
    for event, _ in read_from(run_folder, cursor):
        yield event


def read_from(run_folder: Path, cursor: int) -> Iterator[tuple[Event, int]]:
    """Pairs of an event and the cursor behind it."""
    try:
        file = (run_folder / FILE_NAME).open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(cursor)
        for line in file:
            if not line.endswith(b"\n"):
                return
            cursor += len(line)
            event = decode(line)
            if event is not None:
                yield event, cursor


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
    cursor: int = 0,
    poll_seconds: float = 0.1,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Events as they are written, until `ended()` is true and everything written by then has been read."""
    position = cursor
    while True:
        last_round = ended()
        for event, behind in read_from(run_folder, position):
            position = behind
            yield event
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


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
