"""Sinks for the tests of the follower, a package that offers them, and processes that write a log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import psutil

import toto_pipeline
from toto_pipeline.errors import ConfigError
from toto_pipeline.events.log import EventWriter, read_events
from toto_pipeline.events.processes import process_name
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, State

ROOTS = [Path(toto_pipeline.__file__).resolve().parents[1], Path(__file__).resolve().parents[2]]
PATIENCE_SECONDS = 60.0


class FileSink:
    """Appends events to a file, and undoes with its state what an earlier process had behind it.

    Args:
        kill: kill the process in the `kill[1]`-th write: "before" it, "halfway", or "after" it, its state not yet kept.
        fails_while: raise in every call as long as this file is there.
        hangs_while: do not come back from `write` as long as this file is there.
        wrong_while: raise a ConfigError as long as this file is there.
    """

    name = "file"

    def __init__(
        self,
        *,
        folder: str = "file",
        kill: tuple[str, int] | None = None,
        fails_while: str | None = None,
        hangs_while: str | None = None,
        wrong_while: str | None = None,
    ) -> None:
        self._folder = folder
        self._kill = kill
        self._fails_while = fails_while
        self._hangs_while = hangs_while
        self._wrong_while = wrong_while
        self._writes = 0
        self._length = 0

    def open(self, run: FollowedRun, state: State) -> None:
        self._place = run.folder / self._folder
        self._place.mkdir(exist_ok=True)
        self._check()
        self._length = int(state.get("length", 0))
        self._tell("open", home=str(run.home))

    def write(self, events: Sequence[Event]) -> State:
        self._check()
        self._writes += 1
        self._die("before")
        while self._hangs_while and Path(self._hangs_while).exists():
            time.sleep(0.01)
        lines = [orjson.dumps(event) + b"\n" for event in events]
        with (self._place / "events.jsonl").open("r+b" if (self._place / "events.jsonl").exists() else "w+b") as file:
            file.truncate(self._length)
            file.seek(self._length)
            file.writelines(lines[: len(lines) // 2])
            file.flush()
            self._die("halfway")
            file.writelines(lines[len(lines) // 2 :])
            file.flush()
        self._length += sum(map(len, lines))
        self._die("after")
        return {"length": self._length}

    def close(self, outcome: RunOutcome | None) -> None:
        self._check()
        self._tell("close", outcome=outcome, modules=sorted(sys.modules))

    def _check(self) -> None:
        if self._wrong_while and Path(self._wrong_while).exists():
            raise ConfigError("the file sink is set up wrongly")
        if self._fails_while and Path(self._fails_while).exists():
            raise ConnectionError("the file sink's server is away")

    def _die(self, when: str) -> None:
        if self._kill is not None and list(self._kill) == [when, self._writes]:
            os.kill(os.getpid(), signal.SIGKILL)

    def _tell(self, call: str, **fields: Any) -> None:
        with (self._place / "calls.jsonl").open("ab") as file:
            file.write(orjson.dumps({"call": call, "pid": os.getpid(), **fields}) + b"\n")


def written(run_folder: Path, folder: str = "file") -> list[Event]:
    """The events that a `FileSink` has."""
    file = run_folder / folder / "events.jsonl"
    return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def calls(run_folder: Path, folder: str = "file") -> list[dict[str, Any]]:
    file = run_folder / folder / "calls.jsonl"
    return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def outcomes(run_folder: Path, folder: str = "file") -> list[str | None]:
    """What a `FileSink` was closed with, each time."""
    return [call["outcome"] for call in calls(run_folder, folder) if call["call"] == "close"]


SINKS = {
    "file": "toto_pipeline_tests.monitoring.small_sinks:FileSink",
    "other": "toto_pipeline_tests.monitoring.small_sinks:FileSink",
    "broken": "no_such_module_of_a_plug_in:Sink",
}


def make_package(folder: Path, sinks: Mapping[str, str] | None = None, *, name: str = "small-sinks") -> Path:
    """A folder for the path of modules, with an installed package that offers sinks."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{sink} = {value}" for sink, value in (sinks or SINKS).items()]
    (info / "entry_points.txt").write_text("\n".join(["[toto_pipeline.sinks]", *lines, ""]))
    return folder


def environment(package: Path) -> dict[str, str]:
    """What a process needs to find the sinks of a package, and this package itself."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [package, *ROOTS]))}


def command(run_folder: Path, sinks: Mapping[str, Mapping[str, Any]] | None, *words: str) -> list[str]:
    given = [] if sinks is None else ["--sinks", json.dumps(sinks)]
    return [sys.executable, "-m", "toto_pipeline.monitoring", str(run_folder), *given, *words]


def wait_until(condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """The condition's value, once it is true; the bound is generous and is never reached in order."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "this never came"
        time.sleep(0.02)
    return value


class Trainer:
    """A process that writes a log, event by event, as it is told; a context manager."""

    def __init__(self, run_folder: Path, *, attempt: int = 1, supervisor: str | None = None) -> None:
        self.run_folder = run_folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(run_folder), str(attempt), supervisor or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(run_folder),
        )
        self._answer()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def name(self) -> str:
        return process_name(psutil.Process(self._process.pid))

    def step(self, count: int = 1) -> None:
        """Write so many steps."""
        self._tell({"steps": count})

    def end(self, outcome: str = "completed") -> None:
        """Write the end of the run, and live on."""
        self._tell({"outcome": outcome})

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"


def _train(run_folder: Path, attempt: int, supervisor: str | None) -> None:
    import platform

    with EventWriter(run_folder, attempt=attempt) as log:
        log.append("run_started", process=process_name(), supervisor=supervisor, host=platform.node(), pid=os.getpid())
        log.flush()
        print("done", flush=True)
        step = 0
        for line in sys.stdin:
            order = json.loads(line)
            for _ in range(order.get("steps", 0)):
                step += 1
                log.append("step", step=step, loss=1.0 / step)
            if "outcome" in order:
                log.append("run_ended", step=step, outcome=order["outcome"], reason="told to", best=None)
            log.flush()
            print("done", flush=True)


def write_run(run_folder: Path, steps: int, *, outcome: str | None = "completed", attempt: int = 1) -> list[Event]:
    """An attempt of a run whose process is not there any more; all events of the run."""
    import platform

    with EventWriter(run_folder, attempt=attempt) as log:
        log.append("run_started", process="1@0", supervisor=None, host=platform.node(), pid=1)
        for step in range(1, steps + 1):
            log.append("step", step=step, loss=1.0 / step)
        if outcome is not None:
            log.append("run_ended", outcome=outcome, reason="told to", best=None)
    return list(read_events(run_folder))


if __name__ == "__main__":
    _train(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None)
