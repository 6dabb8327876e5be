"""Starting the training in child processes, and following it.

    pipeline step -> agent (torch elastic) -> training process(es)

The agent starts the training, starts it again from its last good checkpoint when it dies, and stops it when told to.
Each process asks the kernel to be killed when its parent dies, so nothing trains on unattended. The pipeline step
itself only reads the run's event log. On several machines each has an agent; the first is started by the pipeline
step, the others by `take_part`, and they find each other at the rendezvous address.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from toto_pipeline import errors
from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import PipelineError, TrainingError
from toto_pipeline.events.log import end_of_log, follow, read_events
from toto_pipeline.events.processes import process_name
from toto_pipeline.events.schema import Event
from toto_pipeline.settings.training import TrainingSettings
from toto_pipeline.training.process import (
    LAUNCHER_VARIABLE,
    PARENT_VARIABLE,
    die_with_parent,
    refuse_a_second_launcher,
)
from toto_pipeline.training.run_files import TRAINING_FILE, TrainingOrder, read_order, write_order

LOG_FILE = "trainer.log"
ENDING_SECONDS = 10.0
"""What the agent may take to end, beyond the grace that the training processes have."""


class Training:
    """A training under way. Leaving the `with` block stops whatever is still running."""

    def __init__(self, run_folder: Path, order: TrainingOrder) -> None:
        self.run_folder = run_folder
        self._order = order

    def __enter__(self) -> Training:
        refuse_a_second_launcher(self.run_folder)  # before anything of the run is written
        write_order(self.run_folder, self._order)
        self._first_event = end_of_log(self.run_folder)
        write_file(self.run_folder / "launcher.pid", str(os.getpid()).encode())
        with (self.run_folder / LOG_FILE).open("ab") as log:
            self._agent = subprocess.Popen(
                _agent_command(self.run_folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(self._order.settings),
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def events(self) -> Iterator[Event]:
        """The events of this start, as they come, until the training has ended."""
        yield from follow(self.run_folder, lambda: self._agent.poll() is not None, cursor=self._first_event)

    def ending(self) -> Event:
        """The `run_ended` event, after the training has ended in order.

        Raises:
            PipelineError: it failed; the error that the training process named, with its message.
        """
        self._agent.wait()
        ended = [e for e in read_events(self.run_folder, self._first_event) if e["type"] == "run_ended"]
        if not ended:
            raise TrainingError(
                f"{self.run_folder}: the training died (exit {self._agent.returncode}), with "
                f"{self._order.settings.max_restarts} restarts allowed. The end of {LOG_FILE}:\n{self._last_words()}"
            )
        if ended[-1]["outcome"] == "failed":
            kind = getattr(errors, str(ended[-1].get("error")), TrainingError)
            raise kind_error(kind, str(ended[-1]["reason"]))
        return ended[-1]

    def stop(self) -> None:
        """End the training now: ask, and after a grace kill."""
        if self._agent.poll() is not None:
            return
        self._agent.send_signal(signal.SIGTERM)
        try:
            self._agent.wait(self._order.settings.checkpoints.grace_seconds + ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._agent.pid, signal.SIGKILL)
            self._agent.wait()

    def _last_words(self, lines: int = 15) -> str:
        try:
            text = (self.run_folder / LOG_FILE).read_text(errors="replace")
        except FileNotFoundError:
            return "(nothing was written)"
        return "\n".join(text.splitlines()[-lines:])


def kind_error(kind: type[PipelineError], message: str) -> PipelineError:
    """An error of `kind` with a message that is already whole."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def take_part(run_folder: Path, *, waiting: Callable[[], None] = lambda: None, poll_seconds: float = 0.5) -> int:
    """Train as a further machine in a run that another has started or is about to; the agent's exit code.

    The run folder must be on a disk that the machines share. `waiting` is called now and then until the run is there.
    """
    while not (run_folder / TRAINING_FILE).is_file():
        waiting()
        time.sleep(poll_seconds)
    settings = read_order(run_folder).settings
    if settings.distributed.nodes == 1:
        raise TrainingError(
            f"{run_folder}: this run trains on one machine. Expected: training.distributed.nodes of 2 or more. "
            "What to do: set it where the run is started."
        )
    agent = subprocess.Popen(_agent_command(run_folder), stdin=subprocess.DEVNULL, env=_environment(settings))
    try:
        return agent.wait()
    except KeyboardInterrupt:
        agent.send_signal(signal.SIGTERM)
        agent.wait()
        raise


def agent() -> None:
    """The torch elastic agent of one machine: `RUN_FOLDER` in argv."""
    die_with_parent(signal.SIGTERM)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    run_folder = Path(sys.argv[1])
    settings = read_order(run_folder).settings
    spread = settings.distributed
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=spread.nodes,
        max_nodes=spread.nodes,
        nproc_per_node=spread.processes,
        run_id=run_folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=spread.rendezvous or "localhost:0",
        local_addr="127.0.0.1" if spread.nodes == 1 else None,
        max_restarts=settings.max_restarts,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(),
        shutdown_timeout=math.ceil(settings.checkpoints.grace_seconds),
    )
    command = ["-u", "-m", "toto_pipeline.training", str(run_folder)]
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as ended:
        sys.exit(128 + ended.sigval)
    except ChildFailedError as error:  # what the process itself had to say is above it in the log
        rank, failure = error.get_first_failure()
        print(f"training process of rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr)
        sys.exit(1)


def _agent_command(run_folder: Path) -> list[str]:
    return [sys.executable, "-c", "from toto_pipeline.training.launcher import agent; agent()", str(run_folder)]


def _environment(settings: TrainingSettings) -> dict[str, str]:
    """What the agent and, through it, the training processes inherit."""
    environment = {
        **os.environ,
        # A store that is shared by all starts hands a restarted process the addresses of dead ones (torch 2.15).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        PARENT_VARIABLE: str(os.getpid()),
        LAUNCHER_VARIABLE: process_name(),
        "OMP_NUM_THREADS": str(settings.threads),
    }
    if settings.deterministic:
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return environment
