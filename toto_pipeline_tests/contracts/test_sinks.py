"""What every sink must do, by the contract of `toto_pipeline.monitoring.sink`: the pipeline's own and the example."""

from __future__ import annotations

import copy
import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, Sink
from toto_pipeline_tests.contracts.tools import TOOLS, Shown, Tool
from toto_pipeline_tests.fixtures.mlflow_store import make_empty_database
from toto_pipeline_tests.fixtures.recorded_run import Recording, record

NewRun = Callable[..., tuple[FollowedRun, list[Event]]]
OUTCOMES: tuple[RunOutcome, ...] = ("completed", "stopped", "canceled", "failed", "killed")


@pytest.fixture(params=sorted(TOOLS))
def tool(request: pytest.FixtureRequest) -> Tool:
    return TOOLS[request.param]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_database(tmp_path_factory.mktemp("initialised"))


@pytest.fixture
def new_run(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> NewRun:
    """A recorded run in a home of its own, that nobody has followed, and its events."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DAGSTER_WEBSERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    numbers = itertools.count()

    def make(**course: Any) -> tuple[FollowedRun, list[Event]]:
        home = Home(tmp_path / f"home_{next(numbers)}").prepare()
        shutil.copy(empty_database, home.registry)
        recording = Recording(**{"epochs": 2, "steps_per_epoch": 8, **course})
        folder = record(home.runs, recording, evaluated=False, promoted=None)
        return FollowedRun(folder, home.root), list(read_events(folder))

    return make


class Opened:
    """A sink that is open, as a follower's process has it; `state` is as its file keeps it."""

    def __init__(self, tool: Tool, run: FollowedRun, state: Any = None) -> None:
        self.state = state or {}
        self._sink: Sink = tool.make()
        self._sink.open(run, self.state)

    def write(self, events: Sequence[Event]) -> None:
        given = copy.deepcopy(list(events))
        self.state = orjson.loads(orjson.dumps(dict(self._sink.write(given))))
        assert given == list(events), "a sink changed an event"

    def close(self, outcome: RunOutcome | None = None) -> None:
        self._sink.close(outcome)


def shown_at_once(tool: Tool, new_run: NewRun, **course: Any) -> Shown:
    run, events = new_run(**course)
    opened = Opened(tool, run)
    opened.write(events)
    found = tool.shown(run)
    opened.close()
    return found


@pytest.mark.parametrize(
    "course", [{}, {"dies_after": 13}, {"diverges": True}], ids=["smooth", "restarted", "diverged"]
)
def test_all_that_was_measured_is_shown_once(tool: Tool, new_run: NewRun, course: dict[str, Any]) -> None:
    found, (_, events) = shown_at_once(tool, new_run, **course), new_run(**course)
    expected = tool.expected(events)
    names = {name for name, _, _ in expected}
    assert [point for point in found if point[0] in names] == expected != []
    assert TOOLS["prometheus"] is tool or found == expected


@st.composite
def courses(draw: st.DrawFn) -> list[tuple[int, str]]:
    """Batches of events, each with its size and what comes after it."""
    next_one = st.sampled_from(["goes on", "goes on", "leaves", "state is lost"])
    return draw(st.lists(st.tuples(st.integers(0, 9), next_one), max_size=8))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(course=courses())
def test_however_events_come_and_processes_leave_the_same_is_shown(
    tool: Tool, new_run: NewRun, course: list[tuple[int, str]]
) -> None:
    run, events = new_run(dies_after=13)
    opened, taken_in = Opened(tool, run), 0
    for size, then in course:
        before = opened.state
        opened.write(events[taken_in : taken_in + size])
        if then == "goes on":
            taken_in += size
            continue
        opened.close()
        if then == "leaves":
            taken_in += size
        opened = Opened(tool, run, opened.state if then == "leaves" else before)
    opened.write(events[taken_in:])
    found = tool.shown(run)
    opened.close()
    assert found == shown_at_once(tool, new_run, dies_after=13)


def test_a_kill_between_a_write_and_the_keeping_of_its_state_shows_in_nothing(tool: Tool, new_run: NewRun) -> None:
    run, events = new_run(dies_after=13)
    name = next(name for name, known in TOOLS.items() if known is tool)
    command = [sys.executable, "-m", "toto_pipeline_tests.contracts.tools", name, str(run.folder), "15"]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    opened = Opened(tool, run)
    opened.write(events)
    found = tool.shown(run)
    opened.close("completed")
    assert found == shown_at_once(tool, new_run, dies_after=13)


def test_what_is_not_known_is_skipped_and_nothing_may_come(tool: Tool, new_run: NewRun) -> None:
    run, events = new_run()
    strange = {**events[3], "type": "a_type_to_come", "loss": 3.0, "name": 7}
    opened = Opened(tool, run)
    opened.write([])
    opened.write([events[0], strange, *events[1:4], strange])
    opened.write([])
    opened.close()
    opened = Opened(tool, run, opened.state)
    opened.write([])
    opened.write([strange, *events[4:]])
    found = tool.shown(run)
    opened.close()
    assert found == shown_at_once(tool, new_run)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_end_is_told(tool: Tool, new_run: NewRun, outcome: RunOutcome) -> None:
    run, events = new_run(stops_after=12)
    opened = Opened(tool, run)
    opened.write(events)
    opened.close()
    opened = Opened(tool, run, opened.state)
    opened.close(outcome)
    assert tool.says(run) == tool.word(outcome)


def test_a_run_that_goes_on_after_its_end_is_taken_further(tool: Tool, new_run: NewRun) -> None:
    """A retry of a step that failed goes on in the same folder."""
    run, events = new_run(dies_after=13)
    second = max(place for place, event in enumerate(events) if event["type"] == "run_started")
    opened = Opened(tool, run)
    opened.write(events[:second])
    opened.close("killed")
    opened = Opened(tool, run, opened.state)
    opened.write(events[second:])
    found = tool.shown(run)
    opened.close("completed")
    assert found == shown_at_once(tool, new_run, dies_after=13)
    assert tool.says(run) == tool.word("completed")
