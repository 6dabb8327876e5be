"""`toto-pipeline exporter`, as a user starts and stops it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from toto_pipeline.home import Home
from toto_pipeline.promotion.registry import Registry
from toto_pipeline_tests.fixtures.recorded_run import RUN, record
from toto_pipeline_tests.monitoring.prometheus_help import eventually, read, sample, samples

COMMAND = [sys.executable, "-m", "toto_pipeline.cli"]


def command(home: Path, *words: str) -> list[str]:
    return [*COMMAND, "--home", str(home), "exporter", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}


@contextmanager
def running(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it says."""
    words = command(home, "--port", "0")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        said = re.fullmatch(rf"1 runs of {re.escape(str(home))} are shown at http://(127\.0\.0\.1:\d+)/metrics\n", line)
        assert said, line or process.communicate()
        yield process, said[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_shows_the_runs_of_the_home_until_it_is_stopped(tmp_path: Path, number: signal.Signals, code: int) -> None:
    home = tmp_path / "home"
    record(home / "runs")
    targets = home / "prometheus" / "targets"
    targets.mkdir(parents=True)
    owner = {"host": socket.gethostname(), "exporter": "1@1", "trainers": [], "ended": True}
    (targets / "stale.owner").write_bytes(orjson.dumps(owner))
    (targets / "stale.json").write_text("[]")
    with running(home) as (process, address):
        assert samples(read(address))[sample("toto_runs", outcome="promoted")] == 1
        assert not list(targets.iterdir())
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (code, "")


def test_a_port_in_use_and_a_port_that_is_none_are_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        in_use = _refused(tmp_path, port)
    assert in_use.returncode == 1
    assert re.search(rf"error: .*port {port} of 127\.0\.0\.1 is in use\. Expected: .* What to do: ", in_use.stderr)
    none = _refused(tmp_path, "99999")
    assert none.returncode == 2
    assert "--port: 99999 is no port" in none.stderr
    assert "Traceback" not in in_use.stderr + none.stderr


def _refused(home: Path, port: str) -> subprocess.CompletedProcess[str]:
    words = command(home, "--port", port)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment())


@pytest.mark.slow
def test_it_shows_the_champion_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path / "home").prepare()
    record(home.runs)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("weights")
    registry = Registry(home, "toto")
    version = registry.register(tmp_path / "model", run=RUN, metrics={"SQL": 0.5}, tags={})
    registry.register(tmp_path / "model", run="refused", metrics={"SQL": 0.7}, tags={})
    registry.promote(version.version, expected_champion=None)
    with running(home.root) as (_, address):
        up = sample("toto_registry_up")
        found = eventually(lambda: found if up in (found := samples(read(address))) else None, "an answer")
        assert found[up] == 1
        assert found[sample("toto_champion_info", model="toto", version="1")] == 1
        assert found[sample("toto_champion_score", model="toto", metric="SQL")] == 0.5
        assert found[sample("toto_champion_created_timestamp_seconds", model="toto")] == version.created
