"""One sink, fed in a thread of its own: whatever it does, it holds nobody but itself.

    make the sink
    until the run has ended and all its events are taken in:
        read a batch -> open the sink, before the first -> write -> keep cursor and state
    close with the outcome -> keep that

Each of these steps is tried until it succeeds, with ever longer waits between. A ConfigError ends the feed; the cursor
stays, and the next start goes on from it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import ConfigError
from toto_pipeline.events.log import LogReader
from toto_pipeline.events.schema import Event
from toto_pipeline.events.segments import START, Cursor, bytes_between, end_of_log
from toto_pipeline.monitoring.status import FOLDER, SinkState, SinkStatus

if TYPE_CHECKING:
    from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, Sink

BATCH_EVENTS = 1000
BATCH_BYTES = 4 << 20
"""A batch is no longer than the event that reaches this, so that figures do not fill the memory."""
PAUSE_SECONDS = 0.25
"""How long more events are waited for; also how often the log is looked at when there are none."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 30.0
FAILURES_TO_OPEN, OPEN_DELAY_SECONDS = 8, 60.0
DRAINING_DELAY_SECONDS = 2.0
"""The longest wait between tries when the run has ended and there is not much time left."""


def retry_delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    if failures >= FAILURES_TO_OPEN:
        return OPEN_DELAY_SECONDS
    return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (failures - 1))


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept of a sink from one process to the next, in one file that is written atomically.

    Attributes:
        closed: the outcome that the sink has been told, None as long as there is more to come.
        events: events taken in so far.
    """

    cursor: Cursor = START
    state: Mapping[str, Any] = field(default_factory=dict)
    closed: RunOutcome | None = None
    events: int = 0


def record_file(run_folder: Path, sink: str) -> Path:
    return run_folder / FOLDER / f"{sink}.json"


def read_record(run_folder: Path, sink: str) -> Record:
    """What is kept of a sink; the beginning where nothing is.

    Raises:
        ConfigError: the file is damaged, or is of another log.
    """
    file = record_file(run_folder, sink)
    try:
        values = orjson.loads(file.read_bytes())
        record = Record(**{**values, "cursor": Cursor.from_json(values["cursor"])})
    except FileNotFoundError:
        return Record()
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: is damaged ({type(error).__name__}: {error}). {_remedy(run_folder, sink)}"
        ) from error
    if record.cursor > end_of_log(run_folder):
        raise ConfigError(
            f"{file}: the sink has taken in more than the log holds, which is shorter than it was. "
            f"{_remedy(run_folder, sink)}"
        )
    return record


def write_record(run_folder: Path, sink: str, record: Record) -> None:
    values = {**vars(record), "cursor": record.cursor.to_json(), "state": dict(record.state)}
    write_file(record_file(run_folder, sink), orjson.dumps(values))


def _remedy(run_folder: Path, sink: str) -> str:
    return f"What to do: `toto-pipeline follow {run_folder} --restart {sink}` feeds it from the start."


class _Leaving(Exception):  # noqa: N818 - no error
    """The feed was told to leave."""


class Feed:
    """Feeds one sink.

    Args:
        name: the sink's.
        make: makes the sink; called in the feed's thread.
        report: takes a line for the user.
        delay: seconds to wait after so many failures in a row.
    """

    def __init__(
        self,
        name: str,
        run: FollowedRun,
        make: Callable[[], Sink],
        report: Callable[[str], None],
        *,
        delay: Callable[[int], float] = retry_delay,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._run = run
        self._make = make
        self._report = report
        self._delay = delay
        self._clock = clock
        self._record = Record()
        self._reader = LogReader(run.folder)
        self._sink: Sink | None = None
        self._is_open = False
        self._state: SinkState = "ok"
        self._failures = self._failures_in_a_row = 0
        self._error: str | None = None
        self._oldest: float | None = None
        self._ending: tuple[RunOutcome, Cursor] | None = None
        self._is_leaving = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"feed-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, outcome: RunOutcome, end: Cursor) -> None:
        """The run has ended: take in what is there up to `end`, tell the sink, and be done."""
        self._ending = (outcome, end)
        self._wake.set()

    def leave(self) -> None:
        """Stop at the cursor, as soon as the sink comes back from what it does."""
        self._is_leaving = True
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end, at most so long; whether it has."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def status(self) -> SinkStatus:
        record = self._record
        behind = bytes_between(self._run.folder, record.cursor, end_of_log(self._run.folder))
        oldest = self._oldest
        return SinkStatus(
            state=self._state,
            cursor=(record.cursor.segment, record.cursor.offset),
            bytes_behind=behind,
            seconds_behind=max(0.0, self._clock() - oldest) if oldest is not None and behind else 0.0,
            events=record.events,
            failures=self._failures,
            error=self._error,
        )

    def _live(self) -> None:
        try:
            self._record = self._try(lambda: read_record(self._run.folder, self.name))
            self._reader = LogReader(self._run.folder, self._record.cursor)
            self._feed()
        except _Leaving:
            self._close_early()
        except ConfigError as error:
            self._state, self._error = "disabled", str(error)
            self._report(f"{self.name}: disabled until the next start. {error}")
            self._oldest = self._oldest or self._next_event_time()
        finally:
            self._reader.close()

    def _feed(self) -> None:
        if self._record.closed is None:
            self._try(self._get_sink)  # in good time: what it imports takes seconds
        while True:
            ending = self._ending
            events = self._try(self._read)
            if events:
                self._take_in(events)
            elif ending is not None:
                break
            if len(events) < BATCH_EVENTS and self._ending is None:
                self._pause(PAUSE_SECONDS)
        self._close(ending[0])

    def _read(self) -> list[Event]:
        """The next batch; after an error the same again."""
        until = None if self._ending is None else self._ending[1]
        try:
            return read_batch(self._reader, until)
        except Exception:
            self._reader.close()
            self._reader = LogReader(self._run.folder, self._record.cursor)
            raise

    def _take_in(self, events: list[Event]) -> None:
        self._oldest = events[0].get("time")
        self._try(self._open)
        state = self._try(lambda: self._get_sink().write(events))
        self._keep(Record(cursor=self._reader.cursor, state=state, events=self._record.events + len(events)))
        self._oldest = None

    def _open(self) -> None:
        if not self._is_open:
            self._get_sink().open(self._run, self._record.state)
            self._is_open = True

    def _close(self, outcome: RunOutcome) -> None:
        if self._record.closed != outcome:
            self._try(self._open)
            self._try(lambda: self._get_sink().close(outcome))
            self._is_open = False
            self._keep(replace(self._record, closed=outcome))
        self._state = "done"

    def _close_early(self) -> None:
        if self._is_open:
            try:
                self._get_sink().close(None)
            except Exception as error:  # there is no time to try again, and nothing is lost
                self._report(f"{self.name}: {_text(error)}")

    def _keep(self, record: Record) -> None:
        """Keep how far the sink is. What it has taken in is not given to it again when that fails."""
        self._try(lambda: write_record(self._run.folder, self.name, record))
        self._record = record

    def _get_sink(self) -> Sink:
        if self._sink is None:
            self._sink = self._make()
        return self._sink

    def _try[T](self, step: Callable[[], T]) -> T:
        """Do a step, until it succeeds."""
        while True:
            self._leave_if_told()
            try:
                result = step()
            except ConfigError:
                raise
            except (Exception, SystemExit) as error:
                self._has_failed(error)
            else:
                self._has_succeeded()
                return result
            delay = self._delay(self._failures_in_a_row)
            self._pause(delay if self._ending is None else min(delay, DRAINING_DELAY_SECONDS))

    def _has_failed(self, error: BaseException) -> None:
        self._failures += 1
        self._failures_in_a_row += 1
        self._error = _text(error)
        if self._failures_in_a_row < FAILURES_TO_OPEN:
            self._state = "retrying"
            self._report(f"{self.name}: {self._error}. It is tried again.")
        elif self._state != "open":
            self._state = "open"
            self._report(
                f"{self.name}: {self._error}. After {FAILURES_TO_OPEN} failures in a row it is tried once a minute. "
                "Nothing is lost: it goes on where it stopped."
            )

    def _has_succeeded(self) -> None:
        if self._failures_in_a_row:
            self._report(f"{self.name}: works again, after {self._failures_in_a_row} failures in a row.")
        self._failures_in_a_row = 0
        self._state = "ok"

    def _pause(self, seconds: float) -> None:
        self._leave_if_told()
        self._wake.wait(seconds)
        self._wake.clear()
        self._leave_if_told()

    def _leave_if_told(self) -> None:
        if self._is_leaving:
            raise _Leaving

    def _next_event_time(self) -> float | None:
        """The time of the first event that is not taken in."""
        with LogReader(self._run.folder, self._record.cursor) as reader:
            events = reader.read(1)
        return events[0].get("time") if events else None


def read_batch(reader: LogReader, until: Cursor | None = None) -> list[Event]:
    """The next events of a log, at most a batch of them, and none that begins behind `until`."""
    first = reader.cursor
    events: list[Event] = []
    while len(events) < BATCH_EVENTS and (until is None or reader.cursor < until):
        event = reader.read(1)
        if not event:
            break
        events += event
        if reader.cursor.segment != first.segment or reader.cursor.offset - first.offset >= BATCH_BYTES:
            break
    return events


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". ")
