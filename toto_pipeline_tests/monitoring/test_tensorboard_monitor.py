"""TensorBoard's event files hold each event once, whatever happens to the process and the disk."""

from __future__ import annotations

import html
import json
import math
import os
import re
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams import api_pb2, metadata

from toto_pipeline.errors import ConfigError
from toto_pipeline.events import figures
from toto_pipeline.events.histograms import describe
from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.sink import FollowedRun
from toto_pipeline.monitoring.tensorboard_monitor import TensorBoardMonitor
from toto_pipeline.monitoring.tensorboard_records import as_markdown, settings_of
from toto_pipeline_tests.fixtures.recorded_run import Recording, record
from toto_pipeline_tests.monitoring.tensorboard_reading import (
    classic_points,
    event_files,
    feed,
    measured,
    points_of,
    records,
    server,
    shown,
    tensors,
)

SMALL = {"epochs": 3, "steps_per_epoch": 10}


def recorded(folder: Path, **course: Any) -> tuple[Path, list[Event]]:
    run = record(folder, Recording(**{**SMALL, **course}), evaluated=False, promoted=None)
    return run, list(read_events(run))


def started(**fields: Any) -> Event:
    return {
        "type": "run_started",
        "time": 100.0,
        "attempt": 1,
        "config": {"training": {"learning_rate": 0.1}},
        "total_steps": 30,
        "steps_per_epoch": 10,
        "resumed_from": None,
        **fields,
    }


def of(kind: str, step: int, **fields: Any) -> Event:
    return {"type": kind, "time": 100.0 + step, "attempt": 1, "step": step, "epoch": 0, **fields}


def test_every_measurement_is_shown_once(tmp_path: Path) -> None:
    run, events = recorded(tmp_path)
    feed(run, events)
    assert shown(run) == measured(events) != []
    assert classic_points(run) == measured(events)


def test_the_bytes_do_not_depend_on_how_events_come_together(tmp_path: Path) -> None:
    run, events = recorded(tmp_path, dies_after=14)
    feed(run, events, batch=1)
    one_by_one = [path.read_bytes() for path in event_files(run)]
    other, events = recorded(tmp_path / "other", dies_after=14)
    feed(other, events, batch=len(events))
    assert [path.read_bytes() for path in event_files(other)] == one_by_one


def test_values_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    run, events = recorded(tmp_path, diverges=True)
    feed(run, events)
    lost = [value for name, _, value in shown(run) if name == "train/loss" and value == -12345.0]
    assert len(lost) == 12
    assert shown(run) == measured(events)


def test_time_is_that_of_the_event(tmp_path: Path) -> None:
    run, events = recorded(tmp_path)
    feed(run, events)
    times = {event["step"]: event["time"] for event in events if event["type"] == "step"}
    assert {event.step: event.wall_time for event in server(run).Tensors("train/loss")} == times


def test_a_reading_without_a_step_lies_at_the_last_one(tmp_path: Path) -> None:
    reading = {"type": "system", "time": 101.0, "host": {"cpu_percent": 40.0}}
    feed(tmp_path, [started(), reading, of("step", 7, loss=1.0), {**reading, "time": 108.0}])
    assert [point for point in shown(tmp_path) if point[0].startswith("host")] == [
        ("host/cpu_percent", 0, 40.0),
        ("host/cpu_percent", 7, 40.0),
    ]


def test_types_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    feed(tmp_path, [started(), of("nonsense", 3, loss=1.0), of("step", 4, loss=1.0)])
    assert shown(tmp_path) == [("train/loss", 4, 1.0)]


# Restarts of the training


@pytest.mark.parametrize("dies_after", [3, 10, 14, 20, 29])
def test_of_two_attempts_at_a_step_the_later_is_shown(tmp_path: Path, dies_after: int) -> None:
    run, events = recorded(tmp_path, dies_after=dies_after)
    feed(run, events)
    assert shown(run) == measured(events)
    assert classic_points(run) == measured(events)
    assert len([point for point in shown(run) if point[0] == "train/loss"]) == 30


