"""The process that executes the job, as its parent sees it.

    child     executes the job; one JSON object a line on stdout: a stage's start or end, and last the outcome
    parent    reads those lines and follows the event log, one after the other, in one thread

The child stands in a session of its own, so Ctrl-C reaches the parent alone, which then asks the child to stop, waits,
and only then kills what is left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import orjson

from toto_pipeline.events.log import LogReader
from toto_pipeline.events.schema import Event
from toto_pipeline.home import storage_errors

POLL_SECONDS = 0.1
LOG_FILE = "dagster.log"
Message = dict[str, Any]


class Child:
    """One started child; `follow()` gives what it reports until it has ended."""

    def __init__(self, command: Sequence[str], run_folder: Path, environment: Mapping[str, str]) -> None:
        self.run_folder = run_folder
        self.log_path = run_folder / LOG_FILE
        self.foreign_lines: list[str] = []
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        with storage_errors(run_folder), self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def follow(self) -> Iterator[Message | Event | None]:
        """Events (with `type`), stage messages (`stage`) and the outcome (`outcome`); None whenever a look is done.

        The event log is read after the messages and given out before them, so a stage never ends before the events
        that were written in it.
        """
        drained = False
        with LogReader(self.run_folder) as reader:
            while not drained:
                messages, drained = self._waiting_messages()
                while events := reader.read():
                    yield from events
                yield from messages
                yield None

    def wait(self) -> int:
        """The exit status; negative is the signal that ended it."""
        return self._process.wait()

    def stop(self, grace_seconds: float) -> None:
        """Ask the child to end, and end it and everything it started if it does not in time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(grace_seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass  # out of patience, the clock's or the person's: the kill below is the answer
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_words(self, lines: int = 12) -> str:
        """The end of the child's own log, for when it died without an outcome."""
        text = self.log_path.read_bytes()[-8192:].decode(errors="replace")
        return "\n".join([*self.foreign_lines, *text.splitlines()][-lines:])

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                message = _message(line)
                if message is None:
                    self.foreign_lines.append(line.decode(errors="replace").rstrip())
                else:
                    self._messages.put(message)
        self._messages.put(None)

    def _waiting_messages(self) -> tuple[list[Message], bool]:
        """What has arrived, after a short wait for a first message; and whether the child's output has ended."""
        messages: list[Message] = []
        with contextlib.suppress(queue.Empty):
            message = self._messages.get(timeout=POLL_SECONDS)
            while message is not None:
                messages.append(message)
                message = self._messages.get_nowait()
            return messages, True
        return messages, False


def _message(line: bytes) -> Message | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and ("stage" in value or "outcome" in value) else None
