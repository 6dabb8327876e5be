"""What each way to log costs the training process, and what it keeps of a run that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.observability.loggers import available
from benchmarks.observability.worker import TIMES_FILE

ROOT = Path(__file__).parents[2]
OURS = "TrainingLogger, all sinks"
STEPS = 80
LIMIT_RATIO, LIMIT_INSIDE, LIMIT_MEMORY = 1.005, 0.001, 10 << 20
LIMIT_MEDIAN_SECONDS, LIMIT_P99_SECONDS = 5e-6, 50e-6
FLUSH_SECONDS = 1.0
WRITING_SECONDS = 0.2
"""What a flush itself may take on a busy machine."""

Reader = Callable[[Path], set[int]]
"""From a folder to the steps whose loss can be read there."""


class Process:
    """A worker process, told to work in turns."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir(parents=True)
        words = [sys.executable, "-m", "benchmarks.observability.worker", name, str(folder), str(STEPS)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOTO_HOME": str(folder), "PYTHONPATH": path}
        with (folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env=environment, cwd=folder
            )
        self._answer()
        self.epochs: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def epoch(self) -> None:
        self.epochs.append(self._ask("epoch"))

    def end(self) -> None:
        self.summary = self._ask("end")

    def kill(self, after_seconds: float) -> float:
        """SIGKILL in the midst of an epoch; the time of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"epoch\n")
        self._process.stdin.flush()
        time.sleep(after_seconds)
        self._process.send_signal(signal.SIGKILL)
        killed = time.time()
        self._process.wait()
        return killed

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died: {(self.folder / 'output').read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run(quick: bool) -> list[dict[str, Any]]:
    rounds = 3 if quick else 30
    with tempfile.TemporaryDirectory() as folder:
        processes = _measure(Path(folder), rounds)
        results = [result for name, process in processes.items() for result in _describe(name, process, processes)]
        return results + kept_after_kill(Path(folder), 2 if quick else 10)


def _measure(folder: Path, rounds: int) -> dict[str, Process]:
    order = random.Random(0)
    processes = {name: Process(name, folder / str(n)) for n, name in enumerate(available())}
    try:
        for _ in range(rounds + 1):  # the first is not counted: what is imported or opened late is met there
            for process in order.sample(list(processes.values()), len(processes)):
                process.epoch()
        for process in processes.values():
            process.end()
    finally:
        for process in processes.values():
            process.__exit__(None, None, None)
    return processes


def _describe(name: str, process: Process, processes: dict[str, Process]) -> list[dict[str, Any]]:
    if name == "bare":
        return []
    bare = [processes["bare"]] if name == "bare again" else [processes["bare"], processes["bare again"]]
    ours = name == OURS
    results = [
        *_ratio(name, "wall", process, bare, LIMIT_RATIO if ours else None),
        *_ratio(name, "cpu", process, bare, None),
    ]
    if name == "bare again":
        return results
    inside = sum(e["inside"] for e in process.epochs[1:]) / sum(e["wall"] for e in process.epochs[1:])
    memory = process.summary["memory"] - statistics.mean(each.summary["memory"] for each in bare)
    median, p99 = process.summary["median"], process.summary["p99"]
    return [
        *results,
        _result(f"{name}: time inside its calls", inside, "share", LIMIT_INSIDE if ours else None),
        _result(f"{name}: a step's call, median", median * 1e6, "us", LIMIT_MEDIAN_SECONDS * 1e6 if ours else None),
        _result(f"{name}: a step's call, 99th percentile", p99 * 1e6, "us", LIMIT_P99_SECONDS * 1e6 if ours else None),
        _result(f"{name}: memory added", memory / (1 << 20), "MiB", LIMIT_MEMORY / (1 << 20) if ours else None),
    ]


def _ratio(
    name: str, clock: str, process: Process, bare: Sequence[Process], limit: float | None
) -> list[dict[str, Any]]:
    """The median over rounds, and its 95 % interval by a bootstrap of the rounds.

    Two bare processes that do the same differ by up to 2 % all along, so the others are measured by the mean of both.
    """
    rounds = zip(*(each.epochs[1:] for each in bare), strict=True)
    base = [statistics.mean(epoch[clock] for epoch in epochs) for epochs in rounds]
    ratios = [own[clock] / other for own, other in zip(process.epochs[1:], base, strict=True)]
    what = "wall time" if clock == "wall" else "CPU time of the process"
    low, high = _interval(ratios)
    return [
        _result(f"{name}: {what} / bare", statistics.median(ratios), "ratio", limit),
        _result(f"{name}: {what} / bare, 95 % from", low, "ratio", None),
        _result(f"{name}: {what} / bare, 95 % to", high, "ratio", None),
    ]


def _interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples)]


def kept_after_kill(folder: Path, kills: int) -> list[dict[str, Any]]:
    """Steps that are readable after a SIGKILL at a random instant: of all, and of ours those older than a flush."""
    results = []
    for number, (name, read) in enumerate(READERS.items()):
        if name not in available():
            continue
        draw = random.Random(0)
        outcomes = [
            _kill(name, folder / f"killed-{number}-{kill}", draw.uniform(0.3, 1.9), read) for kill in range(kills)
        ]
        of_all, of_old = (min(shares) for shares in zip(*outcomes, strict=True))
        results.append(_result(f"{name}: kept of the steps after SIGKILL, least of {kills}", of_all, "share", None))
        if name == OURS:
            results.append(
                {
                    **_result(
                        f"{name}: kept of the steps older than {FLUSH_SECONDS} s, least of {kills}",
                        of_old,
                        "share",
                        None,
                    ),
                    "limit": ">= 1",
                    "ok": of_old >= 1,
                }
            )
    return results


def _kill(name: str, folder: Path, after_seconds: float, read: Reader) -> tuple[float, float]:
    """The readable shares of all steps, and of those that were logged more than a flush before the kill."""
    with Process(name, folder) as process:
        process.epoch()
        killed = process.kill(after_seconds)
    logged = [time for time in np.fromfile(folder / TIMES_FILE).tolist() if time > 0]
    readable = read(folder)
    old = [step for step, at in enumerate(logged, start=1) if at < killed - FLUSH_SECONDS - WRITING_SECONDS]
    kept = sum(step in readable for step in range(1, len(logged) + 1))
    return kept / len(logged), sum(step in readable for step in old) / len(old)


def _of_our_log(folder: Path) -> set[int]:
    from toto_pipeline.events.log import read_events

    return {int(event["step"]) for event in read_events(folder / "runs" / "run") if event["type"] == "step"}


def _of_tensorboard(folder: Path) -> set[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: set[int] = set()
    for file in folder.rglob("events.out.tfevents.*"):
        accumulator = EventAccumulator(str(file), size_guidance={"scalars": 0})
        accumulator.Reload()
        if "loss" in accumulator.Tags()["scalars"]:
            found |= {event.step for event in accumulator.Scalars("loss")}
    return found


def _of_mlflow(folder: Path) -> set[int]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return {int(step) for (step,) in connection.execute("select step from metrics where key = 'loss'")}


def _of_wandb(folder: Path) -> set[int]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    found = set()
    for file in folder.rglob("*.wandb"):
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                found.add(record.history.step.num)
    return found


READERS: dict[str, Reader] = {
    OURS: _of_our_log,
    "TensorBoard": _of_tensorboard,
    "MLflow": _of_mlflow,
    "MLflow, asynchronous": _of_mlflow,
    "Lightning": _of_tensorboard,
    "wandb, offline": _of_wandb,
}


def _result(name: str, value: float, unit: str, limit: float | None) -> dict[str, Any]:
    ok = None if limit is None else value <= limit
    return {"name": name, "value": value, "unit": unit, "limit": None if limit is None else f"<= {limit:g}", "ok": ok}
