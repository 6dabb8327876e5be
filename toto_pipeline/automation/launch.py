"""Running the job `retrain` from a program: `python -m toto_pipeline.automation.launch --settings FILE --run-id ID`.

The run is executed in this process and recorded in the home's Dagster instance, so the UI shows it like any other. One
JSON object a line on stdout says where it stands:

    {"stage": "trained_model", "state": "started" | "succeeded" | "failed" | "skipped", "seconds": 1.2, "message": ""}
    {"outcome": "promoted" | "refused" | "failed" | "canceled", "message": "...", "exit_code": 0}
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run

from toto_pipeline import errors
from toto_pipeline.automation.instance import prepare_instance
from toto_pipeline.automation.jobs import RETRAIN, run_config
from toto_pipeline.automation.sensors import end_mlflow_run
from toto_pipeline.config import RetrainSettings, build
from toto_pipeline.errors import PipelineError
from toto_pipeline.events.processes import is_alive, process_name
from toto_pipeline.home import Home
from toto_pipeline.training.process import die_with_parent

REFUSED_EXIT_CODE = 10
STARTED_BY, COMMAND_LINE, PROCESS = "toto/started_by", "command line", "toto/process"
"""Tags of a run that the command line started: that it did, and the process that executes it."""
STAGES = (
    "series_snapshot",
    "training_data",
    "trained_model",
    "evaluation_report",
    "promoted_checkpoint",
    "run_dashboard",
)
CHECK_STEPS = (
    "evaluation_report_beats_baseline",
    "evaluation_report_not_worse_than_champion",
    "evaluation_report_guards_hold",
)
"""Steps of the blocking checks: a run that failed elsewhere was not refused, whatever the gate said before."""
_STATES = {
    dg.DagsterEventType.STEP_START: "started",
    dg.DagsterEventType.STEP_SUCCESS: "succeeded",
    dg.DagsterEventType.STEP_FAILURE: "failed",
    dg.DagsterEventType.STEP_SKIPPED: "skipped",
}


def launch(settings: RetrainSettings, run_id: str, home: Home) -> int:
    """Run the whole pipeline; the exit code."""
    os.environ["DAGSTER_HOME"] = str(prepare_instance(home))
    with dg.DagsterInstance.get() as instance:
        end_dead_runs(instance)
        location = ReconstructableRepository.for_module("toto_pipeline.definitions", "defs")
        job = location.get_reconstructable_job(RETRAIN)
        run = instance.create_run_for_job(
            job.get_definition(),
            run_id=run_id,
            run_config=run_config(settings),
            tags={STARTED_BY: COMMAND_LINE, PROCESS: process_name()},
            job_code_origin=job.get_python_origin(),
            asset_selection=job.get_definition().asset_layer.selected_asset_keys,
        )
        reporter = _Reporter()
        instance.add_event_listener(run_id, reporter)
        execute_run(job, run, instance)
        finished = instance.get_run_by_id(run_id)
    status = finished.status if finished else dg.DagsterRunStatus.FAILURE
    _end_mlflow_run(home, run_id, status)
    return _report_outcome(status, reporter.failure, home.run(run_id))


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Record as failed what the command line started and a crash or a reboot ended, and give back its pool slots.

    Where no daemon runs nobody else would, and the next run would wait for the slot of a dead one for ever.
    """
    unfinished = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING],
        tags={STARTED_BY: COMMAND_LINE},
    )
    dead = [run for run in instance.get_runs(unfinished) if not is_alive(run.tags.get(PROCESS, ""))]
    for run in dead:
        instance.report_run_failed(run, "The process that executed this run is gone.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def _end_mlflow_run(home: Home, run_id: str, status: dg.DagsterRunStatus) -> None:
    """No daemon need run beside the command line, so its sensors cannot be left to do this."""
    try:
        end_mlflow_run(home, run_id, status)
    except PipelineError as error:  # the run itself has ended as it has; what MLflow shows is made up for later
        print(error, file=sys.stderr)


class _Reporter:
    """Prints a line for each stage that begins or ends, and remembers the first failure."""

    def __init__(self) -> None:
        self.failure: dg.DagsterEvent | None = None
        self._started: dict[str, float] = {}

    def __call__(self, record: dg.EventLogEntry) -> None:
        event = record.dagster_event
        state = _STATES.get(event.event_type) if event else None
        if event is None or state is None or event.step_key is None:
            return
        if state == "started":
            self._started[event.step_key] = time.monotonic()
        if state == "failed" and self.failure is None:
            self.failure = event
        if event.step_key in STAGES:
            seconds = time.monotonic() - self._started.get(event.step_key, time.monotonic())
            message = failure_text(event) if state == "failed" else ""
            _say({"stage": event.step_key, "state": state, "seconds": round(seconds, 3), "message": message})


def failure_text(event: dg.DagsterEvent) -> str:
    """What the failed step had to say: the text of a user's mistake, or the error itself."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return str(error.message).strip() if error else "failed without a reason"


def _report_outcome(status: dg.DagsterRunStatus, failure: dg.DagsterEvent | None, run_folder: Path) -> int:
    decision = _decision(run_folder)
    if status == dg.DagsterRunStatus.SUCCESS:
        return _end("promoted", f"version {decision.get('version')} is the champion", 0)
    if status == dg.DagsterRunStatus.CANCELED:
        return _end("canceled", "stopped from outside", 130)
    if decision.get("promote") is False and failure is not None and failure.step_key in CHECK_STEPS:
        broken = [rule["text"] for rule in decision["rules"] if not rule["passed"]]
        return _end("refused", " ".join(broken), REFUSED_EXIT_CODE)
    if failure is None:
        return _end("failed", "the run failed before its first step; see dagster.log", 1)
    return _end("failed", failure_text(failure), _exit_code(failure))


def _exit_code(failure: dg.DagsterEvent) -> int:
    user_failure = failure.step_failure_data.user_failure_data
    name = user_failure.metadata.get("error") if user_failure else None
    kind = getattr(errors, str(name.value), None) if name is not None else None
    return kind.exit_code if isinstance(kind, type) and issubclass(kind, PipelineError) else 1


def _decision(run_folder: Path) -> dict[str, Any]:
    try:
        decision: dict[str, Any] = json.loads((run_folder / "decision.json").read_bytes())
    except FileNotFoundError:
        return {}  # the run ended before it came to a decision
    return decision


def _end(outcome: str, message: str, exit_code: int) -> int:
    _say({"outcome": outcome, "message": message, "exit_code": exit_code})
    return exit_code


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the job `retrain` in this process.")
    parser.add_argument("--settings", type=Path, required=True, help="RetrainSettings as JSON")
    parser.add_argument("--run-id", required=True, help="a new UUID")
    arguments = parser.parse_args()
    die_with_parent(signal.SIGTERM)
    try:
        values = json.loads(arguments.settings.read_bytes())
        settings = build(RetrainSettings, values, file=arguments.settings)
        return launch(settings, arguments.run_id, Home.from_environment())
    except PipelineError as error:
        return _end("failed", str(error), error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
