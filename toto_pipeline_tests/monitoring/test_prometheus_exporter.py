"""What the sink shows of recorded events, by Prometheus' own parser and linter; its restarts, targets and end."""

from __future__ import annotations

import itertools
import math
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.registry import Collector

from toto_pipeline.errors import ConfigError, PipelineError, StorageError
from toto_pipeline.events.log import read_events
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.processes import process_name
from toto_pipeline.events.schema import Event, spell_out
from toto_pipeline.monitoring.prometheus_exporter import PrometheusExporter
from toto_pipeline.monitoring.prometheus_metrics import MOST_LABEL_SETS
from toto_pipeline.monitoring.prometheus_server import MetricsServer
from toto_pipeline.monitoring.sink import FollowedRun, State
from toto_pipeline_tests.fixtures.recorded_run import RUN, Recording, record
from toto_pipeline_tests.monitoring.prometheus_help import (
    binary,
    check_with_promtool,
    feeder,
    parsed,
    read,
    sample,
    samples,
    target_address,
)

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
GPU = {"gpu": "1", "uuid": "GPU-b", "name": "H100"}


@contextmanager
def opened(home: Path, state: State | None = None, *, run: str = RUN) -> Iterator[PrometheusExporter]:
    sink = PrometheusExporter()
    sink.open(FollowedRun(home / "runs" / run, home), state or {})
    try:
        yield sink
    finally:
        sink.close(None)


def shown(home: Path, events: list[Event], *, run: str = RUN) -> str:
    """The exposition after some events."""
    with opened(home, run=run) as sink:
        sink.write(events)
        return read(target_address(home, run))


def recorded(home: Path, **recording: Any) -> list[Event]:
    return list(read_events(record(home / "runs", Recording(**recording))))


def event(kind: str, **fields: Any) -> Event:
    return spell_out({"schema": 1, "type": kind, "attempt": 1, "time": 1.8e9, "monotonic": 5.0, **fields})


def system_event(**values: float) -> Event:
    gpus = [{"index": 0, "name": "H100", "uuid": "GPU-a"}, {"index": 1, "name": "H100", "uuid": "GPU-b", **values}]
    return event("system", host={"cpu_percent": 12.5, "cpu_percents": [20.0, 5.0], "disk_free_bytes": 7}, gpus=gpus)


def every_kind_of_event() -> list[Event]:
    """One event of each type, all of whose numbers differ."""
    number = (k + 0.5 for k in itertools.count(1000))

    def some(*names: str) -> dict[str, float]:
        return {name: next(number) for name in names}

    host = some("cpu_percent", "load_1m", "memory_total_bytes", "memory_used_bytes", "memory_available_bytes")
    host |= some("memory_percent", "swap_total_bytes", "swap_used_bytes", "disk_total_bytes", "disk_used_bytes")
    host |= some("disk_free_bytes", "disk_percent", "disk_read_bytes_per_second", "disk_write_bytes_per_second")
    host |= some("network_received_bytes_per_second", "network_sent_bytes_per_second", "fast_disk_free_bytes")
    process = some("cpu_percent", "cpu_percent_with_children", "resident_bytes", "resident_bytes_with_children")
    process |= some("children", "threads", "open_files")
    readings = ["utilization_percent", "memory_utilization_percent", "memory_total_bytes", "memory_used_bytes"]
    readings += ["temperature_celsius", "power_watts", "power_limit_watts", "sm_clock_hertz", "memory_clock_hertz"]
    readings += ["ecc_errors_corrected", "ecc_errors_uncorrected", "process_memory_bytes"]
    gpus = [{"index": k, "name": "H100", "uuid": f"GPU-{k}", "visible": True, **some(*readings)} for k in range(2)]
    names = ("loss", "learning_rate", "gradient_norm", "seconds", "data_seconds", "tokens_per_second")
    course = {"validation_loss": some("slope", "best"), "train/loss": some("mean")}
    return [
        event("run_started", run=RUN, config={"preset": "sample"}, host="h", total_steps=1000, epochs=10),
        event("step", step=1, epoch=0, **some(*names)),
        event(
            "system", step=1, host={**host, "cpu_percents": [next(number), next(number)]}, process=process, gpus=gpus
        ),
        event("checkpoint_saved", step=1, checkpoint="c", **some("bytes", "seconds", "blocked_seconds")),
        event("checkpoint_failed", checkpoint="c", reason="r"),
        event("checkpoint_quarantined", checkpoint="c", moved_to="d", reason="r"),
        event("checkpoint_backed_up", checkpoint="c", folder="f"),
        event("warning", name="gpu_lost", message="m"),
        event("histogram", step=1, name="weights/head", counts=[1], edges=[0, 1], **some("mean", "deviation")),
        event(
            "epoch",
            step=1,
            epoch=1,
            is_best=True,
            statistics=course,
            metrics=some("MASE", "WQL"),
            **some("train_loss", "validation_loss", "learning_rate", "gradient_norm", "seconds", "windows_per_second"),
            **some("skipped_steps", "accuracy"),
        ),
        event("a_type_to_come", number=3),
    ]


