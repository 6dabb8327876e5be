"""The scripts of the guide to other frameworks run, and what they compute is in the log and in TensorBoard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toto_pipeline.events.log import read_events
from toto_pipeline.monitoring.sink import FollowedRun
from toto_pipeline_tests.contracts.tools import TOOLS
from toto_pipeline_tests.integrations.processes import environment, install_transformers

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GUIDE = EXAMPLES.parent / "docs" / "other_frameworks.md"
MOST_LINES = 40


def run_script(name: str, folder: Path, packages: Path | None = None) -> tuple[FollowedRun, dict[str, Any], str]:
    """The run that a script made, what it computed, and what it printed."""
    output = folder / "computed.json"
    done = subprocess.run(
        [sys.executable, "-m", "toto_pipeline_tests.examples.run_watched", str(EXAMPLES / f"{name}.py"), str(output)],
        cwd=folder,
        env=environment(packages),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return FollowedRun(folder / "runs" / name), json.loads(output.read_bytes()), done.stdout


def check(name: str, folder: Path, packages: Path | None = None, *, steps: int, epochs: int = 3) -> None:
    run, computed, printed = run_script(name, folder, packages)
    events = list(read_events(run.folder))
    recorded = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in recorded] == list(range(1, steps + 1))
    assert [event["loss"] for event in recorded] == pytest.approx(computed["losses"], rel=1e-4)
    assert all(event["learning_rate"] > 0 for event in recorded)
    ends = [event for event in events if event["type"] == "epoch"]
    assert [(event["epoch"], event["step"]) for event in ends] == [
        (epoch, epoch * steps // epochs) for epoch in range(1, epochs + 1)
    ]
    assert ends[-1]["validation_loss"] == pytest.approx(computed["validation"], rel=1e-4)
    assert events[-1]["type"] == "run_ended" and events[-1]["outcome"] == "completed"

    (command,) = re.findall(r"toto-pipeline (follow .*)", printed)
    followed = subprocess.run(
        [sys.executable, "-m", "toto_pipeline.cli", *command.split()],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert followed.returncode == 0, followed.stderr
    assert f"tensorboard --logdir {run.folder.relative_to(folder)}\n" in printed
    tensorboard = TOOLS["tensorboard"]
    shown = [point for point in tensorboard.shown(run) if not point[0].startswith(("host", "process", "gpu"))]
    expected = [event for event in events if event["type"] != "system"]
    assert shown == tensorboard.expected(expected)


def test_a_plain_loop(tmp_path: Path) -> None:
    check("plain_loop", tmp_path, steps=150)


@pytest.mark.slow
def test_lightning(tmp_path: Path) -> None:
    check("lightning_run", tmp_path, steps=150)


@pytest.mark.slow
def test_transformers(tmp_path: Path) -> None:
    check("transformers_run", tmp_path, install_transformers(tmp_path / "packages"), steps=60)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_short_and_are_in_the_guide(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert f"../examples/{script.name}" in GUIDE.read_text(encoding="utf-8")


def test_the_commands_of_the_guide_are_those_that_are_run_here() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    scripts = [f"python examples/{name}.py" for name in ("plain_loop", "lightning_run", "transformers_run")]
    assert "".join(blocks).splitlines() == [
        *scripts,
        "tensorboard --logdir runs",
        "toto-pipeline follow runs/plain_loop",
    ]