def test_a_picture_is_drawn_again_behind_the_checkpoint(tmp_path: Path) -> None:
    picture = {"name": "forecast", "figure": figures.lines("t", [1, 2], {"a": [1, 2]})}
    again = started(attempt=2, resumed_from=10)
    feed(
        tmp_path,
        [
            started(),
            *[of("figure", step, **picture) for step in (5, 10, 20)],
            again,
            *[of("figure", step, **picture) for step in (20, 30)],
        ],
    )
    assert [step for step, _ in tensors(tmp_path, "figures/forecast")] == [5, 10, 20, 30]


def test_the_best_score_is_shown_again_behind_the_checkpoint(tmp_path: Path) -> None:
    best = of("epoch", 20, epoch=2, validation_loss=0.5, is_best=True)
    feed(tmp_path, [started(), best, started(attempt=2, resumed_from=10), best])
    assert [step for step, _ in tensors(tmp_path, "hparam/validation_loss")] == [20]


# Restarts of the sink

_WRITER = """
import os, signal, sys, orjson
from pathlib import Path
from toto_pipeline.events.log import read_events
from toto_pipeline.monitoring.sink import FollowedRun
from toto_pipeline.monitoring.tensorboard_monitor import TensorBoardMonitor

run, store, kill_at, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
kept = orjson.loads(store.read_bytes()) if store.exists() else {"done": 0, "state": {}}
events = list(read_events(run))
sink = TensorBoardMonitor()
sink.open(FollowedRun(run), kept["state"])
while kept["done"] < len(events):
    last = kept["done"] + batch
    state = sink.write(events[kept["done"]:last])
    if last >= kill_at > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    kept = {"done": last, "state": state}
    store.write_bytes(orjson.dumps(kept))
sink.close("completed")
"""


def follow(run: Path, store: Path, *, kill_at: int = 0, batch: int = 5) -> int:
    """A process that writes the run, and is killed between the write of event `kill_at` and the note of it."""
    command = [sys.executable, "-c", _WRITER, str(run), str(store), str(kill_at), str(batch)]
    return subprocess.run(command, check=False, timeout=120).returncode


@pytest.mark.parametrize("dies_after", [None, 14])
def test_kills_between_a_write_and_the_note_of_it_show_in_nothing(tmp_path: Path, dies_after: int | None) -> None:
    run, events = recorded(tmp_path, dies_after=dies_after)
    watching = None
    for kill_at, batch in ((1, 1), (12, 3), (13, 7), (19, 9), (30, 30)):
        assert follow(run, tmp_path / "cursor", kill_at=kill_at, batch=batch) == -signal.SIGKILL
        watching = watching or server(run)
        watching.Reload()
    assert follow(run, tmp_path / "cursor") == 0
    assert shown(run) == measured(events)
    assert points_of(watching.Reload()) == measured(events)
    assert len(event_files(run)) == 1


def test_a_sink_that_lost_its_state_finds_what_is_there(tmp_path: Path) -> None:
    run, events = recorded(tmp_path, dies_after=14)
    feed(run, events)
    before = [path.read_bytes() for path in event_files(run)]
    feed(run, events, batch=11)
    assert [path.read_bytes() for path in event_files(run)] == before


@pytest.mark.parametrize("cut", [1, 5, 11, 12, 40, 90])
def test_a_torn_record_is_completed(tmp_path: Path, cut: int) -> None:
    """As a power cut, or a kill inside of the system call, leaves it."""
    run, events = recorded(tmp_path)
    state = feed(run, events[:20])
    feed(run, events[20:25], state=state)
    [path] = event_files(run)
    os.truncate(path, path.stat().st_size - cut)
    watching = server(run)
    feed(run, events[20:], state=state)
    assert shown(run) == measured(events)
    assert points_of(watching.Reload()) == measured(events)


def test_garbage_behind_the_noted_place_is_cut_off(tmp_path: Path) -> None:
    run, events = recorded(tmp_path)
    state = feed(run, events[:20])
    with event_files(run)[0].open("ab") as file:
        file.write(b"\0" * 300)
    watching = server(run)
    feed(run, events[20:], state=state)
    assert shown(run) == measured(events)
    assert points_of(watching.Reload()) == measured(events)


