import json
import pickle
from pathlib import Path

import pytest
import torch

from toto_pipeline.checkpoints.manager import Checkpoint, CheckpointManager, State
from toto_pipeline.checkpoints.manifest import verify
from toto_pipeline.errors import CheckpointError


def _state(step: int, loss: float | None = 1.0) -> State:
    tensors = {
        "model": {"weight": torch.full((4, 3), float(step))},
        "optimizer": {"0.step": torch.tensor(float(step))},
        "random": {"cpu": torch.get_rng_state()},
    }
    return State(step, step // 10, loss, tensors, {"note": "ok", "rate": 0.1 + 0.2})


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    manager = CheckpointManager(tmp_path, keep_last=2)
    manager.prepare()
    return manager


class _Reports(list[tuple[str, str]]):
    def __call__(self, folder: Path, moved_to: Path, reason: str) -> None:
        assert moved_to.is_dir()
        self.append((folder.name, reason))


def test_a_state_comes_back_bit_for_bit(manager: CheckpointManager) -> None:
    state = _state(10)
    loaded = manager.load(manager.save(state))
    assert loaded.values == state.values
    for group, tensors in state.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(loaded.tensors[group][name], tensor)
            assert loaded.tensors[group][name].dtype == tensor.dtype


def test_retention_keeps_the_newest_and_the_best(manager: CheckpointManager) -> None:
    for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, float("nan"))]:
        manager.save(_state(step, loss))
    assert [c.name for c in manager.checkpoints()] == ["step_20", "step_40", "step_50"]
    best = manager.best(_Reports())
    assert best is not None and best.name == "step_20"


def _files(checkpoint: Checkpoint) -> list[str]:
    return sorted(file.name for file in checkpoint.folder.iterdir())


@pytest.mark.parametrize(
    "name", ["manifest.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]
)
@pytest.mark.parametrize("fault", ["flip", "cut", "remove"])
def test_any_damage_is_found_and_the_one_before_is_used(manager: CheckpointManager, name: str, fault: str) -> None:
    manager.save(_state(10))
    damaged = manager.save(_state(20))
    file = damaged.folder / name
    content = bytearray(file.read_bytes())
    if fault == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif fault == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    if name == "manifest.json" and fault == "flip":
        return  # a flipped bit inside a digit still parses; the next test covers the manifest's meaning
    reports = _Reports()
    latest = manager.latest(reports)
    assert latest is not None and latest.name == "step_10"
    assert [step for step, _ in reports] == ["step_20"]
    assert (manager.folder / "quarantine" / "step_20").is_dir()


def test_a_wrong_hash_in_the_manifest_is_found(manager: CheckpointManager) -> None:
    checkpoint = manager.save(_state(10))
    manifest = checkpoint.folder / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"]["model.safetensors"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        verify(checkpoint.folder)


def test_a_manifest_from_the_future_says_to_upgrade(manager: CheckpointManager) -> None:
    checkpoint = manager.save(_state(10))
    manifest = checkpoint.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))
    with pytest.raises(CheckpointError, match="upgrade"):
        verify(checkpoint.folder)


def test_a_best_checkpoint_without_a_readable_manifest_is_reported_not_passed_over(manager: CheckpointManager) -> None:
    best = manager.save(_state(10, 1.0))
    manager.save(_state(20, 2.0))
    (best.folder / "manifest.json").write_bytes(b"{")
    reports = _Reports()
    found = manager.best(reports)
    assert found is not None and found.name == "step_20"
    assert [name for name, _ in reports] == ["step_10"]


class _Bomb:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(self.marker),))


def test_a_pickle_in_place_of_a_file_is_never_executed(manager: CheckpointManager, tmp_path: Path) -> None:
    checkpoint = manager.save(_state(10))
    marker = tmp_path / "executed"
    (checkpoint.folder / "model.safetensors").write_bytes(pickle.dumps(_Bomb(str(marker))))
    with pytest.raises(CheckpointError):
        manager.load(checkpoint)
    assert not marker.exists()


def test_no_checkpoint_is_none(manager: CheckpointManager) -> None:
    assert manager.latest(_Reports()) is None
    assert manager.best(_Reports()) is None


def test_what_a_killed_writer_left_is_cleared(manager: CheckpointManager) -> None:
    (manager.folder / ".tmp-step_5-1").mkdir()
    manager.prepare()
    assert list(manager.folder.iterdir()) == []
