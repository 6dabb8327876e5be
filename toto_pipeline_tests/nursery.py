"""A process that has imported everything a trainer needs, and forks real trainers that the tests may kill.

    python -m toto_pipeline_tests.nursery

Importing Toto takes seconds and a fork takes none, so a test can start and kill dozens of trainers. A request is a line
of JSON on stdin, {"run": FOLDER, "fault": NAME, "at": N, "kill_after": SECONDS}; the answer is a line on stdout,
{"code": exit code, negative for a signal, "seconds": how long it lived}. A fault is caused inside the child, at the
N-th time that it comes by.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any


class Nursery:
    """The tests' side: `with Nursery() as nursery: nursery.train(run_folder)`."""

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "toto_pipeline_tests.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def train(
        self, run_folder: Path, *, fault: str | None = None, at: int = 0, kill_after: float | None = None
    ) -> dict[str, Any]:
        """Start a trainer in `run_folder`, wait until it is gone, and say how it ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"run": str(run_folder), "fault": fault, "at": at, "kill_after": kill_after}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _at(count: int, act: Callable[[], None]) -> Callable[[], None]:
    """Something that acts the `count`-th time it is called."""
    calls = 0

    def called() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            act()

    return called


def _before(owner: type, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def patched(*arguments: Any, **keywords: Any) -> Any:
        act()
        return original(*arguments, **keywords)

    setattr(owner, name, patched)


def _cause(fault: str, at: int) -> None:
    """Arrange in this process, a new child, for `fault` to happen."""
    from toto_pipeline.checkpoints.store import LocalFileSystem
    from toto_pipeline.models.toto2 import Toto2Forecaster
    from toto_pipeline.training import trainer

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def ask_to_stop() -> None:
        signal.raise_signal(signal.SIGTERM)

    if fault == "kill at file operation":
        act = _at(at, kill)
        for name in [n for n in vars(LocalFileSystem) if not n.startswith("_")]:
            _before(LocalFileSystem, name, act)
    elif fault == "kill at loss":
        _before(Toto2Forecaster, "loss", _at(at, kill))
    elif fault == "ask to stop at loss":
        _before(Toto2Forecaster, "loss", _at(at, ask_to_stop))
    elif fault == "ask to stop in validation":
        _before(Toto2Forecaster, "forecast", _at(at, ask_to_stop))
    elif fault == "full disk":
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        validate = trainer.validate

        def fill_up(*arguments: Any, **keywords: Any) -> Any:
            fill()
            return validate(*arguments, **keywords)

        fill = _at(at, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY)))
        trainer.validate = fill_up
    elif fault == "clock runs backwards":
        from toto_pipeline.checkpoints.manager import CheckpointManager
        from toto_pipeline.events.log import EventWriter

        for owner in (CheckpointManager, EventWriter):
            owner.__init__.__kwdefaults__["clock"] = lambda: 1e9 - time.monotonic()
    elif fault == "loss is nan":
        _spoil_losses(Toto2Forecaster, lambda call: call == at)
    elif fault == "loss is nan from":
        _spoil_losses(Toto2Forecaster, lambda call: call >= at)
    else:
        raise ValueError(fault)


def _spoil_losses(forecaster: Any, spoiled: Callable[[int], bool]) -> None:
    original = forecaster.loss
    calls = 0

    def loss(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        value = original(self, *arguments)
        if value.requires_grad:
            calls += 1
        return value * float("nan") if value.requires_grad and spoiled(calls) else value

    forecaster.loss = loss


def _live(request: dict[str, Any]) -> int:
    from toto_pipeline.training.__main__ import main

    if request["fault"]:
        _cause(request["fault"], request["at"])
    return main([request["run"]])


def _fork(request: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with (Path(request["run"]) / "trainer.log").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = _live(request)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = _wait(child, request["kill_after"])
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started}


def _wait(child: int, kill_after: float | None) -> int:
    """The child's wait status; it is killed when `kill_after` seconds are over and it still lives."""
    if kill_after is not None:
        end = os.pidfd_open(child)
        select.select([end], [], [], kill_after)
        os.close(end)
        os.kill(child, signal.SIGKILL)  # a child that has ended is a zombie until it is waited for
    return os.waitpid(child, 0)[1]


def serve() -> None:
    import toto_pipeline.models.toto2
    import toto_pipeline.training.trainer  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
