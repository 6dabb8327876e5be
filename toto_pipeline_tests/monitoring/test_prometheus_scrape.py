"""The sink and a real Prometheus, from Debian's package: scraping a run each second, through its end or its death."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from toto_pipeline.events.log import read_events
from toto_pipeline_tests.fixtures.recorded_run import RUN, Recording, record
from toto_pipeline_tests.monitoring.prometheus_help import (
    Prometheus,
    eventually,
    feeder,
    read,
    running_prometheus,
    samples,
    target_address,
)

pytestmark = pytest.mark.slow

LABEL = f'{{run="{RUN}"}}'


def test_prometheus_has_the_last_values_and_sees_the_end(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = record(home / "runs", Recording(dies_after=100))
    events = list(read_events(folder))
    targets = home / "prometheus" / "targets"
    with running_prometheus(tmp_path / "server", targets) as server, feeder(home, RUN) as process:
        eventually(lambda: server.value(f"up{LABEL} == 1"), "a scrape")
        _has_the_last_values(server, events)
        shown = samples(read(target_address(home, RUN)))
        for (name, labels), value in shown.items():
            selector = ",".join(f'{key}="{text}"' for key, text in (*labels, ("run", RUN)))
            assert server.value(f"{name}{{{selector}}}") == pytest.approx(value, rel=1e-12), name

        process.communicate("completed\n", timeout=60)
        assert process.returncode == 0
        assert not list(targets.iterdir())
        ending = f'last_over_time(toto_training_state{{run="{RUN}",state="completed"}}[10m]) == 1'
        assert server.value(ending) == 1
        eventually(lambda: None if server.targets() else True, "the target to be dropped")
        assert server.value(f"min_over_time(up{LABEL}[10m])") == 1, "an end in order is no crash"


def _has_the_last_values(server: Prometheus, events: list[dict[str, object]]) -> None:
    step = next(event for event in reversed(events) if event["type"] == "step")
    epoch = next(event for event in reversed(events) if event["type"] == "epoch")
    metrics = epoch["metrics"]
    assert isinstance(metrics, dict)
    for metric, value in {
        "toto_training_loss": step["loss"],
        "toto_training_gradient_norm": step["gradient_norm"],
        "toto_training_validation_loss": epoch["validation_loss"],
        "toto_training_steps_total": sum(event["type"] == "step" for event in events),
        "toto_training_step_seconds_count": sum(event["type"] == "step" for event in events),
        "toto_training_restarts_total": 1,
        "toto_training_checkpoints_saved_total": 9,
    }.items():
        assert server.value(f"{metric}{LABEL}") == value, metric
    scores = {labels["metric"]: value for labels, value in server.query(f"toto_training_score{LABEL}")}
    assert scores == metrics
    assert {labels["job"] for labels, _ in server.query("up")} == {"toto_training"}
    assert not server.query('{exported_run!=""}')


def test_a_killed_exporter_is_down_until_another_starts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for run in (RUN, "another"):
        record(home / "runs", Recording(run=run, stops_after=100))
    targets = home / "prometheus" / "targets"
    with running_prometheus(tmp_path / "server", targets) as server:
        with feeder(home, RUN) as process:
            eventually(lambda: server.value(f"up{LABEL} == 1"), "a scrape")
            process.send_signal(signal.SIGKILL)
            process.wait()
            eventually(lambda: server.value(f"up{LABEL} == 0"), "a failed scrape")
            assert (targets / f"{RUN}.json").is_file()
        with feeder(home, "another"):
            assert not (targets / f"{RUN}.json").exists()
            eventually(lambda: server.value('up{run="another"} == 1'), "a scrape of the other run")
            eventually(lambda: None if server.query(f"up{LABEL}") else True, "the dead target to be dropped")
