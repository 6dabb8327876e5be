"""Following a run: a process that reads its log, feeds every sink, and notices the end.

    take the run's lock                       one follower a run; another waits here, before it imports anything heavy
    a feed, with a thread, for each sink
    until the run is over:                    ended in order, or its processes are gone
        watch log and processes, write the status
    drain: every feed takes in what is left and tells its sink the outcome, within a bound

The process may be killed at any instant: the next one goes on from the cursors. When told to stop it leaves the sinks
at their cursors.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import ConfigError, PipelineError
from toto_pipeline.events.processes import process_name
from toto_pipeline.events.segments import START, Cursor
from toto_pipeline.home import Home, storage_errors
from toto_pipeline.monitoring.ending import RunWatch
from toto_pipeline.monitoring.feed import Feed, record_file
from toto_pipeline.monitoring.plugins import SinkMaker, load_sinks
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome
from toto_pipeline.monitoring.status import FOLDER, FollowerStatus, SinkStatus, write_status
from toto_pipeline.settings.sinks import unknown_sinks

LOCK_FILE, SINKS_FILE = "follower.lock", "sinks.json"
DRAIN_SECONDS = 30.0
LEAVING_SECONDS = 3.0
"""What sinks may take to come back when the follower leaves them at their cursors."""
POLL_SECONDS = 0.1
STATUS_SECONDS = 1.0
STOPPED = 143
"""Exit code of a follower that was told to stop: 128 + SIGTERM."""


def followed_run(run_folder: Path) -> FollowedRun:
    """The run of a folder, and its home where it lies in one."""
    home = Home(run_folder.parent.parent)
    is_at_home = run_folder.parent == home.runs and home.snapshots.is_dir() and home.registry.is_dir()
    return FollowedRun(run_folder, home.root if is_at_home else None)


def keep_sinks(run_folder: Path, sinks: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep which sinks a run has, so that it can be followed again without being told.

    Raises:
        ConfigError: a sink is not installed.
        StorageError: the run folder cannot be written.
    """
    problem = unknown_sinks(sinks)
    if problem:
        raise ConfigError(f"monitoring.sinks: {problem}.")
    write_file(run_folder / FOLDER / SINKS_FILE, orjson.dumps(sinks, option=orjson.OPT_INDENT_2))


