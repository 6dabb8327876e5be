"""What a person does in the UI, against a real `dagster dev`: launch, watch, follow the lineage, stop, and a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from toto_pipeline.automation.jobs import run_config
from toto_pipeline.config import load_settings
from toto_pipeline.events.log import epochs, read_events
from toto_pipeline.home import Home
from toto_pipeline_tests.browser import needs_chromium, open_page
from toto_pipeline_tests.conftest import write_series
from toto_pipeline_tests.end_to_end.dev_server import DevServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    home = Home(tmp_path_factory.mktemp("home")).prepare()
    write_series(home.root / "input")
    with DevServer(home) as server:
        yield server


def _config(dev: DevServer, **training: Any) -> dict[str, Any]:
    assignments = [
        f"data.source={dev.home.root / 'input'}",
        "preparation.context_length=64",
        "preparation.horizon=16",
        "training.model.patch_size=8",
        "training.model.d_model=32",
        "training.batch_size=16",
        "promotion.tolerated_loss=0.9",  # what the gate says of a model is not what these tests are about
        *(f"training.{name}={value}" for name, value in training.items()),
    ]
    return run_config(load_settings(assignments=assignments))


def _epochs_of(dev: DevServer, *runs: str) -> list[int]:
    found = [m for m in dev.materializations("training_epoch") if m["runId"] in runs]
    return sorted(int(m["metadata"]["epoch"]) for m in found)


def _trainer_pid(dev: DevServer, run: str) -> int | None:
    starts = [e for e in read_events(dev.home.run(run)) if e["type"] == "run_started"]
    return int(starts[-1]["pid"]) if starts else None


def test_a_retraining_is_launched_watched_and_followed_back_to_the_data(dev: DevServer) -> None:
    run = dev.launch(_config(dev, epochs=8, steps_per_epoch=60))
    dev.wait_for(lambda: _epochs_of(dev, run), 180, "the first epoch")
    assert dev.status(run) == "STARTED"
    assert dev.wait_until_ended(run) == "SUCCESS"

    assert _epochs_of(dev, run) == [1, 2, 3, 4, 5, 6, 7, 8]
    logged = {e["epoch"]: e for e in epochs(read_events(dev.home.run(run)))}
    for materialization in dev.materializations("training_epoch"):
        event = logged[materialization["metadata"]["epoch"]]
        assert materialization["metadata"]["train_loss"] == event["train_loss"]
        assert materialization["metadata"]["validation_loss"] == event["validation_loss"]

    promoted = dev.materializations("promoted_checkpoint")[0]["metadata"]
    snapshot = dev.materializations("series_snapshot")[0]["metadata"]
    assert promoted["series_snapshot"] == snapshot["fingerprint"]
    assert promoted["data"] == {"path": ["series_snapshot"]}
    assert promoted["trained_by"] == run
    opens = "import sys; from toto2 import Toto2Model; Toto2Model.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", opens, str(promoted["folder"])], check=True)


@needs_chromium
def test_the_ui_shows_the_lineage_the_plots_and_the_way_back(dev: DevServer) -> None:
    if not dev.materializations("promoted_checkpoint"):
        assert dev.wait_until_ended(dev.launch(_config(dev, epochs=3, steps_per_epoch=60))) == "SUCCESS"
    with open_page() as page:
        page.goto(f"{dev.url}/asset-groups")
        page.get_by_text("dashboards").first.wait_for()
        page.keyboard.press("Alt+e")
        for asset in ("series_snapshot", "training_data", "trained_model", "training_epoch", "evaluation_report"):
            page.get_by_text(asset, exact=True).first.wait_for()

        page.goto(f"{dev.url}/assets/training_epoch")
        page.get_by_text("Plots", exact=True).click()
        page.locator("canvas").first.wait_for()
        assert page.get_by_text("validation_loss").count() > 0

        page.goto(f"{dev.url}/assets/promoted_checkpoint")
        page.get_by_role("link", name="series_snapshot").first.click()
        page.wait_for_url("**/assets/series_snapshot**")
        page.get_by_text("fingerprint", exact=True).first.wait_for()


def test_terminate_stops_the_training_at_once(dev: DevServer) -> None:
    run = dev.launch(_config(dev, epochs=10_000, steps_per_epoch=20))
    dev.wait_for(lambda: _epochs_of(dev, run), 180, "the first epoch")
    trainer = psutil.Process(_trainer_pid(dev, run))
    dev.terminate(run)
    assert dev.wait_until_ended(run) == "CANCELED"
    trainer.wait(timeout=30)
    assert [e["outcome"] for e in read_events(dev.home.run(run)) if e["type"] == "run_ended"] == ["canceled"]


def test_a_run_that_crashed_is_retried_and_goes_on_where_it_was(dev: DevServer) -> None:
    run = dev.launch(_config(dev, epochs=6, steps_per_epoch=100))
    dev.wait_for(lambda: len(_epochs_of(dev, run)) >= 2, 180, "two epochs")
    trainer = psutil.Process(_trainer_pid(dev, run))
    worker = psutil.Process(int((dev.home.run(run) / "launcher.pid").read_text()))
    os.kill(worker.pid, signal.SIGKILL)
    trainer.wait(timeout=30)  # no orphan trains on

    assert dev.wait_until_ended(run) == "FAILURE"
    retry = str(dev.wait_for(lambda: _retry_of(dev, run), 120, "the retry"))
    assert dev.wait_until_ended(retry) == "SUCCESS"
    assert _epochs_of(dev, run, retry) == [1, 2, 3, 4, 5, 6]
    resumed = [e["resumed_from"] for e in read_events(dev.home.run(run)) if e["type"] == "run_started"]
    assert resumed[0] is None
    assert resumed[1] is not None and resumed[1] >= 200


def test_a_trainer_that_is_killed_goes_on_in_the_same_run(dev: DevServer) -> None:
    run = dev.launch(_config(dev, epochs=5, steps_per_epoch=100))
    dev.wait_for(lambda: _epochs_of(dev, run), 180, "the first epoch")
    os.kill(_trainer_pid(dev, run), signal.SIGKILL)
    assert dev.wait_until_ended(run) == "SUCCESS"
    assert _epochs_of(dev, run) == [1, 2, 3, 4, 5]
    assert len(_starts(dev, run)) == 2


def test_a_step_that_is_killed_leaves_no_orphan_and_its_retry_goes_on(dev: DevServer) -> None:
    config = _config(dev, epochs=6, steps_per_epoch=100) | {"execution": {"config": {"multiprocess": {}}}}
    run = dev.launch(config)
    dev.wait_for(lambda: _epochs_of(dev, run), 240, "the first epoch")
    trainer = psutil.Process(_trainer_pid(dev, run))
    os.kill(int((dev.home.run(run) / "launcher.pid").read_text()), signal.SIGKILL)
    trainer.wait(timeout=60)
    assert dev.wait_until_ended(run) == "FAILURE"
    retry = str(dev.wait_for(lambda: _retry_of(dev, run), 120, "the retry"))
    assert dev.wait_until_ended(retry) == "SUCCESS"
    assert _epochs_of(dev, run, retry) == [1, 2, 3, 4, 5, 6]
    assert _starts(dev, run)[-1]["resumed_from"] >= 100


def test_a_run_that_was_terminated_goes_on_when_it_is_executed_again(dev: DevServer) -> None:
    run = dev.launch(_config(dev, epochs=6, steps_per_epoch=100))
    dev.wait_for(lambda: _epochs_of(dev, run), 180, "the first epoch")
    dev.terminate(run)
    assert dev.wait_until_ended(run) == "CANCELED"
    (stopped,) = [e for e in read_events(dev.home.run(run)) if e["type"] == "run_ended"]
    retry = dev.retry(run)
    assert dev.wait_until_ended(retry) == "SUCCESS"
    assert _epochs_of(dev, run, retry) == [1, 2, 3, 4, 5, 6]
    assert _starts(dev, run)[-1]["resumed_from"] == stopped["step"]


def test_a_run_outlives_the_daemon(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").prepare()
    write_series(home.root / "input")
    with DevServer(home) as dev:
        run = dev.launch(_config(dev, epochs=8, steps_per_epoch=100))
        dev.wait_for(lambda: _epochs_of(dev, run), 180, "the first epoch")
        os.kill(dev.daemon().pid, signal.SIGKILL)
        assert dev.wait_until_ended(run) == "SUCCESS"
        assert _epochs_of(dev, run) == list(range(1, 9))
        assert len(_starts(dev, run)) == 1


def _starts(dev: DevServer, run: str) -> list[dict[str, Any]]:
    return [event for event in read_events(dev.home.run(run)) if event["type"] == "run_started"]


def _retry_of(dev: DevServer, run: str) -> str | None:
    found = dev.query(
        "query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs { results { runId } } } }",
        f={"tags": [{"key": "dagster/parent_run_id", "value": run}]},
    )
    results = found["runsOrError"]["results"]
    return results[0]["runId"] if results else None