def test_a_log_that_goes_on_in_another_way_is_followed(tmp_path: Path) -> None:
    """Lines of the log that a power cut lost were shown already; others came in their place."""
    run, events = recorded(tmp_path)
    state = feed(run, events[:20])
    feed(run, events[20:40], state=state)
    others = [{**event, "loss": 9.0} if event["type"] == "step" else event for event in events[20:]]
    state = feed(run, others[:9], state=state)
    assert shown(run) == measured([*events[:20], *others[:9]])
    feed(run, others[9:], state=state)
    assert shown(run) == measured([*events[:20], *others])


def test_a_process_killed_while_it_began_a_new_file_goes_on_in_it(tmp_path: Path) -> None:
    run, events = recorded(tmp_path)
    state = feed(run, events[:20])
    with event_files(run)[0].open("ab") as file:
        file.write(b"\0" * 300)
    feed(run, events[20:30], state=state)
    feed(run, events[20:], state=state)
    assert shown(run) == measured(events)
    assert len(event_files(run)) == 2


def test_files_that_were_cut_are_a_plain_error(tmp_path: Path) -> None:
    run, events = recorded(tmp_path)
    state = feed(run, events)
    [path] = event_files(run)
    os.truncate(path, 50)
    with pytest.raises(ConfigError, match=r"has 50 bytes; expected at least .* made anew from the event log"):
        TensorBoardMonitor().open(FollowedRun(run), state)


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_loses_and_doubles_nothing(tmp_path: Path, small_disk: Path) -> None:
    _, events = recorded(tmp_path)
    sink = TensorBoardMonitor()
    sink.open(FollowedRun(small_disk), {})
    sink.write(events[:8])
    _, room = (small_disk / "filler", os.statvfs(small_disk))
    (small_disk / "filler").write_bytes(b"x" * (room.f_bavail * room.f_frsize))
    watching = server(small_disk)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left on device"):
            sink.write(events[8:])
        assert set(points_of(watching.Reload())) <= set(measured(events))
    (small_disk / "filler").unlink()
    sink.write(events[8:])
    sink.close(None)
    assert shown(small_disk) == measured(events)
    assert points_of(watching.Reload()) == measured(events)


