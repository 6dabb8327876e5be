"""When a run is over, and how it ended: by its log, and by the processes that this machine knows."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest

from toto_pipeline.events.log import EventWriter, end_of_log
from toto_pipeline.events.segments import START, Cursor
from toto_pipeline.monitoring import ending
from toto_pipeline.monitoring.ending import CHECK_SECONDS, SILENT_SECONDS, RunWatch

TRAINER, SUPERVISOR, STARTER = "10@1", "9@1", "8@1"
LOOKS = 4
"""More looks, a check apart, than it takes to be sure."""


class World:
    """A run folder, the processes that live, and clocks that this test turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alive: set[str] = set()
        self.now = 1_000_000.0
        self.attempts = 0

    def append(self, type: str, **fields: Any) -> None:
        with EventWriter(self.folder, attempt=max(1, self.attempts), clock=lambda: self.now) as log:
            log.append(type, **fields)
        os.utime(self.folder / "events.jsonl", (self.now, self.now))

    def start(self, *, host: str | None = None, supervisor: str | None = None, process: str | None = TRAINER) -> None:
        self.attempts += 1
        host = host or platform.node()
        self.append("run_started", process=process, supervisor=supervisor, host=host, pid=10)

    def end(self, outcome: str) -> None:
        self.append("run_ended", outcome=outcome, reason="", best=None)

    def watch(self, *, after: Cursor = START, starter: str | None = None) -> RunWatch:
        return RunWatch(
            self.folder,
            after=after,
            starter=starter,
            is_alive=lambda name: name in self.alive,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def is_over(self, watch: RunWatch, looks: int = LOOKS) -> bool:
        """Whether some of so many looks finds the run over."""
        for _ in range(looks):
            if watch.is_over():
                return True
            self.now += CHECK_SECONDS
        return False


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("outcome", ["completed", "stopped", "canceled", "failed"])
def test_a_run_ends_as_its_log_says_even_if_its_process_lives_on(world: World, outcome: str) -> None:
    world.alive = {TRAINER}
    watch = world.watch()
    world.start()
    assert not world.is_over(watch)
    world.end(outcome)
    assert world.is_over(watch, looks=1)
    assert watch.outcome == outcome
    assert watch.end == end_of_log(world.folder)


def test_a_later_attempt_takes_an_end_back(world: World) -> None:
    world.alive = {TRAINER}
    world.start()
    world.end("failed")
    world.start()
    watch = world.watch()
    assert not world.is_over(watch)
    world.end("completed")
    assert world.is_over(watch)
    assert watch.outcome == "completed"


def test_a_trainer_that_is_gone_without_a_word_was_killed(world: World) -> None:
    world.alive = {TRAINER}
    watch = world.watch()
    world.start()
    assert not world.is_over(watch)
    world.alive = set()
    begin = world.now
    assert world.is_over(watch)
    assert world.now - begin <= 3
    assert watch.outcome == "killed"


def test_a_last_word_counts_more_than_the_death(world: World) -> None:
    world.alive = {TRAINER}
    watch = world.watch()
    world.start()
    assert not world.is_over(watch)
    world.alive = set()
    world.end("stopped")
    assert world.is_over(watch, looks=1)
    assert watch.outcome == "stopped"


def test_who_is_believed_dead_and_still_writes_is_not(world: World) -> None:
    watch = world.watch()
    world.start()
    for step in range(10):
        assert not world.is_over(watch, looks=1)
        world.append("step", step=step)
    assert world.is_over(watch)


def test_a_supervisor_may_start_the_trainer_again(world: World) -> None:
    world.alive = {SUPERVISOR}
    watch = world.watch()
    world.start(supervisor=SUPERVISOR)
    assert not world.is_over(watch, looks=20)
    world.alive = {SUPERVISOR, TRAINER}
    world.start(supervisor=SUPERVISOR)
    assert not world.is_over(watch)
    world.alive = {SUPERVISOR}
    assert not world.is_over(watch)
    world.alive = set()
    assert world.is_over(watch)
    assert watch.outcome == "killed"


@pytest.mark.parametrize("process", [TRAINER, None])
def test_a_run_of_another_machine_is_given_up_when_it_is_silent(world: World, process: str | None) -> None:
    watch = world.watch()
    world.start(host="another" if process else None, process=process)
    assert not world.is_over(watch, looks=int(SILENT_SECONDS))
    assert world.is_over(watch)
    assert watch.outcome == "killed"


def test_silence_is_measured_by_the_longest_there_was(world: World) -> None:
    watch = world.watch()
    world.start(host="another")
    world.append("step", step=1)
    world.now += 100
    world.append("step", step=2)
    assert not world.is_over(watch, looks=500)
    assert world.is_over(watch)


def test_time_between_attempts_is_no_silence(world: World) -> None:
    world.start(host="another")
    world.end("failed")
    world.now += 100_000
    world.start(host="another")
    watch = world.watch()
    assert not world.is_over(watch, looks=int(SILENT_SECONDS))
    assert world.is_over(watch)


def test_a_run_that_has_not_begun_is_waited_for_while_its_starter_lives(world: World) -> None:
    world.alive = {STARTER}
    watch = world.watch(starter=STARTER)
    assert not world.is_over(watch)
    world.alive = {STARTER, TRAINER}
    world.start()
    assert not world.is_over(watch)
    world.end("completed")
    assert world.is_over(watch, looks=1)


def test_a_run_that_nobody_starts_is_over_without_an_outcome(world: World) -> None:
    world.alive = {STARTER}
    watch = world.watch(starter=STARTER)
    assert not world.is_over(watch)
    world.alive = set()
    assert world.is_over(watch)
    assert watch.outcome is None


@pytest.mark.parametrize("outcome", ["failed", None])
def test_the_end_of_an_earlier_start_is_not_that_of_this_one(world: World, outcome: str | None) -> None:
    world.start()
    if outcome:
        world.end(outcome)
    world.alive = {STARTER}
    watch = world.watch(after=end_of_log(world.folder), starter=STARTER)
    assert not world.is_over(watch)
    world.alive = {STARTER, TRAINER}
    world.start()
    assert not world.is_over(watch)
    world.end("completed")
    assert world.is_over(watch, looks=1)
    assert watch.outcome == "completed"


def test_a_starter_that_dies_leaves_the_earlier_end(world: World) -> None:
    world.start()
    world.end("failed")
    world.alive = {STARTER}
    watch = world.watch(after=end_of_log(world.folder), starter=STARTER)
    assert not world.is_over(watch)
    world.alive = set()
    assert world.is_over(watch)
    assert watch.outcome == "failed"


def test_a_loop_that_is_its_own_starter_is_not_waited_for_twice(world: World) -> None:
    world.alive = {TRAINER}
    world.start()
    watch = world.watch(starter=TRAINER)
    world.end("completed")
    assert world.is_over(watch, looks=1)


def test_a_long_log_is_read_to_its_end_before_anything_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_AT_ONCE", 2)
    for outcome in ("failed", "failed", "completed"):
        world.start()
        world.end(outcome)
    watch = world.watch()
    assert world.is_over(watch, looks=10)
    assert watch.outcome == "completed"