def test_every_measurement_is_shown(tmp_path: Path) -> None:
    events = every_kind_of_event()
    values = set(samples(shown(tmp_path, events)).values())
    for one in events:
        for name, value in measurements(one):
            if not name.endswith("/index"):
                assert value in values or value * 0.01 in values, name


def test_names_types_and_units_are_as_prometheus_wants_them(tmp_path: Path) -> None:
    exposition = shown(tmp_path, every_kind_of_event())
    check_with_promtool(exposition)
    for family in parsed(exposition).values():
        assert family.name.startswith("toto_")
        assert family.documentation.endswith(".")
        for one in family.samples:
            assert one.labels["run"] == RUN
            assert family.type != "counter" or one.name.endswith("_total")
    assert not any("percent" in name or "megabyte" in name for name in parsed(exposition))


def test_promtool_finds_fault_with_what_is_wrong() -> None:
    """That the check above can fail at all."""
    binary("promtool")
    with pytest.raises(AssertionError, match="no help text"):
        check_with_promtool("# TYPE toto_loss gauge\ntoto_loss 1\n")


def test_a_recorded_run_is_counted_through_its_restart(tmp_path: Path) -> None:
    events = recorded(tmp_path, dies_after=100, warnings=("slow disk",))
    exposition = shown(tmp_path, events)
    check_with_promtool(exposition)
    found = samples(exposition)
    steps = [one for one in events if one["type"] == "step"]
    assert len(steps) == 380  # 100, then 81 to 360
    last_epoch = [one for one in events if one["type"] == "epoch"][-1]
    expected = {
        sample("toto_training_loss"): steps[-1]["loss"],
        sample("toto_training_learning_rate"): steps[-1]["learning_rate"],
        sample("toto_training_step"): 360,
        sample("toto_training_epoch"): 9,
        sample("toto_training_planned_steps"): 360,
        sample("toto_training_steps_total"): 380,
        sample("toto_training_restarts_total"): 1,
        sample("toto_training_checkpoints_saved_total"): 9,
        sample("toto_training_checkpoints_failed_total"): 0,
        sample("toto_training_skipped_steps_total"): 0,
        sample("toto_training_warnings_total", name="recorded"): 2,
        sample("toto_training_validation_loss"): last_epoch["validation_loss"],
        sample("toto_training_score", metric="MASE"): last_epoch["metrics"]["MASE"],
        sample("toto_training_started_timestamp_seconds"): events[0]["time"],
        sample("toto_training_last_event_timestamp_seconds"): events[-1]["time"],
        sample("toto_training_state", state="completed"): 1,
        sample("toto_training_state", state="running"): 0,
        sample("toto_training_step_seconds_count"): 380,
        sample("toto_training_step_seconds_bucket", le="0.05"): sum(one["seconds"] <= 0.05 for one in steps),
        sample("toto_training_step_seconds_bucket", le="+Inf"): 380,
    }
    assert {key: found[key] for key in expected} == expected
    total = sum(one["seconds"] for one in steps)
    assert found[sample("toto_training_step_seconds_sum")] == pytest.approx(total)
    waited = sum(one["data_seconds"] for one in steps)
    assert found[sample("toto_training_data_wait_seconds_total")] == pytest.approx(waited)