def kept_sinks(run_folder: Path) -> dict[str, dict[str, Any]]:
    """The sinks of a run and their settings; none where nothing is kept.

    Raises:
        ConfigError: the file is damaged.
    """
    file = run_folder / FOLDER / SINKS_FILE
    try:
        return {str(name): dict(settings) for name, settings in orjson.loads(file.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f'{file}: is damaged ({error}). Expected: settings by name of sink, such as {{"tensorboard": {{}}}}. '
            "What to do: mend it, or delete it and name the sinks with --sinks."
        ) from error


@contextmanager
def follower_lock(run_folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a run's follower; False where another holds it and is not to be waited for."""
    file = run_folder / FOLDER / LOCK_FILE
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def say(text: str) -> None:
    """A line in the log of the follower."""
    try:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)
    except OSError:
        return  # the disk is full: there is nowhere to say it, and the sinks are not to suffer from that


class RunFollower:
    """Follows one run to its end. Who makes it holds the run's lock.

    Args:
        makers: for each sink, what makes it.
        drain_seconds: what the sinks may take when the run is over: in all or, `is_patient`, without any getting on.
        after: attempts that begin before this place of the log belong to earlier starts.
        starter: the process that is about to start the run; as long as it lives, the run is waited for.
        told_to_stop: whether the follower is to leave.
    """

    def __init__(
        self,
        run_folder: Path,
        makers: Mapping[str, SinkMaker],
        *,
        drain_seconds: float = DRAIN_SECONDS,
        is_patient: bool = False,
        after: Cursor = START,
        starter: str | None = None,
        told_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._run_folder = run_folder
        self._drain_seconds = drain_seconds
        self._is_patient = is_patient
        self._told_to_stop = told_to_stop
        self._watch = RunWatch(run_folder, after=after, starter=starter)
        run = followed_run(run_folder)
        self._feeds = [Feed(name, run, make, say) for name, make in makers.items()]
        self._status = FollowerStatus(process=process_name(), started=time.time(), updated=time.time())
        self._next_status = 0.0
        self._status_error: str | None = None

    def follow(self) -> int:
        """Follow the run until it is over and drained; the exit code: 1 where a sink is behind, 0 where none is."""
        for feed in self._feeds:
            feed.start()
        while not self._watch.is_over():
            if self._told_to_stop():
                return self._stop()
            self._tell()
            time.sleep(POLL_SECONDS)
        self._watch.close()
        outcome = self._watch.outcome
        if outcome is None:
            say("the run has not begun, and nobody is left who would start it")
            return self._leave(0)
        say(f"the run has ended: {outcome}")
        self._status = replace(self._status, outcome=outcome)
        return self._drain(outcome)

    def _drain(self, outcome: RunOutcome) -> int:
        for feed in self._feeds:
            feed.finish(outcome, self._watch.end)
        end, taken_in = time.monotonic() + self._drain_seconds, self._events_taken_in()
        while not self._have_ended(POLL_SECONDS) and time.monotonic() < end:
            if self._told_to_stop():
                return self._stop()
            self._tell()
            if self._is_patient and taken_in != self._events_taken_in():
                end, taken_in = time.monotonic() + self._drain_seconds, self._events_taken_in()
        behind = [feed.name for feed in self._feeds if feed.status().state != "done"]
        if not behind:
            return self._leave(0)
        say(
            f"behind when the follower ended: {', '.join(behind)}. Nothing is lost: "
            f"`toto-pipeline follow {self._run_folder}` finishes it."
        )
        return self._leave(1)

    def _stop(self) -> int:
        say("told to stop: the sinks stay at their cursors")
        return self._leave(STOPPED)

    def _leave(self, code: int) -> int:
        for feed in self._feeds:
            feed.leave()
        self._have_ended(LEAVING_SECONDS)
        self._tell(now=True)
        return code

    def _have_ended(self, seconds: float) -> bool:
        """Whether all feeds have, within so many seconds."""
        end = time.monotonic() + seconds
        return all(feed.join(end - time.monotonic()) for feed in self._feeds)

    def _events_taken_in(self) -> int:
        return sum(feed.status().events for feed in self._feeds)

    def _tell(self, *, now: bool = False) -> None:
        """Write the status, where it is time and something has changed."""
        if not now and time.monotonic() < self._next_status:
            return
        self._next_status = time.monotonic() + STATUS_SECONDS
        sinks: Mapping[str, SinkStatus] = {feed.name: feed.status() for feed in self._feeds}
        changed = replace(self._status, sinks=sinks)
        if changed == self._status and not now:
            return
        self._status = changed
        try:
            write_status(self._run_folder, replace(changed, updated=time.time()))
            self._status_error = None
        except (OSError, PipelineError) as error:  # who looks sees an old status; the sinks go on
            if str(error) != self._status_error:
                self._status_error = str(error)
                say(f"the status is not written: {error}")


def follow_run(
    run_folder: Path,
    *,
    sinks: Mapping[str, Mapping[str, Any]] | None = None,
    only: Sequence[str] = (),
    restart: Sequence[str] = (),
    wait: bool = True,
    drain_seconds: float = DRAIN_SECONDS,
    is_patient: bool = False,
    after: Cursor = START,
    starter: str | None = None,
    holding_lock: Callable[[], None] = lambda: None,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Follow a run as its only follower; the exit code.

    Args:
        sinks: sinks and their settings, to be kept with the run; None for those that are kept.
        only: of these feed only those that are named here, and those named here that are not among them.
        restart: sinks to be fed from the start.
        wait: wait for another follower of the run to end; else leave it to that.
        holding_lock: called when the lock is taken.

    Raises:
        ConfigError: a sink is not installed, or none is named.
    """
    with follower_lock(run_folder, wait=wait) as is_ours:
        if not is_ours:
            say(f"{run_folder}: another process follows this run")
            return 0
        holding_lock()
        makers = load_sinks(_chosen_sinks(run_folder, sinks, only))
        _forget_cursors(run_folder, restart, makers)
        follower = RunFollower(
            run_folder,
            makers,
            drain_seconds=drain_seconds,
            is_patient=is_patient,
            after=after,
            starter=starter,
            told_to_stop=told_to_stop,
        )
        return follower.follow()


def _forget_cursors(run_folder: Path, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{run_folder}: the run has no sink {name!r} to be restarted. Expected one of: {', '.join(known)}."
            )
        record_file(run_folder, name).unlink(missing_ok=True)


def _chosen_sinks(
    run_folder: Path, sinks: Mapping[str, Mapping[str, Any]] | None, only: Sequence[str]
) -> Mapping[str, Mapping[str, Any]]:
    kept = kept_sinks(run_folder)
    known = {**kept, **{name: {} for name in only if name not in kept}} if sinks is None else sinks
    if known != kept:
        keep_sinks(run_folder, known)
    if not known:
        raise ConfigError(
            f"{run_folder}: no sinks are named. What to do: name some, such as `toto-pipeline follow {run_folder} "
            "--sinks tensorboard`."
        )
    return {name: settings for name, settings in known.items() if not only or name in only}