def test_a_file_that_may_not_grow_is_completed_later(tmp_path: Path) -> None:
    """At every length a file may have: the end of a record, and anywhere inside of one."""
    run, events = recorded(tmp_path)
    picture = of("histogram", 10, name="weights", **describe(np.arange(9.0)))
    events = [events[0], *events[1:5], picture, *events[5:]]
    sink = TensorBoardMonitor()
    sink.open(FollowedRun(run), {})
    sink.write(events[:3])
    length = event_files(run)[0].stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for allowed in range(length, length + 400, 37):
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, hard))
            with pytest.raises(OSError, match="File too large"):
                sink.write(events[3:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    sink.write(events[3:])
    sink.close(None)
    assert shown(run) == measured(events)
    assert [step for step, _ in tensors(run, "weights")] == [10]


# Histograms, images, texts, graph


def test_a_histogram_has_its_bins(tmp_path: Path) -> None:
    fields = describe(np.random.default_rng(0).standard_normal(1000))
    feed(tmp_path, [started(), of("histogram", 10, name="weights/head", **fields)])
    [(step, rows)] = tensors(tmp_path, "weights/head")
    assert step == 10 and rows.shape == (64, 3)
    assert rows[:, 0].tolist() == fields["edges"][:-1]
    assert rows[:, 1].tolist() == fields["edges"][1:]
    assert rows[:, 2].tolist() == fields["counts"]


def test_a_histogram_of_nothing_finite_is_left_out(tmp_path: Path) -> None:
    feed(tmp_path, [started(), of("histogram", 10, name="weights", **describe([math.nan])), of("step", 11, loss=1.0)])
    assert server(tmp_path).Tags()["tensors"] == ["_hparams_/session_start_info", "train/loss"]


def test_a_histogram_cannot_hide_a_scalar(tmp_path: Path) -> None:
    fields = describe(np.arange(9.0))
    feed(tmp_path, [started(), of("histogram", 9, name="train/loss", **fields), of("step", 10, loss=1.0)])
    assert shown(tmp_path) == [("train/loss", 10, 1.0)]
    assert len(tensors(tmp_path, "histograms/train/loss")) == 1


def test_a_figure_is_an_image(tmp_path: Path) -> None:
    figure = figures.lines("a title", [1, 2, 3], {"a": [1.0, 2.0, 4.0]})
    feed(tmp_path, [started(), of("figure", 10, name="curve", figure=figure)])
    [(step, (width, height, png))] = tensors(tmp_path, "figures/curve")
    assert (step, width, height) == (10, b"800", b"450")
    assert struct.unpack(">II", png[16:24]) == (800, 450)


def test_a_figure_that_cannot_be_drawn_says_so_and_holds_nothing_up(tmp_path: Path) -> None:
    feed(tmp_path, [started(), of("figure", 10, name="pie", figure={"kind": "pie"}), of("step", 11, loss=1.0)])
    [(_, message)] = tensors(tmp_path, "warnings/figures/pie")
    assert "expected one of lines, scatter, bars, forecast, image" in message.item().decode()
    assert shown(tmp_path) == [("train/loss", 11, 1.0)]


def test_texts_and_warnings_are_texts(tmp_path: Path) -> None:
    feed(
        tmp_path,
        [
            started(),
            of("text", 3, name="notes", text="**bold**"),
            of("warning", 4, name="trend", message="loss_a *rose*\nby <b>12</b>"),
        ],
    )
    [(_, text)], [(_, warning)] = tensors(tmp_path, "text/notes"), tensors(tmp_path, "warnings/trend")
    assert text.item() == b"**bold**"
    assert visible(markdown_to_safe_html(warning.item())) == ["loss_a *rose*", "by <b>12</b>"]


_AWKWARD = st.text(alphabet="ab1 .,:;-+*_#>~`|<&\\[](){}=!$\n\t\u00e9", max_size=30)


@given(_AWKWARD)
@settings(max_examples=400, deadline=None)
def test_markdown_shows_plain_text_letter_for_letter(text: str) -> None:
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert [line for line in visible(markdown_to_safe_html(as_markdown(text))) if line] == [x for x in lines if x]


def visible(page: str) -> list[str]:
    """The lines that a browser shows."""
    assert not re.search(r"<(?!/?p>|br ?/?>)", page), page
    broken = re.sub(r"<br ?/?>\n?|</?p>|\n", "\v", page)
    return [" ".join(html.unescape(line).split()) for line in broken.strip("\v").split("\v")]


def test_the_graph_nests_the_modules(tmp_path: Path) -> None:
    modules = [
        {"name": "embed", "kind": "Linear", "parameters": {"weight": [8, 4], "bias": [8]}, "trained": 40},
        {"name": "layers", "kind": "ModuleList", "parameters": {}, "trained": 0},
        {"name": "layers.0", "kind": "Block", "parameters": {}, "trained": 0},
        {"name": "layers.0.norm", "kind": "LayerNorm", "parameters": {"weight": [8]}, "trained": 0},
        {"name": "layers.0.mlp", "kind": "Linear", "parameters": {"weight": [8, 8]}, "trained": 64},
        {"name": "layers.1", "kind": "Block", "parameters": {}, "trained": 0},
        {"name": "head", "kind": "Linear", "parameters": {"weight": [9, 8]}, "trained": 72},
    ]
    feed(tmp_path, [started(), of("model", 0, modules=modules), of("model", 0, modules=modules)])
    nodes = {node.name: node for node in server(tmp_path).Graph().node}
    assert {name: list(node.input) for name, node in nodes.items()} == {
        "embed": [],
        "layers": ["embed"],
        "layers/0": [],
        "layers/0/norm": [],
        "layers/0/mlp": ["layers/0/norm"],
        "layers/1": ["layers/0"],
        "head": ["layers"],
    }
    assert nodes["embed"].op == "Linear" and nodes["embed"].attr["parameters"].i == 40
    assert nodes["layers/0/norm"].attr["trained"].i == 0
    assert nodes["head"].attr["shape of weight"].s == b"9 x 8"
    assert sum(record.HasField("graph_def") for record in records(tmp_path)) == 1


# The HPARAMS page


def test_settings_are_flat_and_short() -> None:
    config = {"a": {"b": 1, "c": True, "d": None, "e": "x"}, "f": [1, 2], "g": ["y" * 300], "h": [{"i": 1}], "j": 0.5}
    assert settings_of(config) == {"a.b": 1, "a.c": True, "a.e": "x", "f": "1, 2", "j": 0.5}


def session(run: Path) -> tuple[Any, Any, Any]:
    """The experiment, the start and the end of the session, None where they are not there."""
    found = {
        tag: server(run).SummaryMetadata(tag).plugin_data.content
        for tag in server(run).Tags()["tensors"]
        if tag.startswith("_hparams_/")
    }
    return (
        metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
        if metadata.EXPERIMENT_TAG in found
        else None,
        metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG]),
        metadata.parse_session_end_info_plugin_data(found[metadata.SESSION_END_INFO_TAG])
        if metadata.SESSION_END_INFO_TAG in found
        else None,
    )


