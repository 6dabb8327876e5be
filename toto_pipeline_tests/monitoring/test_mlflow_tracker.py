"""The MLflow sink on MLflow's own SQLite store and on a real server, looked at with MLflow's own client."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from toto_pipeline.errors import ConfigError, RegistryError
from toto_pipeline.events.figures import lines
from toto_pipeline.events.log import read_events, to_plain
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import DATABASE_FILE, URI_VARIABLE, Store
from toto_pipeline.monitoring.mlflow_points import mlflow_metric
from toto_pipeline.monitoring.mlflow_run import close_run, open_run, read_end
from toto_pipeline.monitoring.mlflow_tracker import MlflowTracker
from toto_pipeline.monitoring.sink import FollowedRun
from toto_pipeline_tests.fixtures.mlflow_store import Server, make_empty_database
from toto_pipeline_tests.fixtures.recorded_run import CREATED, RUN, Recording, record

LARGEST = 1.7976931348623157e308
"""How MLflow keeps infinity in a database."""
Point = tuple[str, int, float | str]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_database(tmp_path_factory.mktemp("initialised"))


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in (URI_VARIABLE, "MLFLOW_EXPERIMENT_NAME", "DAGSTER_WEBSERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    home = Home(tmp_path / "home").prepare()
    shutil.copy(empty_database, home.registry / DATABASE_FILE)
    return home


def short(**values: Any) -> Recording:
    return Recording(epochs=3, steps_per_epoch=10, **values)


def recorded(home: Home, recording: Recording | None = None) -> tuple[FollowedRun, list[Event]]:
    folder = record(home.runs, recording or short(), evaluated=False, promoted=None)
    return FollowedRun(folder, home.root), list(read_events(folder))


def fed(followed: FollowedRun, events: list[Event], **settings: Any) -> MlflowTracker:
    tracker = MlflowTracker(**settings)
    tracker.open(followed, {})
    tracker.write(events)
    return tracker


def client_of(home: Home) -> Any:
    return Store.of(home).client()


def all_runs(home: Home) -> list[Any]:
    client = client_of(home)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def only_run(home: Home) -> Any:
    (run,) = all_runs(home)
    return run


def kept(home: Home) -> list[Point]:
    """Every point of the only run, sorted, as often as it is there."""
    client, run = client_of(home), only_run(home)
    return sorted(
        (name, metric.step, "nan" if math.isnan(metric.value) else metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    )


def expected(events: Iterable[Event]) -> list[Point]:
    return sorted(
        (own, event["step"], "nan" if math.isnan(number) else max(-LARGEST, min(LARGEST, number)))
        for event in events
        for name, value in measurements(event)
        for own, number in [mlflow_metric(name, value)]
    )


def test_every_number_is_there_exactly_once_with_its_own_time_and_step(home: Home) -> None:
    followed, events = recorded(home, short(dies_after=17))
    fed(followed, events)
    assert kept(home) == expected(events)
    step = next(event for event in events if event["type"] == "step")
    (first, *_) = client_of(home).get_metric_history(only_run(home).info.run_id, "train/loss")
    assert (first.step, first.value, first.timestamp) == (1, step["loss"], round(1000 * step["time"]))


def test_numbers_that_are_not_finite_are_told_apart(home: Home) -> None:
    followed, events = recorded(home)
    odd = [math.nan, math.inf, -math.inf, 0.0]
    more = [{**events[1], "step": 100 + n, "loss": value} for n, value in enumerate(odd)]
    fed(followed, to_plain([events[0], *more]))
    history = client_of(home).get_metric_history(only_run(home).info.run_id, "train/loss")
    assert math.isnan(history[0].value)
    assert [metric.value for metric in history[1:]] == [LARGEST, -LARGEST, 0.0]


def test_what_is_written_twice_is_there_once(home: Home) -> None:
    followed, events = recorded(home, short(diverges=True))
    tracker = fed(followed, events)
    tracker.write(events[5:])
    fed(followed, events)
    assert kept(home) == expected(events)
    assert len(only_run(home).inputs.dataset_inputs) == 1


_FEED_AND_DIE = """
import os, signal, sys
from pathlib import Path
from toto_pipeline.events.log import read_events
from toto_pipeline.monitoring.mlflow_tracker import MlflowTracker
from toto_pipeline.monitoring.sink import FollowedRun
folder, home, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tracker = MlflowTracker(points=7)
tracker.open(FollowedRun(folder, home), {})
tracker.write(list(read_events(folder))[:count])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_killed_between_write_and_state_loses_and_doubles_nothing(home: Home, tmp_path: Path) -> None:
    followed, events = recorded(home)
    command = [sys.executable, "-c", _FEED_AND_DIE, str(followed.folder), str(followed.home), "20"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    tracker = fed(followed, events, points=7)
    tracker.close("completed")
    interrupted, status = kept(home), only_run(home).info.status

    other = Home(tmp_path / "other").prepare()
    fed(FollowedRun(followed.folder, other.root), events, points=7).close("completed")
    assert interrupted == kept(other)
    assert status == "FINISHED"


def test_a_long_run_is_thinned_and_the_state_carries_the_thinning_on(home: Home) -> None:
    followed, events = recorded(home)
    state: Any = {}
    for start in range(0, len(events), 4):
        tracker = MlflowTracker(points=7)
        tracker.open(followed, orjson.loads(orjson.dumps(state)))
        state = tracker.write(events[start : start + 4])
    steps = [step for name, step, _ in kept(home) if name == "train/loss"]
    assert steps == [5, 10, 15, 20, 25, 30]
    assert [step for name, step, _ in kept(home) if name == "validation/loss"] == [10, 20, 30]


def test_what_is_known_of_a_run_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_WEBSERVER_URL", "http://dagster:3000/")
    followed, events = recorded(home)
    fed(followed, events).close("completed")
    run = only_run(home)
    assert run.info.run_name == RUN
    assert run.info.start_time == round(1000 * events[0]["time"])
    assert run.info.end_time == round(1000 * events[-1]["time"])
    assert run.data.params["training.epochs"] == "3"
    assert run.data.params["preset"] == "sample"
    tags = run.data.tags
    assert {name: tags[name] for name in tags if name.startswith(("toto.", "dagster"))} == {
        "dagster/run_url": f"http://dagster:3000/runs/{RUN}",
        "dagster_run_id": RUN,
        "toto.run": RUN,
        "toto.attempt": "1",
        "toto.best.checkpoint": "c",
        "toto.best.epoch": "3",
        "toto.best.step": "30",
        "toto.best.validation_loss": "0.19",
        "toto.code_version": "0.1.0+g1a2b3c4d5e",
        "toto.config_hash": "c0ffee" * 10 + "c0ff",
        "toto.data_fingerprint": "5eed" * 16,
        "toto.device": "cpu",
        "toto.host": "trainer-01",
        "toto.outcome": "completed",
        "toto.parameters": "292416",
        "toto.reason": "all epochs done",
    }
    assert tags["mlflow.source.name"] == "toto-pipeline"
    assert tags["mlflow.source.git.commit"] == "1a2b3c4d5e"
    assert tags["mlflow.user"]
    assert f"[{RUN}](http://dagster:3000/runs/{RUN})" in tags["mlflow.note.content"]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("sample", ("5eed" * 16)[:36])
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]


