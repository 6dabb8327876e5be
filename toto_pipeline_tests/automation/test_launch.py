from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psutil
import pytest

from toto_pipeline.automation.instance import prepare_instance
from toto_pipeline.automation.launch import (
    CHECK_STEPS,
    COMMAND_LINE,
    PROCESS,
    STARTED_BY,
    _report_outcome,
    end_dead_runs,
)
from toto_pipeline.config import RetrainSettings
from toto_pipeline.definitions import build_definitions
from toto_pipeline.events.processes import process_name
from toto_pipeline.home import Home


def _started(instance: dg.DagsterInstance, process: str) -> dg.DagsterRun:
    job = build_definitions(RetrainSettings()).resolve_job_def("retrain")
    return instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, tags={STARTED_BY: COMMAND_LINE, PROCESS: process}
    )


def test_a_run_whose_process_is_gone_is_ended_and_gives_its_slot_back(home: Home) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as gone:
        dead_process = process_name(psutil.Process(gone.pid))
        gone.kill()
    with dg.DagsterInstance.from_config(str(prepare_instance(home))) as instance:
        storage = instance.event_log_storage
        dead = _started(instance, dead_process)
        alive = _started(instance, process_name(psutil.Process()))
        storage.initialize_concurrency_limit_to_default("gpu")
        assert storage.claim_concurrency_slot("gpu", dead.run_id, "trained_model").is_claimed
        assert not storage.claim_concurrency_slot("gpu", alive.run_id, "trained_model").is_claimed

        assert end_dead_runs(instance) == [dead.run_id]

        assert storage.claim_concurrency_slot("gpu", alive.run_id, "trained_model").is_claimed
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses[dead.run_id] == dg.DagsterRunStatus.FAILURE
        assert statuses[alive.run_id] == dg.DagsterRunStatus.STARTED
        assert end_dead_runs(instance) == []


def test_a_later_process_with_the_same_number_is_not_taken_for_the_dead_one(home: Home) -> None:
    with dg.DagsterInstance.from_config(str(prepare_instance(home))) as instance:
        dead = _started(instance, f"{psutil.Process().pid}@1")
        assert end_dead_runs(instance) == [dead.run_id]


def _failure(step: str) -> Any:
    data = SimpleNamespace(user_failure_data=None, error=SimpleNamespace(cause=None, message="registry is down"))
    return SimpleNamespace(step_key=step, step_failure_data=data)


@pytest.mark.parametrize(
    ("step", "outcome", "exit_code"),
    [("evaluation_report_beats_baseline", "refused", 10), ("evaluation_report", "failed", 1)],
)
def test_only_a_failed_check_is_a_refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str, outcome: str, exit_code: int
) -> None:
    """Where keeping the refused model failed, the failure is told, not hidden behind the refusal."""
    rules = [{"name": "beats_baseline", "passed": False, "text": "worse"}]
    (tmp_path / "decision.json").write_text(json.dumps({"promote": False, "rules": rules}))
    assert _report_outcome(dg.DagsterRunStatus.FAILURE, _failure(step), tmp_path) == exit_code
    assert json.loads(capsys.readouterr().out)["outcome"] == outcome


def test_the_check_steps_are_those_of_the_job() -> None:
    job = build_definitions(RetrainSettings()).resolve_job_def("retrain")
    assert set(CHECK_STEPS) <= {node.name for node in job.nodes}
