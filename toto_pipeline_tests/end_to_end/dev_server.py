"""A real `dagster dev` on a free port of loopback, and the few GraphQL calls that the UI itself makes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from toto_pipeline.automation.instance import prepare_instance
from toto_pipeline.home import Home

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0


class DevServer:
    """`with DevServer(home) as dev:` gives a running UI at `dev.url`; leaving the block stops every process of it."""

    def __init__(self, home: Home, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self._environment = environment or {}
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.root / "dev.log"

    def __enter__(self) -> DevServer:
        folder = prepare_instance(self.home)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("dagster")),
                    *("dev", "-w", str(ROOT / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(self.port)),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    **self._environment,
                    "DAGSTER_HOME": str(folder),
                    "TOTO_HOME": str(self.home.root),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_for(self._answers, START_SECONDS, "dagster dev to answer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait_for(self, ready: Callable[[], Any], seconds: float, what: str) -> Any:
        """Poll until `ready()` is true; its value. The bound is there so that a test fails instead of hanging."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := ready():
                return value
            if self._process.poll() is not None:
                raise AssertionError(f"dagster dev ended:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        raise AssertionError(f"waited {seconds} s for {what}:\n{self.log.read_text()[-3000:]}")

    def query(self, text: str, **variables: Any) -> Any:
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            result = json.load(answer)
        assert "errors" not in result, result["errors"]
        return result["data"]

    def launch(self, run_config: dict[str, Any]) -> str:
        """Launch the job `retrain` as the launchpad does; the run's id."""
        result = self.query(
            """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
                 __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
                 ... on RunConfigValidationInvalid { errors { message } } } }""",
            params={"selector": _SELECTOR, "runConfigData": json.dumps(run_config), "mode": "default"},
        )["launchRun"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return str(result["run"]["runId"])

    def status(self, run_id: str) -> str:
        run = self.query("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)
        return str(run["runOrError"]["status"])

    def wait_until_ended(self, run_id: str, seconds: float = 400.0) -> str:
        def ended() -> str | None:
            status = self.status(run_id)
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

        return str(self.wait_for(ended, seconds, f"run {run_id} to end"))

    def terminate(self, run_id: str) -> None:
        result = self.query(
            "mutation($id: String!) { terminateRun(runId: $id) { __typename ... on PythonError { message } } }",
            id=run_id,
        )
        assert result["terminateRun"]["__typename"] == "TerminateRunSuccess", result

    def retry(self, run_id: str) -> str:
        """Re-execute a run from failure, as the UI's button does; the new run's id."""
        result = self.query(
            """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
                 __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }""",
            params={"parentRunId": run_id, "strategy": "FROM_FAILURE"},
        )["launchRunReexecution"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return str(result["run"]["runId"])

    def daemon(self) -> psutil.Process:
        """The daemon that launches queued runs, schedules and sensors."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return next(child for child in children if "daemon" in " ".join(child.cmdline()))

    def materializations(self, asset: str) -> list[dict[str, Any]]:
        """Newest first: run id, Unix milliseconds, and metadata as label to value."""
        found = self.query(
            """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
                 assetMaterializations { runId timestamp metadataEntries { label
                   ... on TextMetadataEntry { text } ... on IntMetadataEntry { intValue }
                   ... on FloatMetadataEntry { floatValue } ... on PathMetadataEntry { path }
                   ... on PipelineRunMetadataEntry { runId } ... on AssetMetadataEntry { assetKey { path } }
                 } } } } }""",
            key={"path": [asset]},
        )["assetOrError"]
        return [
            {**entry, "metadata": {m["label"]: _value(m) for m in entry["metadataEntries"]}}
            for entry in found.get("assetMaterializations", [])
        ]

    def _answers(self) -> bool:
        try:
            locations = self.query("{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }")
        except OSError:
            return False
        entries = locations["workspaceOrError"]["locationEntries"]
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)


_SELECTOR = {
    "repositoryLocationName": "toto_pipeline",
    "repositoryName": "__repository__",
    "jobName": "retrain",
}


def _value(entry: dict[str, Any]) -> Any:
    for key in ("text", "intValue", "floatValue", "path", "runId", "assetKey"):
        if entry.get(key) is not None:
            return entry[key]
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