def test_the_dataset_tells_what_its_manifest_tells(home: Home) -> None:
    followed, events = recorded(home)
    manifest = home.training_data / events[0]["data_fingerprint"] / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text('{"n_series": 26, "frequency": "10min", "dropped": ["x"]}')
    fed(followed, events[:1])
    (data,) = only_run(home).inputs.dataset_inputs
    assert orjson.loads(data.dataset.profile) == {"n_series": 26, "frequency": "10min"}


def test_more_params_than_fit_one_request_and_longer_ones_than_fit_are_kept(home: Home) -> None:
    followed, events = recorded(home)
    config = {"many": {f"p{n}": n for n in range(250)}, "long": "x" * 7000}
    (followed.folder / "config.json").unlink()
    fed(followed, [{**events[0], "config": config}])
    params = only_run(home).data.params
    assert len(params) == 251
    assert len(params["long"]) == 6000


def test_settings_that_changed_for_a_later_attempt_are_told_beside_the_first(home: Home) -> None:
    followed, events = recorded(home)
    config = {**events[0]["config"], "preset": "toto2-4m"}
    later = {**events[0], "attempt": 2, "time": events[-1]["time"] + 1, "config": config}
    fed(followed, [*events, later])
    data = only_run(home).data
    assert data.params["preset"] == "sample"
    assert orjson.loads(data.tags["toto.changed_params"]) == {"preset": "toto2-4m"}
    assert data.tags["toto.attempt"] == "2"


