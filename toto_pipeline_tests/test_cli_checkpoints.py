"""`checkpoints`, `retrain --run-id` and `join`, through the entry point of the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from toto_pipeline.checkpoints.manager import CheckpointManager, State
from toto_pipeline.events.log import EventWriter
from toto_pipeline.home import Home
from toto_pipeline.settings.training import TrainingSettings
from toto_pipeline.training.run_files import TrainingOrder, record_settings, write_order
from toto_pipeline_tests.test_cli import HEAVY, run

NAME = "5e1f0c9a-6d0b-4b7e-9a43-0d3c9a1f6b52"
LOSSES = {10: 3.0, 20: 1.25, 30: 2.0}


def made_run(home: Home, **checkpoints: Any) -> Path:
    """A run with an order to train, and nothing saved yet."""
    folder = home.run(NAME)
    folder.mkdir(parents=True)
    record_settings(folder)
    settings = TrainingSettings.model_validate({"checkpoints": checkpoints})
    write_order(folder, TrainingOrder(settings, "training_data/abc", "abc"))
    return folder


def state(step: int, loss: float) -> State:
    model = {"same": torch.ones(4), "small": torch.full((2, 2), 1 + step / 1000), "large": torch.tensor(float(step))}
    return State(step, step // 10, {"validation_loss": loss}, {"model": model, "optimizer": {"m": torch.ones(2)}}, {})


def saved_run(home: Home, losses: dict[int, float] = LOSSES, **checkpoints: Any) -> Path:
    folder = made_run(home, **checkpoints)
    settings = TrainingSettings.model_validate({"checkpoints": checkpoints}).checkpoints
    with EventWriter(folder) as log, CheckpointManager(folder, settings, report=log.append) as manager:
        manager.prepare()
        for step, loss in losses.items():
            manager.save(state(step, loss))
    return folder


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def listed(home: Home, *words: str) -> tuple[int, dict[str, Any]]:
    done = run("checkpoints", "latest", "--json", *words, home=home.root)
    return done.returncode, json.loads(done.stdout)


def stripped(printed: str) -> list[str]:
    return [line.strip() for line in printed.splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_checkpoints_are_listed_with_what_marks_them(home: Home, tmp_path: Path) -> None:
    folder = saved_run(home, backup_folder=str(tmp_path / "backups"))
    CheckpointManager(folder).pin("step_10", "the champion's [weights]")
    shown = run("checkpoints", NAME[:4], home=home.root)
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = {line.split()[0]: line for line in stripped(shown.stdout) if line.startswith("step_")}
    assert list(rows) == ["step_10", "step_20", "step_30"]
    assert rows["step_10"].endswith("pinned: the champion's [weights]")
    assert "1.2500" in rows["step_20"]
    assert rows["step_20"].endswith("best, backup")
    assert rows["step_30"].endswith("newest")
    assert str(folder / "checkpoints") in shown.stdout


def test_json_tells_the_same_and_stands_alone(home: Home, tmp_path: Path) -> None:
    folder = saved_run(home, backup_folder=str(tmp_path / "backups"))
    CheckpointManager(folder).pin("step_10", "in use")
    code, value = listed(home)
    assert (code, value["run"], value["quarantine"]) == (0, NAME, [])
    names = ("name", "step", "epoch", "validation_loss", "newest", "best", "pinned", "ok", "problem")
    assert [tuple(each[name] for name in names) for each in value["checkpoints"]] == [
        ("step_10", 10, 1, 3.0, False, False, "in use", None, None),
        ("step_20", 20, 2, 1.25, False, True, None, None, None),
        ("step_30", 30, 3, 2.0, True, False, None, None, None),
    ]
    assert [each["backup"] for each in value["checkpoints"]] == [
        None,
        str(tmp_path / "backups" / NAME / "step_20"),
        None,
    ]
    assert all(Path(each["folder"]).is_dir() and each["bytes"] > 0 for each in value["checkpoints"])


def test_the_best_is_best_by_the_metric_of_the_run(home: Home) -> None:
    saved_run(home, mode="max")
    _, value = listed(home)
    assert [each["name"] for each in value["checkpoints"] if each["best"]] == ["step_10"]


def test_an_outdated_backup_is_no_backup(home: Home, tmp_path: Path) -> None:
    saved_run(home, backup_folder=str(tmp_path / "backups"))
    (tmp_path / "backups" / NAME / "step_20").rename(tmp_path / "backups" / NAME / "step_30")
    _, value = listed(home)
    assert [each["backup"] for each in value["checkpoints"]] == [None, None, None]


def test_verify_finds_every_file_whole(home: Home) -> None:
    saved_run(home)
    code, value = listed(home, "--verify")
    assert (code, [each["ok"] for each in value["checkpoints"]]) == (0, [True, True, True])
    shown = run("checkpoints", "latest", "--verify", home=home.root)
    assert (shown.returncode, shown.stdout.count(" ok")) == (0, 3)


def test_verify_names_the_damaged_file_exits_with_5_and_moves_nothing(home: Home) -> None:
    folder = saved_run(home)
    damage(folder / "checkpoints" / "step_20" / "model.safetensors")
    (folder / "checkpoints" / "step_30" / "manifest.json").unlink()
    before = files_below(folder)
    shown = run("checkpoints", "latest", "--verify", home=home.root)
    assert shown.returncode == 5
    assert f"damaged  step_20: {folder}/checkpoints/step_20/model.safetensors: its content differs" in shown.stdout
    assert "unreadable  step_30:" in shown.stdout
    code, value = listed(home, "--verify")
    assert (code, [each["ok"] for each in value["checkpoints"]]) == (5, [True, False, False])
    assert "model.safetensors" in value["checkpoints"][1]["problem"]
    assert files_below(folder) == before


def test_without_verify_only_the_manifests_are_read(home: Home) -> None:
    folder = saved_run(home)
    damage(folder / "checkpoints" / "step_20" / "model.safetensors")
    code, value = listed(home)
    assert (code, value["checkpoints"][1]["problem"]) == (0, None)
    (folder / "checkpoints" / "step_30" / "manifest.json").write_text("{")
    code, value = listed(home)
    assert (code, [each["newest"] for each in value["checkpoints"]]) == (0, [False, True, False])
    assert "manifest.json" in value["checkpoints"][2]["problem"]


def test_the_progress_bar_is_on_stderr(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_run(home)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    done = run("checkpoints", "latest", "--verify", "--json", home=home.root)
    assert "Verifying step_30" in done.stderr
    assert len(json.loads(done.stdout)["checkpoints"]) == 3


def test_what_was_set_aside_is_listed_with_the_reason(home: Home) -> None:
    folder = saved_run(home)
    damage(folder / "checkpoints" / "step_30" / "model.safetensors")
    with EventWriter(folder, attempt=2) as log, CheckpointManager(folder, report=log.append) as manager:
        assert manager.latest() is not None
        manager.save(state(30, 2.0), wait=True)
        damage(folder / "checkpoints" / "step_30" / "optimizer.safetensors")
        assert manager.latest() is not None
    shown = run("checkpoints", "latest", home=home.root).stdout
    assert "quarantine  step_30: " in shown
    _, value = listed(home)
    reasons = {each["name"]: each["reason"] for each in value["quarantine"]}
    assert list(reasons) == ["step_30", "step_30.2"]
    assert "model.safetensors" in reasons["step_30"]
    assert "optimizer.safetensors" in reasons["step_30.2"]
    assert [each["name"] for each in value["checkpoints"]] == ["step_10", "step_20"]


def test_compare_shows_the_tensors_that_differ_most_first(home: Home) -> None:
    saved_run(home)
    shown = run("checkpoints", "latest", "--compare", "10", "20", home=home.root).stdout
    assert "Steps 10 and 20: 2 of 4 tensors differ." in shown
    rows = [line.split() for line in stripped(shown) if line.startswith("model")]
    assert rows == [["model", "10", "0.5", "large"], ["model", "0.01", "0.0098", "small"]]
    code, value = listed(home, "--compare", "10", "20")
    assert (code, value["steps"], len(value["differences"])) == (0, [10, 20], 4)
    assert value["differences"][0] == {"group": "model", "name": "large", "absolute": 10.0, "relative": 0.5}
    same = run("checkpoints", "latest", "--compare", "20", "20", home=home.root).stdout
    assert "0 of 4 tensors differ" in same


def test_compare_names_a_step_that_is_not_there_and_a_damaged_file(home: Home) -> None:
    folder = saved_run(home)
    done = run("checkpoints", "latest", "--compare", "10", "25", home=home.root)
    assert (done.returncode, done.stdout) == (5, "")
    assert "no checkpoint of step 25. Expected: one of the steps 10, 20, 30." in done.stderr
    damage(folder / "checkpoints" / "step_20" / "model.safetensors")
    done = run("checkpoints", "latest", "--compare", "10", "20", home=home.root)
    assert done.returncode == 5
    assert "step_20/model.safetensors: its content differs" in done.stderr
    assert "Traceback" not in done.stderr


def test_listing_and_verifying_import_nothing_heavy(home: Home) -> None:
    saved_run(home)
    script = (
        "import sys; from toto_pipeline.cli import main\n"
        f"sys.argv = ['toto-pipeline', '--home', {str(home.root)!r}, 'checkpoints', 'latest', '--verify']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_an_unknown_run_gets_a_message(home: Home) -> None:
    made_run(home)
    done = run("checkpoints", "abc", home=home.root)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'abc' fits no run. `toto-pipeline runs` lists them" in done.stderr


@pytest.mark.parametrize("words", [(), ("--verify",)])
def test_a_run_without_checkpoints_says_so(home: Home, words: tuple[str, ...]) -> None:
    made_run(home)
    done = run("checkpoints", "latest", *words, home=home.root)
    assert (done.returncode, done.stdout) == (0, f"Run {NAME} has no checkpoints.\n")
    assert listed(home, *words) == (0, {"run": NAME, "checkpoints": [], "quarantine": []})


def test_settings_that_cannot_be_read_are_told_and_hide_no_checkpoint(home: Home) -> None:
    folder = saved_run(home)
    (folder / "training.json").write_text("{")
    done = run("checkpoints", "latest", "--json", home=home.root)
    assert "training.json" in done.stderr
    assert "the best checkpoint and backups are not marked" in done.stderr
    value = json.loads(done.stdout)
    assert [(each["name"], each["best"]) for each in value["checkpoints"]] == [
        ("step_10", False),
        ("step_20", False),
        ("step_30", False),
    ]


@pytest.mark.parametrize("name", ["nightly", "5e1f0c9a", "../5e1f0c9a-6d0b-4b7e-9a43-0d3c9a1f6b52"])
def test_a_run_id_that_is_no_uuid_is_refused_with_the_way_out(home: Home, name: str) -> None:
    done = run("retrain", "--run-id", name, home=home.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--run-id {name!r}: is no UUID. What to do: make one with `uuidgen`." in done.stderr
    assert list(home.runs.iterdir()) == []


def test_a_run_id_that_is_taken_is_refused_and_the_run_stays_as_it_is(home: Home) -> None:
    folder = made_run(home)
    (folder / "settings.json").write_text("{}")
    before = files_below(folder)
    for name in (NAME, NAME.upper(), uuid.UUID(NAME).hex):
        done = run("retrain", "--run-id", name, home=home.root)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"--run-id {NAME}: there is such a run already. Expected: a new one, made with `uuidgen`." in done.stderr
    assert files_below(folder) == before


def test_joining_a_run_that_trains_on_one_machine_says_what_to_set(home: Home) -> None:
    made_run(home)
    done = run("join", NAME, home=home.root)
    assert (done.returncode, done.stdout) == (7, "")
    assert "this run trains on one machine. Expected: training.distributed.nodes of 2 or more." in done.stderr
    assert "Traceback" not in done.stderr