def test_the_run_tells_what_it_was_started_with(tmp_path: Path) -> None:
    info = parsed(shown(tmp_path, recorded(tmp_path)))["toto_training_run_info"].samples[0].labels
    assert info == {
        "run": RUN,
        "host": "trainer-01",
        "device": "cpu",
        "code_version": "0.1.0+g1a2b3c4d5e",
        "data_fingerprint": "5eed" * 16,
        "config_hash": "c0ffee" * 10 + "c0ff",
        "preset": "sample",
    }


def test_the_time_remaining_is_at_the_pace_of_this_attempt(tmp_path: Path) -> None:
    begin = event("run_started", total_steps=100)
    steps = [event("step", step=k, monotonic=10.0 + 2 * k) for k in (1, 2, 3, 4)]
    again = event("run_started", attempt=2, total_steps=100, resumed_from=2)
    remaining = sample("toto_training_remaining_seconds")
    assert samples(shown(tmp_path, [begin, *steps]))[remaining] == 2 * 96
    assert math.isnan(samples(shown(tmp_path, [begin, *steps, again, steps[2]]))[remaining])
    assert remaining not in samples(shown(tmp_path, [event("run_started", total_steps=None), *steps]))


def test_a_loss_that_is_no_number_is_shown_and_counted(tmp_path: Path) -> None:
    steps = [
        event("step", step=1, loss=1.0, gradient_norm=math.inf, seconds=math.nan, data_seconds=math.nan),
        event("step", step=2, loss=math.nan, gradient_norm=1.0, seconds=0.5, data_seconds=0.25),
    ]
    found = samples(shown(tmp_path, steps))
    assert math.isnan(found[sample("toto_training_loss")])
    assert found[sample("toto_training_skipped_steps_total")] == 2
    assert found[sample("toto_training_steps_total")] == 2
    assert found[sample("toto_training_step_seconds_count")] == 1
    assert found[sample("toto_training_step_seconds_sum")] == 0.5
    assert found[sample("toto_training_step_seconds_bucket", le="0.25")] == 0
    assert found[sample("toto_training_step_seconds_bucket", le="0.5")] == 1
    assert found[sample("toto_training_data_wait_seconds_total")] == 0.25


def test_what_a_machine_no_longer_tells_is_no_longer_shown(tmp_path: Path) -> None:
    with opened(tmp_path) as sink:
        sink.write([system_event(power_watts=300.0)])
        found = samples(read(target_address(tmp_path, RUN)))
        assert found[sample("toto_gpu_power_watts", **GPU)] == 300
        assert found[sample("toto_host_cpu_ratio")] == 0.125
        assert found[sample("toto_host_core_cpu_ratio", core="1")] == 0.05
        assert found[sample("toto_host_disk_free_bytes", disk="home")] == 7
        sink.write([system_event()])  # the GPU is lost: it has its name only
        found = samples(read(target_address(tmp_path, RUN)))
        assert sample("toto_gpu_power_watts", **GPU) not in found
        assert found[sample("toto_host_cpu_ratio")] == 0.125


@pytest.mark.parametrize("cut", [0, 1, 57, 200, 390])
def test_metrics_go_on_after_a_kill_without_reading_the_log_again(tmp_path: Path, cut: int) -> None:
    events = [*recorded(tmp_path, dies_after=100, diverges=True), *every_kind_of_event()]
    whole = shown(tmp_path, events)
    with opened(tmp_path) as killed:
        kept = orjson.dumps(killed.write(events[:cut]))
        killed.write(events[cut : cut + 20])  # its state did not reach the disk any more
    with opened(tmp_path, orjson.loads(kept)) as next_one:
        next_one.write(events[cut:])
        assert read(target_address(tmp_path, RUN)) == whole
    assert len(kept) < 10_000