def test_figures_texts_and_warnings_are_kept(home: Home) -> None:
    followed, events = recorded(home)
    figure = lines("Loss", [1, 2], {"loss": [2.0, 1.0]})
    at = {"time": events[0]["time"] + 1, "attempt": 1, "step": 3}
    plain = orjson.loads(orjson.dumps(figure, option=orjson.OPT_SERIALIZE_NUMPY))
    more: list[Event] = [
        {"type": "figure", "name": "my loss", "figure": plain, **at},
        {"type": "figure", "name": "bad", "figure": {"kind": "unheard of"}, **at},
        {"type": "text", "name": "notes/first", "text": "# Hello", **at},
        {"type": "model", "modules": [{"name": "a", "kind": "Linear", "parameters": 4, "trained": 4}], **at},
        {"type": "warning", "name": "slow", "message": "the disk is slow", **at},
        {"type": "a type of the future", **at},
    ]
    fed(followed, [events[0], *more])
    run, client = only_run(home), client_of(home)
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == [
        "config.json", "figures/my_loss/step_00000003.png", "model_structure.json", "text/notes/first.md",
    ]  # fmt: skip
    assert (folder / "figures/my_loss/step_00000003.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "text/notes/first.md").read_text() == "# Hello"
    assert orjson.loads((folder / "config.json").read_bytes())["preset"] == "sample"
    assert run.data.tags["toto.warning.slow"] == "the disk is slow"
    assert "unheard of" in run.data.tags["toto.warning.figure.bad"]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("completed", "FINISHED"),
        ("stopped", "FINISHED"),
        ("canceled", "KILLED"),
        ("killed", "KILLED"),
        ("failed", "FAILED"),
        (None, "RUNNING"),
    ],
)
def test_the_status_is_how_the_training_ended(home: Home, outcome: Any, status: str) -> None:
    followed, events = recorded(home)
    fed(followed, events).close(outcome)
    assert only_run(home).info.status == status


def test_a_later_attempt_is_the_same_run_and_running_again(home: Home) -> None:
    followed, events = recorded(home, short(dies_after=17))
    restart = next(n for n, event in enumerate(events) if event.get("attempt") == 2)
    tracker = MlflowTracker()
    tracker.open(followed, {})
    state = tracker.write(events[:restart])
    tracker.close("killed")
    assert only_run(home).info.status == "KILLED"
    later = MlflowTracker()
    later.open(followed, state)
    later.write(events[restart:])
    assert only_run(home).info.status == "RUNNING"
    later.close("completed")
    assert only_run(home).info.status == "FINISHED"
    assert only_run(home).data.tags["toto.attempt"] == "2"


def test_how_the_whole_pipeline_ended_outranks_how_its_training_ended(home: Home) -> None:
    followed, events = recorded(home)
    tracker = fed(followed, events)
    tracker.close("completed")
    close_run(home, RUN, "FAILED", at=events[-1]["time"] + 60)
    assert only_run(home).info.status == "FAILED"
    tracker.close("completed")  # a follower that was late
    assert only_run(home).info.status == "FAILED"
    assert only_run(home).info.end_time == round(1000 * (events[-1]["time"] + 60))


def test_a_tracker_that_lags_behind_the_end_of_the_pipeline_finds_how_it_ended(home: Home) -> None:
    followed, events = recorded(home)
    close_run(home, RUN, "FAILED", at=events[-1]["time"] + 60)
    assert all_runs(home) == []
    tracker = fed(followed, events)
    assert only_run(home).info.status == "FAILED"
    tracker.close("completed")
    assert only_run(home).info.status == "FAILED"


def test_training_that_began_after_the_pipeline_had_failed_counts_again(home: Home) -> None:
    followed, events = recorded(home)
    close_run(home, RUN, "FAILED", at=events[0]["time"] - 60)
    tracker = fed(followed, events)
    assert only_run(home).info.status == "RUNNING"
    tracker.close("completed")
    assert only_run(home).info.status == "FINISHED"


