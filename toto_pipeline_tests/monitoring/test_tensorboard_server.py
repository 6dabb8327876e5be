"""A real TensorBoard serves what the sink wrote, by its HTTP API and in a browser."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toto_pipeline.events import figures
from toto_pipeline.events.histograms import describe
from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.sink import FollowedRun
from toto_pipeline.monitoring.tensorboard_monitor import TensorBoardMonitor
from toto_pipeline_tests.browser import needs_chromium, open_page
from toto_pipeline_tests.fixtures.recorded_run import Recording, record
from toto_pipeline_tests.monitoring.tensorboard_reading import as_read, measured

pytestmark = pytest.mark.slow

RUN = "resumed"
OTHER = "other"
DEADLINE_SECONDS = 120


@dataclass
class Served:
    address: str
    events: list[Event]

    def get(self, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        address = f"{self.address}/data/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.read()

    def json(self, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        return json.loads(self.get(path, body, **query))


@pytest.fixture(scope="module", params=["data server", "python"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Both of TensorBoard's readers: the one it takes by itself, and the one where that is not to be had."""
    runs = tmp_path_factory.mktemp("runs")
    events = write(runs, Recording(run=RUN, epochs=3, steps_per_epoch=10, dies_after=14), "completed")
    write(runs, Recording(run=OTHER, epochs=3, steps_per_epoch=10, fails_after=12), "failed")
    options = ["--load_fast=true"] if request.param == "data server" else ["--load_fast=false"]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port=0", "--host=127.0.0.1"]
    with subprocess.Popen(
        [*command, *options, "--samples_per_plugin=scalars=1000,images=100,text=100"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            server = Served(_address(process), events)
            _wait_for_runs(server)
            yield server
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "http://" in line:
            return "http://" + line.split("http://")[1].split("/")[0].split()[0]
    raise AssertionError(f"tensorboard ended with {process.wait()}")


def _wait_for_runs(server: Served) -> None:
    """The server answers before it has read everything; the end of each session is what it reads last."""
    for _ in range(DEADLINE_SECONDS):
        groups = session_groups(server)
        if len(groups) == 2 and all(group["sessions"][0]["status"] != "STATUS_UNKNOWN" for group in groups.values()):
            return
        subprocess.run(["sleep", "0.5"], check=True)
    raise AssertionError(f"tensorboard has not read the runs in {DEADLINE_SECONDS / 2} s: {server.json('runs')}")


def write(runs: Path, recording: Recording, outcome: Any) -> list[Event]:
    run = record(runs, recording, evaluated=False, promoted=None)
    events: list[Event] = []
    for event in read_events(run):
        events.append(event)
        if event["type"] == "run_started" and event["attempt"] == 1:
            events.append({**event, "type": "model", "modules": MODULES})
        if event["type"] == "epoch":
            events += pictures(event)
    sink = TensorBoardMonitor()
    sink.open(FollowedRun(run), {})
    sink.write(events)
    sink.close(outcome)
    return events


MODULES = [
    {"name": "embed", "kind": "Linear", "parameters": {"weight": [8, 4]}, "trained": 32},
    {"name": "layers", "kind": "ModuleList", "parameters": {}, "trained": 0},
    {"name": "layers.0", "kind": "Block", "parameters": {}, "trained": 0},
    {"name": "layers.0.mlp", "kind": "Linear", "parameters": {"weight": [8, 8]}, "trained": 64},
    {"name": "head", "kind": "Linear", "parameters": {"weight": [9, 8]}, "trained": 72},
]


def pictures(epoch: Event) -> list[Event]:
    common = {key: epoch[key] for key in ("time", "step", "epoch", "attempt")}
    values = np.random.default_rng(epoch["step"]).standard_normal(500)
    quantiles = {level / 10: values[:20] + level for level in range(1, 10)}
    forecast = as_read(figures.forecast("a series", values[:90], values[:20], quantiles))
    return [
        {**common, "type": "histogram", "name": "weights/head", **describe(values)},
        {**common, "type": "figure", "name": "forecast", "figure": forecast},
        {**common, "type": "text", "name": "notes", "text": f"**epoch** {epoch['epoch']}"},
        {**common, "type": "warning", "name": "trend", "message": "loss_a *rises*"},
        {**common, "type": "system", "host": {"cpu_percent": 40.0}, "process": {}, "gpus": []},
    ]


def session_groups(server: Served) -> dict[str, Any]:
    question = {"startIndex": 0, "sliceSize": 10, "colParams": [], "allowedStatuses": STATUSES}
    groups = server.json("plugin/hparams/session_groups", question).get("sessionGroups", [])
    return {group["name"]: group for group in groups}


STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


def name_of(run: str) -> str:
    return f"{run}/tensorboard"


def test_scalars(served: Served) -> None:
    tags = served.json("plugin/scalars/tags")[name_of(RUN)]
    points = [
        (tag, step, float(np.float32(value)))
        for tag in tags
        if not tag.startswith("hparam/")
        for _, step, value in served.json("plugin/scalars/scalars", tag=tag, run=name_of(RUN))
    ]
    assert sorted(points) == measured(served.events)


def test_histograms_and_distributions(served: Served) -> None:
    assert list(served.json("plugin/histograms/tags")[name_of(RUN)]) == ["weights/head"]
    answers = served.json("plugin/histograms/histograms", tag="weights/head", run=name_of(RUN))
    written = [event for event in served.events if event["type"] == "histogram"]
    assert [step for _, step, _ in answers] == [10, 20, 30]
    assert sum(row[2] for row in answers[0][2]) == pytest.approx(sum(written[0]["counts"]))
    assert len(served.json("plugin/distributions/distributions", tag="weights/head", run=name_of(RUN))) == 3


def test_images(served: Served) -> None:
    query = {"tag": "figures/forecast", "run": name_of(RUN), "sample": 0}
    answers = served.json("plugin/images/images", **query)
    assert [image["step"] for image in answers] == [10, 20, 30]
    for image in answers:
        picture = served.get("plugin/images/individualImage", **dict(urllib.parse.parse_qsl(image["query"])))
        assert picture.startswith(b"\x89PNG") and struct.unpack(">II", picture[16:24]) == (800, 450)


def test_texts(served: Served) -> None:
    assert sorted(served.json("plugin/text/tags")[name_of(RUN)]) == ["text/notes", "warnings/trend"]
    notes = served.json("plugin/text/text", tag="text/notes", run=name_of(RUN))
    assert [note["step"] for note in notes] == [10, 20, 30]
    assert notes[0]["text"] == "<p><strong>epoch</strong> 1</p>"
    warning = served.json("plugin/text/text", tag="warnings/trend", run=name_of(RUN))[0]
    assert warning["text"] == "<p>loss_a *rises*</p>"


def test_the_graph(served: Served) -> None:
    answer = served.get("plugin/graphs/graph", run=name_of(RUN), conceptual="false").decode()
    assert [f'name: "{name["name"].replace(".", "/")}"' in answer for name in MODULES] == [True] * 5
    assert 'input: "layers"' in answer


def test_the_settings_and_best_scores_of_each_run(served: Served) -> None:
    experiment = served.json("plugin/hparams/experiment", {})
    assert "hparam/validation_loss" in [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert [info["name"] for info in experiment["hparamInfos"]][:5] == [
        f"training.{name}" for name in ("batch_size", "epochs", "learning_rate", "optimizer", "tune")
    ]
    groups = session_groups(served)
    assert groups[RUN]["hparams"]["training.learning_rate"] == 0.08
    statuses = {name: group["sessions"][0]["status"] for name, group in groups.items()}
    assert statuses == {RUN: "STATUS_SUCCESS", OTHER: "STATUS_FAILURE"}
    values = {value["name"]["tag"]: value["value"] for value in groups[RUN]["metricValues"]}
    assert values["hparam/validation_loss"] == pytest.approx(0.19)
    assert values["hparam/best_epoch"] == 3


PAGES = {
    "timeseries": "checkpoint/seconds",
    "scalars": "tag: checkpoint/seconds",
    "histograms": "weights/head",
    "distributions": "weights/head",
    "images": "figures/forecast",
    "text": "text/notes",
    "graphs": "layers",
    "hparams": "training.learning_rate",
}


@needs_chromium
@pytest.mark.parametrize("page_name", list(PAGES))
def test_pages_show_it_without_an_error(served: Served, page_name: str) -> None:
    with open_page() as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{served.address}/?darkMode=false#{page_name}", timeout=60_000)
        page.wait_for_load_state("networkidle")
        if os.environ.get("TENSORBOARD_PICTURES"):
            page.screenshot(path=f"{os.environ['TENSORBOARD_PICTURES']}/{page_name}.png")
        page.get_by_text(PAGES[page_name]).first.wait_for(state="attached", timeout=20_000)
        page.wait_for_load_state("networkidle")
        if os.environ.get("TENSORBOARD_PICTURES"):
            page.screenshot(path=f"{os.environ['TENSORBOARD_PICTURES']}/{page_name}.png")
        assert [complaint for complaint in complaints if "net::ERR_" not in complaint] == []