def test_events_that_could_not_be_taken_in_do_not_count(tmp_path: Path) -> None:
    events = recorded(tmp_path, stops_after=50)
    targets = tmp_path / "prometheus" / "targets"
    with opened(tmp_path) as sink:
        address = target_address(tmp_path, RUN)
        aside = targets.rename(tmp_path / "aside")
        targets.touch()  # no folder any more
        beginning = [{**events[0], "process": process_name()}, *events[1:]]
        with pytest.raises(StorageError):
            sink.write(beginning)
        assert samples(read(address))[sample("toto_training_steps_total")] == 0
        targets.unlink()
        aside.rename(targets)
        sink.write(beginning)
        assert samples(read(address))[sample("toto_training_steps_total")] == 50


def test_series_of_one_metric_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many = MOST_LABEL_SETS + 50
    events = [event("histogram", name=f"weights/{k}", mean=k, deviation=1.0) for k in range(many)]
    events += [event("warning", name=f"w{k}", message="") for k in range(many)]
    events += [event("step", step=1, loss=1.0, **{f"own_{k}": k for k in range(many)})]
    with opened(tmp_path) as sink:
        sink.write(events)
        state = sink.write(events)
        families = parsed(read(target_address(tmp_path, RUN)))
    assert len(families["toto_training_tensor_mean"].samples) == MOST_LABEL_SETS
    assert len(families["toto_training_measurement"].samples) == MOST_LABEL_SETS
    warnings = {one.labels["name"]: one.value for one in families["toto_training_warnings"].samples}
    assert len(warnings) == MOST_LABEL_SETS + 1
    assert warnings["other"] == 2 * 50
    left_out = {one.labels["metric"]: one.value for one in families["toto_training_left_out"].samples}
    metrics = ("toto_training_tensor_mean", "toto_training_tensor_deviation", "toto_training_measurement")
    assert left_out == dict.fromkeys(metrics, 2 * 50)
    said = [one.getMessage() for one in caplog.records]
    assert sorted(line.split()[0] for line in said) == sorted(metrics)  # once each
    assert len(orjson.dumps(state)) < 40_000


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[PrometheusExporter]:
    with opened(tmp_path) as opened_sink:
        yield opened_sink


NUMBERS = st.floats() | st.integers(-(2**63), 2**63)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("loss", "gradient_norm", "seconds"), NUMBERS))),
    own=st.dictionaries(TEXTS.map("own_".__add__), NUMBERS, max_size=5),
    names=st.lists(TEXTS, max_size=5),
)
def test_any_values_and_names_can_be_read(
    sink: PrometheusExporter, tmp_path: Path, steps: list[dict[str, float]], own: dict[str, float], names: list[str]
) -> None:
    events = [event("step", step=k, **fields) for k, fields in enumerate(steps)]
    events += [event("step", step=9, **own), event("epoch", metrics=own)]
    events += [event("warning", name=name, message="") for name in names]
    events += [event("histogram", name=name, mean=1.0, deviation=0.0) for name in names]
    sink.open(FollowedRun(tmp_path / "runs" / RUN, tmp_path), {})  # anew, on the server that is there
    state = sink.write(events)
    assert orjson.loads(orjson.dumps(state)) == state
    found = samples(read(target_address(tmp_path, RUN)))
    assert list(openmetrics_families(read(target_address(tmp_path, RUN), OPENMETRICS)))
    losses = [fields["loss"] for fields in steps if "loss" in fields]
    if losses:
        assert found[sample("toto_training_loss")] == pytest.approx(losses[-1], nan_ok=True)
    assert found[sample("toto_training_steps_total")] == len(steps) + 1
    for name in set(names):
        assert found[sample("toto_training_warnings_total", name=name)] == names.count(name)