def test_a_run_outside_of_a_home_has_its_records_in_its_folder(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    folder = record(tmp_path, short(run="mine"), evaluated=False, promoted=None)
    own = Home(folder / "mlflow")
    own.registry.mkdir(parents=True)
    shutil.copy(empty_database, own.registry / DATABASE_FILE)
    events = list(read_events(folder))
    fed(FollowedRun(folder), events).close("completed")
    assert kept(own) == expected(events)
    assert "dagster_run_id" not in only_run(own).data.tags


def test_the_experiment_can_be_named(home: Home) -> None:
    followed, events = recorded(home)
    fed(followed, events[:1], experiment="mine")
    fed(followed, events[:3])
    run = only_run(home)
    assert client_of(home).get_experiment(run.info.experiment_id).name == "mine"


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.sinks\.mlflow\.points is 0; expected a number above 0"):
        MlflowTracker(points=0)


def test_an_empty_log_makes_no_run(home: Home) -> None:
    tracker = MlflowTracker()
    tracker.open(FollowedRun(home.run(RUN), home.root), {})
    assert tracker.write([]) == tracker.write([])
    tracker.close("killed")
    assert all_runs(home) == []


_OPEN = """
import sys
from pathlib import Path
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import Store
from toto_pipeline.monitoring.mlflow_run import open_run
store = Store.of(Home(Path(sys.argv[1])))
client = store.client()
print("ready", flush=True)
sys.stdin.readline()
print(open_run(store, client, sys.argv[2]).info.run_id, flush=True)
"""


def opened_at_once(home: Home, processes: int = 2) -> set[str]:
    """The ids of the MLflow runs that so many processes open for one run in the same instant."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, str(home.root), RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    pipes = [(process.stdin, process.stdout) for process in started]
    for _, output in pipes:
        assert output is not None
        assert output.readline() == "ready\n"
    for given, _ in pipes:
        assert given is not None
        given.write("go\n")
        given.flush()
    ids = {output.readline().strip() for _, output in pipes if output is not None}
    for process in started:
        process.communicate()
        assert process.returncode == 0
    return ids


@pytest.mark.slow
def test_processes_that_open_a_run_at_once_get_one(home: Home) -> None:
    ids = opened_at_once(home, 3)
    assert ids == {only_run(home).info.run_id}


def test_who_creates_a_run_beside_an_older_one_takes_that(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two machines, where no lock reaches: the other creates its run between our look and ours."""
    import mlflow

    store = Store.of(home)
    client = store.client()
    ours = mlflow.MlflowClient.create_run
    others: list[str] = []

    def both(self: Any, experiment_id: str, **values: Any) -> Any:
        if not others:
            earlier = {**values, "start_time": values["start_time"] - 5}
            others.append(ours(self, experiment_id, **earlier).info.run_id)
        return ours(self, experiment_id, **values)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", both)
    monkeypatch.setattr(Store, "remote", True)
    assert open_run(store, client, RUN).info.run_id == others[0]
    assert only_run(home).info.run_id == others[0]


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_database, folder / DATABASE_FILE)
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_has_everything_once(
    home: Home, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(URI_VARIABLE, server.uri)
    followed, events = recorded(home, short(diverges=True, dies_after=17))
    figure = {"type": "figure", "name": "loss", "time": CREATED, "step": 0}
    plain = orjson.loads(orjson.dumps(lines("Loss", [1, 2], {"a": [1, 2]}), option=orjson.OPT_SERIALIZE_NUMPY))
    batches = [[events[0], {**figure, "figure": plain}], events[1:15], events[15:30], events[30:]]

    tracker = MlflowTracker()
    tracker.open(followed, {})
    tracker.write(batches[0])
    tracker.write(batches[1])
    server.stop(signal.SIGKILL)
    with pytest.raises(RegistryError, match="start the MLflow server there"):
        tracker.write(batches[2])
    with pytest.raises(RegistryError, match="start the MLflow server there"):
        close_run(home, RUN, "FINISHED", at=events[-1]["time"] + 1)
    server.start()
    tracker.write(batches[2])
    tracker.write(batches[2])
    tracker.write(batches[3])
    tracker.close("failed")

    assert kept(home) == expected(events)
    assert capfd.readouterr().out == ""
    run = only_run(home)
    assert run.info.status == "FINISHED"  # what the end of the pipeline said while the server was away
    assert [file.path for file in client_of(home).list_artifacts(run.info.run_id, "figures/loss")] == [
        "figures/loss/step_00000000.png"
    ]
    close_run(home, "another run", "FAILED")
    end = read_end(home, RUN)
    assert end is not None
    assert end.told


@pytest.mark.slow
def test_processes_that_open_a_run_on_a_server_at_once_get_one(
    home: Home, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URI_VARIABLE, server.uri)
    ids = opened_at_once(home)
    assert ids == {only_run(home).info.run_id}


def test_nothing_global_of_mlflow_is_touched(home: Home) -> None:
    import mlflow

    followed, events = recorded(home)
    before = (mlflow.active_run(), os.environ.get(URI_VARIABLE), os.environ.get("MLFLOW_EXPERIMENT_ID"))
    fed(followed, events).close("completed")
    assert (mlflow.active_run(), os.environ.get(URI_VARIABLE), os.environ.get("MLFLOW_EXPERIMENT_ID")) == before
