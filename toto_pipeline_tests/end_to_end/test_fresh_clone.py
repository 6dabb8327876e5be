"""What a newcomer does, in a fresh clone with nothing prepared: every command of the README and the docs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toto_pipeline_tests.conftest import write_series

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/data.md", "docs/training.md", "docs/monitoring.md")
SERVERS = {
    "make dev": "PORT={port}",
    "tensorboard --logdir .toto/runs": "--port {port}",
    "mlflow ui --backend-store-uri sqlite:///.toto/registry/mlflow.db": "--port {port}",
    "toto-pipeline exporter": "--port {port}",
}
"""What serves until it is stopped, and how it is told its port."""
EXPECTED = {
    # No network here: what is tested is that it says so.
    "toto-pipeline retrain --preset toto2-4m --set training.model.weights=Datadog/Toto-2.0-4m "
    "--set training.learning_rate=0.001": 4,
}
SHORTER = {
    # This test is one of them; a few tests show that the command sets up and runs.
    "make test": 'make test ARGS="-k test_config"',
    "make test-slow": 'make test-slow ARGS="--collect-only -q"',
    "make bench": 'make bench ARGS="code_location --quick"',
    "toto-pipeline retrain --data metrics/": "toto-pipeline retrain --data metrics/ {quick}",
    "toto-pipeline retrain --data metrics/ --set data.duplicates=last": (
        "toto-pipeline retrain --data metrics/ --set data.duplicates=last {quick}"
    ),
}
QUICK = "--set preparation.horizon=16 --set training.epochs=1 --set training.steps_per_epoch=20"


def _commands() -> list[str]:
    found: list[str] = []
    for name in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
            found += [line for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer") / "toto pipeline"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    write_series(folder / "metrics", steps=2000)
    return folder


def _environment(clone: Path) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("TOTO_", "DAGSTER_", "MLFLOW_", "VIRTUAL_ENV", "PYTEST_", "MAKE", "MFLAGS", "ARGS"))
    }
    return {**kept, "PATH": f"{clone / '.venv/bin'}:{kept['PATH']}", "HF_HUB_OFFLINE": "1"}


def test_every_command_of_the_documents_does_what_it_says(clone: Path) -> None:
    for command in _commands():
        if command in SERVERS:
            _answers_and_stops(command, clone)
            continue
        shorter = SHORTER.get(command, command).replace("{quick}", QUICK)
        done = subprocess.run(  # noqa: S602 - a document's command line is what is tested
            shorter, shell=True, cwd=clone, env=_environment(clone), capture_output=True, text=True, check=False
        )
        said = f"{shorter}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if command.startswith("toto-pipeline retrain") and command not in EXPECTED:
            assert done.returncode in (0, 10), said  # a model trained so briefly may be refused
        else:
            assert done.returncode == EXPECTED.get(command, 0), said
        assert "Traceback" not in done.stdout + done.stderr, said


def test_a_second_retraining_meets_the_champion_from_any_directory(clone: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-C", str(clone), "retrain"],
        cwd=tmp_path,
        env=_environment(clone),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Champion" in done.stdout
    assert "report.html" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_the_commands_wrote_is_seen_by_git(clone: Path) -> None:
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert [line for line in status if line and "metrics/" not in line and "forecast.csv" not in line] == []


def _answers_and_stops(command: str, clone: Path) -> None:
    port = _free_port()
    with subprocess.Popen(
        [*command.split(), *SERVERS[command].format(port=port).split()],
        cwd=clone,
        env=_environment(clone),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            assert any(_listens(port) for _ in _until(120)), f"{command} did not answer"
        finally:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(60)


def _until(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.5)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