def test_the_final_state_stays_until_it_was_read(tmp_path: Path) -> None:
    hours = itertools.count(0, 3600)
    sink = PrometheusExporter(linger_seconds=600, farewell_seconds=0, clock=lambda: min(next(hours), 3600))
    sink.open(FollowedRun(tmp_path / "runs" / RUN, tmp_path), {})
    sink.write(recorded(tmp_path, stops_after=50))
    address = target_address(tmp_path, RUN)
    assert samples(read(address))[sample("toto_training_state", state="running")] == 1
    closing = threading.Thread(target=sink.close, args=("killed",), daemon=True)
    closing.start()
    found: dict[Any, float] = {}
    while found.get(sample("toto_training_state", state="killed")) != 1:
        found = samples(read(address))
    closing.join(60)
    assert not closing.is_alive()
    assert found[sample("toto_training_state", state="running")] == 0
    assert found[sample("toto_training_remaining_seconds")] == 0
    assert not list((tmp_path / "prometheus" / "targets").iterdir())
    with pytest.raises(OSError, match="refused"):
        read(address)


def test_a_reading_that_began_before_the_end_does_not_count(tmp_path: Path) -> None:
    """The registry holds the first reading up; what it shows may be from before."""
    began, go_on = threading.Event(), threading.Event()
    held = [True]

    class Slow(Collector):
        def collect(self) -> Iterator[Metric]:
            if held.pop() if held else False:
                began.set()
                go_on.wait(60)
            yield GaugeMetricFamily("toto_here", "Here.", 1)

    registry = CollectorRegistry()
    registry.register(Slow())
    server = MetricsServer(registry, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.port}"
    early = threading.Thread(target=read, args=(address,), daemon=True)
    early.start()
    assert began.wait(60)
    assert not server.wait_for_reading(0)
    waiting = threading.Thread(target=server.wait_for_reading, args=(600,), daemon=True)
    waiting.start()
    go_on.set()
    early.join(60)
    waiting.join(0.2)
    assert waiting.is_alive()
    while waiting.is_alive():
        assert "toto_here 1.0" in read(address)
    server.close()


