"""Whether a run has ended, and how: what its log says, and what this machine knows of the processes that write it.

the last attempt has a `run_ended`                     its outcome
its process lives, or whoever would start it again     under way
neither does                                           killed
it runs on another machine, and is silent for long     killed
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from toto_pipeline.events.log import LogReader
from toto_pipeline.events.processes import is_alive
from toto_pipeline.events.schema import Event
from toto_pipeline.events.segments import START, Cursor, log_files
from toto_pipeline.monitoring.sink import RunOutcome

CHECK_SECONDS = 1.0
"""How often processes are looked for."""
SILENT_SECONDS = 60.0
SILENT_GAPS = 5
"""A run on another machine is given up after this time, and after so many times the longest that it was silent."""
_AT_ONCE = 10_000


class RunWatch:
    """Reads a log only for how the run goes.

    Args:
        after: attempts that begin before this place of the log belong to earlier starts.
        starter: the process that is about to start the run; an attempt behind `after` is waited for while it lives.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        after: Cursor = START,
        starter: str | None = None,
        is_alive: Callable[[str], bool] = is_alive,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_folder = run_folder
        self.started: Event | None = None
        self.ended: RunOutcome | None = None
        self._after = after
        self._starter = starter
        self._is_alive = is_alive
        self._clock = clock
        self._monotonic = monotonic
        self._reader = LogReader(run_folder)
        self._has_begun = False
        self._last_event_time: float | None = None
        self._largest_gap_seconds = 0.0
        self._checked = -CHECK_SECONDS
        self._was_gone = False

    @property
    def end(self) -> Cursor:
        """The place behind everything that was read."""
        return self._reader.cursor

    @property
    def is_empty(self) -> bool:
        """Whether nothing was recorded yet."""
        return self._last_event_time is None

    def is_over(self) -> bool:
        """Whether nothing more will be recorded, as far as can be known. `outcome` then tells how the run ended.

        Looks at the processes first and then at the log, so that a last word is not missed.
        """
        is_gone = self._look_for_processes()
        has_news = self._read()
        if has_news is None:
            return False  # a long log is not yet read to its end
        if self.ended is not None and self._is_expected_to_end():
            return True
        if has_news or is_gone is None:
            self._was_gone = self._was_gone and not has_news
            return False
        was_gone, self._was_gone = self._was_gone, is_gone
        return is_gone and was_gone  # twice in a row, and not a word between

    @property
    def outcome(self) -> RunOutcome | None:
        """How the run ended, once it is over; None where it never began."""
        return None if self.is_empty else self.ended or "killed"

    def close(self) -> None:
        self._reader.close()

    def _is_expected_to_end(self) -> bool:
        """Whether the attempt that has ended is the one to wait for, and not one before it."""
        return self._has_begun or not self._starter_lives()

    def _starter_lives(self) -> bool:
        return self._starter is not None and self._is_alive(self._starter)

    def _look_for_processes(self) -> bool | None:
        """Whether nobody is left who could write; None where it is not yet time to look again."""
        now = self._monotonic()
        if now - self._checked < CHECK_SECONDS:
            return None
        self._checked = now
        if not self._has_begun and self._starter_lives():
            return False
        if self.is_empty or self.ended is not None:
            return True
        started = self.started or {}
        if started.get("host") != platform.node() or not started.get("process"):
            return self._is_silent()
        names = [started["process"], started.get("supervisor")]
        return not any(self._is_alive(name) for name in names if name)

    def _is_silent(self) -> bool:
        newest = max(map(_written, log_files(self.run_folder)), default=0.0)
        return self._clock() - newest > max(SILENT_SECONDS, SILENT_GAPS * self._largest_gap_seconds)

    def _read(self) -> bool | None:
        """Whether there was something new; None where there may be more."""
        for count in range(_AT_ONCE):
            begin = self._reader.cursor
            events = self._reader.read(1)
            if not events:
                return count > 0
            self._see(events[0], begin)
        return None

    def _see(self, event: Event, begin: Cursor) -> None:
        if event["type"] == "run_started":
            self.started, self.ended = event, None
            self._has_begun = self._has_begun or begin >= self._after
        elif event["type"] == "run_ended":
            self.ended = cast("RunOutcome", event.get("outcome", "failed"))
        elif self._last_event_time is not None:
            self._largest_gap_seconds = max(self._largest_gap_seconds, event["time"] - self._last_event_time)
        self._last_event_time = event["time"]


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return time.time()  # closed or compressed this instant
