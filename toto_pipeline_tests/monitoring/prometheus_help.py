"""What the tests of the exporters have in common: reading them, asking promtool, running a real Prometheus.

Run as a program it is a process that feeds the sink: `python -m ... HOME RUN` takes in the log of the run, says
`ready`, and closes with the outcome that it is told on standard input.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from toto_pipeline.errors import PipelineError
from toto_pipeline.events.log import read_events
from toto_pipeline.monitoring.prometheus_exporter import PrometheusExporter
from toto_pipeline.monitoring.sink import FollowedRun

PATIENCE_SECONDS = 60.0
Sample = tuple[str, frozenset[tuple[str, str]]]


def read(address: str, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http, as the line above says
        text: str = answer.read().decode()
        return text


def target_address(home: Path, run: str) -> str:
    """The address that Prometheus is told for a run."""
    (group,) = json.loads((home / "prometheus" / "targets" / f"{run}.json").read_bytes())
    (address,) = group["targets"]
    return str(address)


def parsed(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(text: str) -> dict[Sample, float]:
    """The value of every series, by its name and labels but `run`."""
    return {
        (sample.name, frozenset((key, value) for key, value in sample.labels.items() if key != "run")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(metric: str, /, **labels: str) -> Sample:
    return metric, frozenset(labels.items())


def binary(name: str) -> str:
    """A program of Debian's package `prometheus`. Without it the test is skipped, in CI it fails."""
    found = shutil.which(name)
    if found is not None:
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not installed: apt-get install prometheus")
    pytest.skip(f"{name} is not installed")


def check_with_promtool(exposition: str) -> None:
    done = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=exposition, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def eventually[T](look: Callable[[], T | None], what: str) -> T:
    """What `look` gives, once it gives something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")


class Prometheus:
    """A running server, and its HTTP API."""

    def __init__(self, port: int) -> None:
        self.port = port

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that an expression gives."""
        found = self._ask("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def value(self, expression: str) -> float | None:
        """The value of the one series that an expression gives; None where it gives none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def targets(self) -> list[str]:
        return [target["scrapeUrl"] for target in self._ask("targets")["activeTargets"]]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def _ask(self, path: str, **parameters: str) -> Any:
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.loads(answer.read())["data"]


CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: toto_training
    honor_labels: true
    file_sd_configs: [{{files: ["{targets}/*.json"]}}]
"""


@contextmanager
def running_prometheus(folder: Path, targets: Path) -> Iterator[Prometheus]:
    """A real server that scrapes each second whom the files in `targets` name."""
    targets.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(targets=targets))
    server = Prometheus(free_port())
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{server.port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: server.is_ready() or None, "Prometheus to be ready")
        yield server
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def feeder(home: Path, run: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has taken in the log of a run, and shows it."""
    command = [sys.executable, "-m", __name__, str(home), run]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def main(home: Path, run: str) -> None:
    sink = PrometheusExporter()
    sink.open(FollowedRun(home / "runs" / run, home), {})
    sink.write(list(read_events(home / "runs" / run)))
    print("ready", flush=True)
    outcome = sys.stdin.readline().strip()
    if outcome != "completed":
        raise PipelineError(f"{outcome!r} is no outcome")
    sink.close("completed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
