"""docs/forecasting.md, as a reader follows it: every block is executed, and all three ways give the same forecasts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import toto_pipeline
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import URI_VARIABLE
from toto_pipeline_tests.conftest import make_training_data, write_series
from toto_pipeline_tests.fixtures.champion import promote_tiny_model
from toto_pipeline_tests.fixtures.mlflow_store import free_port, make_empty_database

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "forecasting.md"
README = DOCUMENT.parents[1] / "README.md"
PORT = 5001
START_SECONDS = 180
QUANTILES = [f"0.{k}" for k in range(1, 10)]


def blocks(language: str, document: Path = DOCUMENT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def environment() -> dict[str, str]:
    dropped = ("TOTO_", "MLFLOW_", "DAGSTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current folder with a home in which there is a champion, and `history.csv`."""
    folder = tmp_path_factory.mktemp("forecasting")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        make_empty_database(folder / ".toto")
        home = Home(folder / ".toto").prepare()
        source = write_series(folder / "input")
        promote_tiny_model(home, make_training_data(home, source))
    source.rename(folder / "history.csv")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> pd.DataFrame:
    history = pd.read_csv(folder / "history.csv", parse_dates=["timestamp"])
    return toto_pipeline.load_champion(home=folder / ".toto", device="cpu").forecast(history, 24)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[int]:
    """The port on which the document's server answers."""
    (command,) = [block for block in blocks("bash") if "mlflow models serve" in block]
    port = free_port()
    assert f"--port {PORT}" in command
    with (
        (folder / "server.log").open("wb") as log,
        subprocess.Popen(
            ["bash", "-c", command.replace(str(PORT), str(port))],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_for(port, process, folder / "server.log")
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server did not start:\n{log.read_text()[-5000:]}")


def post(port: int, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return json.loads(answer.read())


def test_the_python_block_of_the_readme_forecasts(folder: Path) -> None:
    (block,) = blocks("python", README)
    frame = "import pandas\nframe = pandas.read_csv('history.csv', parse_dates=['timestamp'])\n"
    script = f"{frame}{block}\nassert len(forecast) == 96 * (len(frame.columns) - 1), forecast"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_python_block_forecasts(folder: Path, expected: pd.DataFrame) -> None:
    (block,) = blocks("python")
    script = f"{block}\nforecast.to_parquet('from_python.parquet')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = pd.read_parquet(folder / "from_python.parquet")
    np.testing.assert_allclose(found[QUANTILES], expected[QUANTILES], rtol=1e-4)


def test_the_command_forecasts_and_draws(folder: Path, expected: pd.DataFrame) -> None:
    (command,) = [block for block in blocks("bash") if block.startswith("toto-pipeline forecast")]
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = pd.read_csv(folder / "forecast.csv", parse_dates=["timestamp"])
    assert list(found.columns) == list(expected.columns)
    np.testing.assert_allclose(found[QUANTILES], expected[QUANTILES], rtol=1e-4)
    pictures = sorted((folder / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["01.png", "02.png", "03.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_served_champion_answers_the_documents_request(folder: Path, server: int) -> None:
    if shutil.which("curl") is None and "CI" not in os.environ:
        pytest.skip("curl is not installed")
    (command,) = [block for block in blocks("bash") if block.startswith("curl")]
    done = subprocess.run(
        ["bash", "-c", command.replace(str(PORT), str(server))],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["predictions"]
    assert [(row["id"], row["variate"], row["timestamp"][:19]) for row in rows] == [
        ("kitchen", "target", "2026-01-01T04:00:00"),
        ("kitchen", "target", "2026-01-01T05:00:00"),
    ]


def test_the_served_champion_says_what_load_champion_says(folder: Path, server: int, expected: pd.DataFrame) -> None:
    history = pd.read_csv(folder / "history.csv", parse_dates=["timestamp"])
    long = history.melt("timestamp", var_name="id", value_name="target")
    split = json.loads(long.to_json(orient="split", date_format="iso", index=False))
    answer = post(server, {"dataframe_split": split, "params": {"horizon": 24}})
    found = pd.DataFrame(answer["predictions"])
    assert list(found.id) == list(expected.id)
    assert list(pd.to_datetime(found.timestamp)) == list(expected.timestamp)
    np.testing.assert_allclose(found[QUANTILES].astype("float32"), expected[QUANTILES], rtol=1e-4)


def test_the_served_champion_names_what_it_cannot_use(server: int) -> None:
    twice = [["kitchen", "2026-01-01T00:00:00", 1.0], ["kitchen", "2026-01-01T00:00:00", 2.0]]
    body = {"dataframe_split": {"columns": ["id", "timestamp", "target"], "data": twice}}
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(server, body)
    assert "the data frame, column 'timestamp', row 2" in raised.value.read().decode()
