"""One sink and its feed: exactly once and in order, whatever fails, and nobody else is held up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.log import EventWriter, LogReader, end_of_log, read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.events.segments import Cursor, closed_file
from toto_pipeline.monitoring import feed as feeding
from toto_pipeline.monitoring.feed import Feed, read_batch, read_record, record_file, retry_delay
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, State
from toto_pipeline_tests.monitoring.small_sinks import wait_until, write_run

SOON_SECONDS = 0.001


class Shelf:
    """A tool that keeps events; it outlives the sinks that fill it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.outcomes: list[RunOutcome | None] = []
        self.opened = 0


class ShelfSink:
    """Fills a shelf. `fault` is asked at each call, by name, and may raise; at writes also halfway and afterwards."""

    name = "shelf"

    def __init__(self, shelf: Shelf, fault: Callable[[str], None] = lambda _: None) -> None:
        self._shelf = shelf
        self._fault = fault
        self._good = 0

    def open(self, run: FollowedRun, state: State) -> None:  # noqa: ARG002 - the contract's
        self._fault("open")
        self._shelf.opened += 1
        self._good = int(state.get("count", 0))

    def write(self, events: Sequence[Event]) -> State:
        self._fault("write")
        del self._shelf.events[self._good :]
        self._shelf.events += events[: len(events) // 2]
        self._fault("halfway")
        self._shelf.events += events[len(events) // 2 :]
        self._fault("written")
        self._good += len(events)
        return {"count": self._good}

    def close(self, outcome: RunOutcome | None) -> None:
        self._fault("close")
        self._shelf.outcomes.append(outcome)


def make_feed(
    folder: Path,
    make: Callable[[], Any],
    *,
    name: str = "shelf",
    reports: list[str] | None = None,
    delay: Callable[[int], float] = lambda _: SOON_SECONDS,
    clock: Callable[[], float] = lambda: 0.0,
) -> Feed:
    report = (lambda _: None) if reports is None else reports.append
    return Feed(name, FollowedRun(folder), make, report, delay=delay, clock=clock)


def feed_to_the_end(feed: Feed, folder: Path, outcome: RunOutcome = "completed") -> None:
    feed.finish(outcome, end_of_log(folder))
    feed.start()
    assert feed.join(30)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(0, 12),
    faults=st.lists(st.sampled_from(["open", "write", "halfway", "written", "close", "leave"]), max_size=25),
    batch=st.integers(1, 5),
)
def test_every_event_arrives_once_and_in_order_whatever_fails(
    tmp_path_factory: pytest.TempPathFactory, steps: int, faults: list[str], batch: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    events = write_run(folder, steps)
    shelf, left = Shelf(), list(faults)
    while True:
        feed: Feed

        def fault(call: str) -> None:
            if left and left[0] in (call, "leave"):
                if left.pop(0) == "leave":
                    feed.leave()  # noqa: B023 - it has ended before the next begins
                raise OSError("not now")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(feeding, "BATCH_EVENTS", batch)
            feed = make_feed(folder, lambda: ShelfSink(shelf, fault))
            feed_to_the_end(feed, folder)
        if feed.status().state == "done":
            break
    assert shelf.events == events
    assert [outcome for outcome in shelf.outcomes if outcome] == ["completed"]
    assert feed.status().bytes_behind == 0
    assert feed.status().events == len(events)


def test_waits_double_and_end_at_once_a_minute() -> None:
    assert [retry_delay(n) for n in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 30, 60, 60]


def test_a_sink_that_is_down_is_reported_until_the_circuit_opens_and_when_it_works_again(tmp_path: Path) -> None:
    write_run(tmp_path, 3)
    shelf, asked, reports, states = Shelf(), [], [], []
    feed: Feed

    def fault(call: str) -> None:
        if call == "write" and len(asked) <= 12:
            states.append(feed.status().state)
            raise ConnectionError("no route to host")

    def delay(failures: int) -> float:
        asked.append(failures)
        return SOON_SECONDS

    feed = make_feed(tmp_path, lambda: ShelfSink(shelf, fault), reports=reports, delay=delay)
    feed_to_the_end(feed, tmp_path)
    assert asked == list(range(1, 14))
    assert states == ["ok", *["retrying"] * 7, *["open"] * 5]
    assert len(reports) == 9
    assert "no route to host" in reports[0] and "once a minute" in reports[7]
    assert reports[8] == "shelf: works again, after 13 failures in a row."
    assert feed.status().state == "done" and feed.status().failures == 13


def test_a_wrong_configuration_disables_a_sink_until_the_next_start(tmp_path: Path) -> None:
    events = write_run(tmp_path, 3)
    reports: list[str] = []

    def fault(call: str) -> None:
        raise ConfigError("experiment: there is none")

    shelf = Shelf()
    feed = make_feed(tmp_path, lambda: ShelfSink(shelf, fault), reports=reports, clock=lambda: events[0]["time"] + 90)
    feed_to_the_end(feed, tmp_path)
    status = feed.status()
    assert (status.state, status.error, status.failures) == ("disabled", "experiment: there is none", 0)
    assert status.bytes_behind > 0 and status.seconds_behind == pytest.approx(90)
    assert len(reports) == 1
    feed_to_the_end(make_feed(tmp_path, lambda: ShelfSink(shelf)), tmp_path)
    assert shelf.events == events


def test_a_sink_that_hangs_holds_neither_the_others_nor_the_end(tmp_path: Path) -> None:
    events = write_run(tmp_path, 3)
    release, shelf, stuck = threading.Event(), Shelf(), Shelf()
    hanging = make_feed(
        tmp_path, lambda: ShelfSink(stuck, lambda call: call == "write" and release.wait()), name="hanging"
    )
    hanging.finish("completed", end_of_log(tmp_path))
    hanging.start()
    try:
        feed_to_the_end(make_feed(tmp_path, lambda: ShelfSink(shelf)), tmp_path)
        assert shelf.events == events and shelf.outcomes == ["completed"]
        assert not hanging.join(0.05)
        assert hanging.status().bytes_behind > 0
    finally:
        release.set()
    assert hanging.join(30)
    assert stuck.events == events


def test_what_was_taken_in_is_not_given_again_when_the_cursor_cannot_be_kept(tmp_path: Path) -> None:
    events = write_run(tmp_path, 3)
    shelf, writes = Shelf(), []
    in_the_way = record_file(tmp_path, "shelf")

    def fault(call: str) -> None:
        if call == "write":
            writes.append(call)
            in_the_way.mkdir(parents=True)

    feed = make_feed(tmp_path, lambda: ShelfSink(shelf, fault))
    feed.finish("completed", end_of_log(tmp_path))
    feed.start()
    wait_until(lambda: feed.status().failures >= 3)
    assert feed.status().events == 0
    in_the_way.rmdir()
    assert feed.join(30)
    assert writes == ["write"]
    assert shelf.events == events
    assert read_record(tmp_path, "shelf").closed == "completed"


def test_a_sink_that_gives_no_state_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, 3)

    class Forgetful(ShelfSink):
        def write(self, events: Sequence[Event]) -> State:
            super().write(events)
            return None  # type: ignore[return-value]

    feed = make_feed(tmp_path, lambda: Forgetful(Shelf()))
    feed.finish("completed", end_of_log(tmp_path))
    feed.start()
    wait_until(lambda: feed.status().failures)
    assert "NoneType" in str(feed.status().error)
    feed.leave()
    assert feed.join(30)


def test_a_follower_that_leaves_closes_without_an_outcome_and_the_next_goes_on(tmp_path: Path) -> None:
    shelf = Shelf()
    write_run(tmp_path, 3, outcome=None)
    feed = make_feed(tmp_path, lambda: ShelfSink(shelf))
    feed.start()
    wait_until(lambda: feed.status().events == 4)
    feed.leave()
    assert feed.join(30)
    assert shelf.outcomes == [None]
    events = write_run(tmp_path, 5, attempt=2)
    feed_to_the_end(make_feed(tmp_path, lambda: ShelfSink(shelf)), tmp_path)
    assert shelf.events == events and shelf.outcomes == [None, "completed"]


def test_a_sink_that_knows_the_end_is_not_made_again_until_there_is_more(tmp_path: Path) -> None:
    shelf = Shelf()
    write_run(tmp_path, 3, outcome="failed")
    feed_to_the_end(make_feed(tmp_path, lambda: ShelfSink(shelf)), tmp_path, "failed")

    def refuse() -> ShelfSink:
        raise AssertionError("made")

    done = make_feed(tmp_path, refuse)
    feed_to_the_end(done, tmp_path, "failed")
    assert done.status().state == "done" and done.status().failures == 0
    assert (shelf.opened, shelf.outcomes) == (1, ["failed"])
    events = write_run(tmp_path, 5, attempt=2)
    feed_to_the_end(make_feed(tmp_path, lambda: ShelfSink(shelf)), tmp_path)
    assert shelf.events == events
    assert (shelf.opened, shelf.outcomes) == (2, ["failed", "completed"])


def test_a_later_attempt_is_not_mixed_with_the_end_of_the_one_before(tmp_path: Path) -> None:
    shelf = Shelf()
    first = write_run(tmp_path, 3, outcome="failed")
    end = end_of_log(tmp_path)
    write_run(tmp_path, 5, attempt=2)
    feed = make_feed(tmp_path, lambda: ShelfSink(shelf))
    feed.finish("failed", end)
    feed.start()
    assert feed.join(30)
    assert shelf.events == first and shelf.outcomes == ["failed"]


def test_events_arrive_while_the_log_grows(tmp_path: Path) -> None:
    shelf = Shelf()
    feed = make_feed(tmp_path, lambda: ShelfSink(shelf))
    feed.start()
    with EventWriter(tmp_path, segment_bytes=2000) as log:
        for step in range(1, 101):
            log.append("step", step=step)
            log.flush()
        wait_until(lambda: len(shelf.events) == 100)
    feed.finish("completed", end_of_log(tmp_path))
    assert feed.join(30)
    assert [event["step"] for event in shelf.events] == list(range(1, 101))
    assert read_record(tmp_path, "shelf").cursor.segment > 1


def test_batches_are_bounded_in_number_and_in_bytes(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as log:
        for _ in range(5):
            log.append("figure", name="f", figure={"png": "x" * (1 << 20)})
        for step in range(2500):
            log.append("step", step=step)
    with LogReader(tmp_path) as reader:
        lengths = []
        while events := read_batch(reader):
            lengths.append(len(events))
    assert lengths[0] == 4
    assert max(lengths) == 1000 and sum(lengths) == 2505


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cursor": [1, 0], "unknown": 1}', b'{"cursor": 3}'])
def test_a_damaged_cursor_disables_the_sink_and_names_the_way_out(tmp_path: Path, content: bytes) -> None:
    write_run(tmp_path, 3)
    record_file(tmp_path, "shelf").parent.mkdir()
    record_file(tmp_path, "shelf").write_bytes(content)
    feed = make_feed(tmp_path, lambda: ShelfSink(Shelf()))
    feed_to_the_end(feed, tmp_path)
    assert feed.status().state == "disabled"
    assert "--restart shelf" in str(feed.status().error)


def test_a_log_that_is_shorter_than_the_cursor_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, 3)
    feed_to_the_end(make_feed(tmp_path, lambda: ShelfSink(Shelf())), tmp_path)
    (tmp_path / "events.jsonl").write_bytes((tmp_path / "events.jsonl").read_bytes()[:200])
    with pytest.raises(ConfigError, match="shorter than it was"):
        read_record(tmp_path, "shelf")


def test_a_part_of_the_log_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    with EventWriter(tmp_path, segment_bytes=2000) as log:
        for step in range(1, 101):
            log.append("step", step=step)
            log.flush()
    events = list(read_events(tmp_path))
    packed = closed_file(tmp_path, 2)
    assert packed is not None and packed.suffix == ".gz"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:40])
    shelf = Shelf()
    feed = make_feed(tmp_path, lambda: ShelfSink(shelf))
    feed.finish("completed", end_of_log(tmp_path))
    feed.start()
    wait_until(lambda: feed.status().failures >= 2)
    packed.write_bytes(whole)
    assert feed.join(30)
    assert shelf.events == events


def test_a_cursor_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    record = feeding.Record(cursor=Cursor(3, 17), state={"a": [1, None]}, closed="killed", events=9)
    (tmp_path / "events-000003.jsonl").write_bytes(b"")
    feeding.write_record(tmp_path, "shelf", record)
    assert read_record(tmp_path, "shelf") == record