def end(run: Path, state: Any, outcome: Any) -> None:
    sink = TensorBoardMonitor()
    sink.open(FollowedRun(run), state)
    sink.close(outcome)


def test_a_run_is_a_session_with_its_settings_and_best_scores(tmp_path: Path) -> None:
    run, events = recorded(tmp_path)
    end(run, feed(run, events), "completed")
    experiment, start, ended = session(run)
    names = {info.name: info.type for info in experiment.hparam_infos}
    assert names["training.learning_rate"] == api_pb2.DATA_TYPE_FLOAT64
    assert names.keys() == start.hparams.keys()
    assert start.hparams["training.learning_rate"].number_value == 0.08
    assert start.start_time_secs == events[0]["time"] and ended.end_time_secs == events[-1]["time"]
    assert ended.status == api_pb2.STATUS_SUCCESS
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == [
        "hparam/validation_loss",
        "hparam/MASE",
        "hparam/WQL",
        "hparam/coverage_80",
        "hparam/best_epoch",
    ]
    best = [event for event in events if event["type"] == "epoch" and event["is_best"]][-1]
    assert tensors(run, "hparam/MASE")[-1][1] == np.float32(best["metrics"]["MASE"])
    assert tensors(run, "hparam/validation_loss")[-1] == (30, np.float32(0.19))


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("stopped", api_pb2.STATUS_SUCCESS),
        ("failed", api_pb2.STATUS_FAILURE),
        ("killed", api_pb2.STATUS_FAILURE),
        ("canceled", api_pb2.STATUS_UNKNOWN),
    ],
)
def test_how_a_run_ended(tmp_path: Path, outcome: Any, status: Any) -> None:
    run, events = recorded(tmp_path)
    state = feed(run, events)
    assert session(run)[2] is None
    end(run, state, outcome)
    end(run, state, outcome)
    assert session(run)[2].status == status
    assert sum(metadata.SESSION_END_INFO_TAG in str(record) for record in records(run)) == 1


def test_an_end_is_taken_back_if_the_run_goes_on(tmp_path: Path) -> None:
    run, events = recorded(tmp_path, dies_after=14)
    again = next(index for index, event in enumerate(events) if event["attempt"] == 2)
    state = feed(run, events[:again])
    end(run, state, "failed")
    watching = server(run)
    state = feed(run, events[again:], state=state)
    assert session(run)[2] is None
    end(run, state, "completed")
    assert session(run)[2].status == api_pb2.STATUS_SUCCESS
    assert shown(run) == measured(events)
    assert points_of(watching.Reload()) == measured(events)


# Size


def test_the_sink_needs_neither_torch_nor_tensorflow() -> None:
    script = (
        "import sys, json, toto_pipeline.monitoring.tensorboard_monitor\n"
        "print(json.dumps([name for name in sys.modules if '.' not in name]))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not {"torch", "tensorflow", "pandas", "matplotlib"} & set(json.loads(done.stdout))


def test_the_state_does_not_grow_with_the_run(tmp_path: Path) -> None:
    def event(step: int) -> list[Event]:
        events = [of("step", step, loss=1.0), {"type": "system", "time": 1.0, "host": {"cpu_percent": 1.0}}]
        return [*events, of("histogram", step, name="w", counts=[1], edges=[0.0, 1.0])] if step % 50 == 0 else events

    state = feed(tmp_path, [started(total_steps=20_000, steps_per_epoch=100)])
    sizes = []
    for first in (1, 501, 1001, 1501):
        events = [item for step in range(first, first + 500) for item in event(step)]
        state = feed(tmp_path, events, batch=400, state=state)
        sizes.append(len(orjson.dumps(state)))
    assert sizes[0] < 1000
    assert max(sizes) - min(sizes) < 10