@pytest.mark.parametrize(("linger_seconds", "passed"), [(0, 0), (600, 600)])
def test_nobody_is_waited_for_who_has_never_read(tmp_path: Path, linger_seconds: float, passed: float) -> None:
    """Neither at the end nor, which takes a reading, after it."""
    now = [5.0]
    sink = PrometheusExporter(linger_seconds=linger_seconds, farewell_seconds=600, clock=lambda: now[0])
    sink.open(FollowedRun(tmp_path / "runs" / RUN, tmp_path), {})
    now[0] += passed
    closing = threading.Thread(target=lambda: (sink.close("completed"), sink.close("completed")), daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert not list((tmp_path / "prometheus" / "targets").iterdir())


def test_a_run_outside_of_a_home_keeps_its_target_in_its_own_folder(tmp_path: Path) -> None:
    sink = PrometheusExporter()
    sink.open(FollowedRun(tmp_path / "mine"), {})
    (group,) = orjson.loads((tmp_path / "mine" / "prometheus" / "targets" / "mine.json").read_bytes())
    assert group["labels"] == {"job": "toto_training", "run": "mine"}
    sink.close(None)


def test_the_target_names_the_host_that_prometheus_reaches(tmp_path: Path) -> None:
    for settings_, host in (
        ({"host": "127.0.0.1"}, "127.0.0.1"),
        ({"host": "::1"}, "[::1]"),
        ({"host": "0.0.0.0"}, socket.gethostname()),  # noqa: S104
        ({"host": "127.0.0.1", "advertise": "trainer.example"}, "trainer.example"),
    ):
        sink = PrometheusExporter(file_sd=tmp_path / "targets", **settings_)
        sink.open(FollowedRun(tmp_path / "runs" / RUN, tmp_path), {})
        (group,) = orjson.loads((tmp_path / "targets" / f"{RUN}.json").read_bytes())
        assert group["targets"][0].rsplit(":", 1)[0] == host
        sink.close(None)


def test_a_killed_exporters_target_stays_until_its_run_has_ended_too(tmp_path: Path) -> None:
    """The trainer is this very process, so it lives on."""
    targets = tmp_path / "prometheus" / "targets"
    folder = record(tmp_path / "runs", Recording(stops_after=20), promoted=None, evaluated=False)
    log = folder / "events.jsonl"
    first, *others = log.read_bytes().splitlines(keepends=True)
    started = {**orjson.loads(first), "process": process_name()}
    log.write_bytes(orjson.dumps(started) + b"\n" + b"".join(others))
    _feed_and_kill(tmp_path)
    with opened(tmp_path, run="another"):
        assert sorted(path.stem for path in targets.glob("*.json")) == sorted([RUN, "another"])
    with log.open("ab") as end:
        end.write(orjson.dumps(event("run_ended", outcome="failed")) + b"\n")
    _feed_and_kill(tmp_path)
    with opened(tmp_path, run="another"):
        assert [path.stem for path in targets.glob("*.json")] == ["another"]
    assert not list(targets.iterdir())


def _feed_and_kill(home: Path) -> None:
    with feeder(home, RUN) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("owner", [None, b"{torn", b"{}", orjson.dumps({"host": "elsewhere", "exporter": "1@1"})])
def test_a_target_of_unknown_origin_is_left_alone(tmp_path: Path, owner: bytes | None) -> None:
    targets = tmp_path / "prometheus" / "targets"
    targets.mkdir(parents=True)
    (targets / "foreign.json").write_text("[]")
    if owner is not None:
        (targets / "foreign.owner").write_bytes(owner)
    with opened(tmp_path):
        assert (targets / "foreign.json").is_file()
    assert (targets / "foreign.json").is_file()


def test_a_target_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    targets = tmp_path / "prometheus" / "targets"
    targets.mkdir(parents=True)
    (targets / "far.json").write_text("[]")
    owner = {"host": "elsewhere", "exporter": "1@1", "trainers": [], "ended": True}
    (targets / "far.owner").write_bytes(orjson.dumps(owner))
    with opened(tmp_path):
        assert (targets / "far.json").is_file()


def test_a_run_that_another_exporter_has_taken_over_keeps_its_target(tmp_path: Path) -> None:
    with opened(tmp_path), feeder(tmp_path, RUN):
        address = target_address(tmp_path, RUN)
        assert samples(read(address))
        # the one that came first leaves now, as a follower that waits for its last reading does
    assert (tmp_path / "prometheus" / "targets" / f"{RUN}.json").is_file()


def test_a_port_in_use_is_tried_again(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sink = PrometheusExporter(port=port)
        with pytest.raises(PipelineError, match=rf"port {port} of 127\.0\.0\.1 is in use.*set another port") as raised:
            sink.open(FollowedRun(tmp_path / RUN, tmp_path), {})
        assert not isinstance(raised.value, ConfigError)
        assert not (tmp_path / "prometheus").exists()
    sink.open(FollowedRun(tmp_path / RUN, tmp_path), {})
    assert target_address(tmp_path, RUN) == f"127.0.0.1:{port}"
    sink.close(None)


def test_mistakes_in_the_settings_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prometheus\.port: 70000 is no port.*0 for any"):
        PrometheusExporter(port=70_000)
    with pytest.raises(ConfigError, match=r"prometheus\.linger_seconds: -1"):
        PrometheusExporter(linger_seconds=-1)
    with pytest.raises(ConfigError, match=r"cannot listen on host '203\.0\.113\.9'.*127\.0\.0\.1 for this machine"):
        PrometheusExporter(host="203.0.113.9").open(FollowedRun(tmp_path / RUN, tmp_path), {})
