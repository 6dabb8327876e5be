"""Starting the follower of a run, as a process that outlives its starter.

with start_follower(run_folder, sinks) as follower:     before the training, so that imports overlap
    ...                                                 the training
    problems = follower.settle(drain_seconds)           after it
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from toto_pipeline.events.log import end_of_log, read_events
from toto_pipeline.events.processes import process_name
from toto_pipeline.events.segments import START, Cursor
from toto_pipeline.home import storage_errors
from toto_pipeline.monitoring.follower import DRAIN_SECONDS, LEAVING_SECONDS, keep_sinks
from toto_pipeline.monitoring.status import FOLDER, FollowerStatus, SinkStatus, read_status

LOG_FILE = "follower.log"
POLL_SECONDS = 0.1


def start_follower(
    run_folder: Path, sinks: Mapping[str, Mapping[str, Any]], *, drain_seconds: float = DRAIN_SECONDS
) -> Follower:
    """Start the process that feeds `sinks` from the run that this process is about to start. Without sinks, none.

    Raises:
        ConfigError: a sink is not installed.
        StorageError: the run folder cannot be written.
    """
    keep_sinks(run_folder, sinks)
    after = end_of_log(run_folder)
    words = ["--drain", str(drain_seconds), "--after", *map(str, after.to_json()), "--for", process_name()]
    return Follower(run_folder, words if sinks else None, after)


def follow_again(run_folder: Path, *, only: Sequence[str] = (), restart: Sequence[str] = ()) -> Follower:
    """Start a process that feeds the sinks a run was started with, patiently: it takes as long as it gets on.

    Args:
        only: of the sinks feed only these, or others that the run was not started with.
        restart: sinks to be fed from the start.
    """
    words = ["--patient", "--for", process_name()]
    words += [word for name in only for word in ("--only", name)]
    words += [word for name in restart for word in ("--restart", name)]
    return Follower(run_folder, words, START)


class Follower:
    """A follower of a run in a process of its own.

    Leaving the `with` block stops it where the run has not begun; else it ends by itself, when the run does.

    Args:
        words: arguments of the process besides the folder; None for no process.
        after: where the log ended when it was started.
    """

    def __init__(self, run_folder: Path, words: Sequence[str] | None, after: Cursor) -> None:
        self.run_folder = run_folder
        self._words = words
        self._log_begins = 0
        self._after = after
        self._process = None if words is None else self._start(words)

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not any(event["type"] == "run_started" for event in read_events(self.run_folder, self._after)):
            self.stop()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None as long as the process runs; minus the signal where one killed it."""
        return 0 if self._process is None else self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait for the process to end, at most so long; whether it has."""
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
        return True

    def stop(self) -> None:
        """End the process now, leaving the sinks at their cursors."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        if not self.wait(LEAVING_SECONDS + 2.0):
            self._process.kill()
            self._process.wait()

    def status(self) -> FollowerStatus | None:
        """What this follower has said last, or another one of the run that is at work; None where neither has."""
        status = read_status(self.run_folder)
        if status is None or status.is_at_work or status.process.split("@")[0] == str(self.pid):
            return status
        return None

    def said(self) -> str:
        """What the process has written to its log so far."""
        with (self.run_folder / FOLDER / LOG_FILE).open("rb") as log:
            log.seek(self._log_begins)
            return log.read().decode(errors="replace").strip()

    def settle(self, seconds: float) -> list[str]:
        """After the run has ended: wait until the sinks have all events, at most so long; a line for each that has not.

        A sink that has them may still be closing, such as one that waits to be read a last time. A follower that was
        killed is started once more.
        """
        end = time.monotonic() + seconds
        if self._words is not None and (self.exit_code or 0) < 0:
            self._process = self._start(self._words)
        while time.monotonic() < end and not self._has_settled():
            time.sleep(POLL_SECONDS)
        return self._problems()

    def _has_settled(self) -> bool:
        if self.exit_code is not None:
            return True
        status = self.status()
        return status is not None and status.outcome is not None and not any(map(_is_late, status.sinks.values()))

    def _problems(self) -> list[str]:
        if self._process is None:
            return []
        remedy = f"Nothing is lost: `toto-pipeline follow {self.run_folder}` finishes it."
        status = self.status()
        if status is None:
            how = "has not begun to work" if self.exit_code is None else f"ended with exit code {self.exit_code}"
            return [f"The follower {how}; {self.run_folder / FOLDER / LOG_FILE} says more. {remedy}"]
        return [f"{_in_words(name, sink)} {remedy}" for name, sink in status.sinks.items() if sink.is_behind]

    def _start(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        file = self.run_folder / FOLDER / LOG_FILE
        with storage_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as log:
                self._log_begins = log.tell()
                return subprocess.Popen(
                    [sys.executable, "-m", "toto_pipeline.monitoring", str(self.run_folder), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )


def _is_late(sink: SinkStatus) -> bool:
    return sink.is_behind and sink.state != "disabled"


def _in_words(name: str, sink: SinkStatus) -> str:
    error = f" {sink.error}" if sink.error else ""
    if sink.state == "disabled":
        return f"{name} is disabled.{error}"
    return f"{name} is {sink.bytes_behind} bytes of the event log behind.{error}"
