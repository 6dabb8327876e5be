import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from toto_pipeline.checkpoints import manager as manager_module
from toto_pipeline.checkpoints.comparison import compare
from toto_pipeline.checkpoints.manager import Checkpoint, CheckpointManager, State, Tensors
from toto_pipeline.checkpoints.manifest import describe_files, read_manifest, verify
from toto_pipeline.checkpoints.staging import Staging
from toto_pipeline.checkpoints.store import LocalFileSystem
from toto_pipeline.errors import CheckpointError, NewerCheckpointError, StorageError
from toto_pipeline.settings.training import CheckpointSettings

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
PATIENCE = 60.0
"""Seconds after which a test that hangs ends; none ever waits so long."""


def make_state(step: int, loss: float | None = None) -> State:
    """A small state whose numbers tell its step."""
    tensors = {
        "model": {"weight": torch.full((4, 3), float(step)), "bias": torch.full((3,), step / 3)},
        "optimizer": {"weight.step": torch.tensor(float(step)), "weight.exp_avg": torch.full((4, 3), step / 7)},
        "random": {"cpu": torch.full((16,), step % 251, dtype=torch.uint8)},
    }
    metrics = {} if loss is None else {"validation_loss": loss}
    return State(step, step // 10, metrics, tensors, {"note": "ok", "rate": 0.1 + 0.2, "step": step})


def assert_same(found: State, expected: State) -> None:
    assert (found.step, found.epoch, found.values) == (expected.step, expected.epoch, expected.values)
    assert {g: set(members) for g, members in found.tensors.items()} == {
        g: set(members) for g, members in expected.tensors.items()
    }
    for group, members in expected.tensors.items():
        for name, tensor in members.items():
            assert bits(found.tensors[group][name]) == bits(tensor), f"{group}/{name}"


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
    return tensor.dtype, tuple(tensor.shape), content.tolist()


class Reports(list[tuple[str, dict[str, Any]]]):
    def __call__(self, type: str, **fields: Any) -> None:
        self.append((type, fields))

    @property
    def types(self) -> list[str]:
        return [type for type, _ in self]

    def only(self, type: str) -> dict[str, Any]:
        (fields,) = [fields for each, fields in self if each == type]
        return fields


def settings(**values: Any) -> CheckpointSettings:
    return CheckpointSettings(**{"reserve_gib": 0.0, **values})


def save_all(manager: CheckpointManager, *states: State) -> None:
    for state in states:
        manager.save(state, wait=True)


def names(manager: CheckpointManager) -> list[str]:
    return [c.name for c in manager.checkpoints()]


def load_latest(manager: CheckpointManager) -> State:
    latest = manager.latest()
    assert latest is not None
    return manager.load(latest)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def manager(tmp_path: Path, reports: Reports) -> Iterator[CheckpointManager]:
    with CheckpointManager(tmp_path / "run", settings(), report=reports) as manager:
        manager.prepare()
        yield manager


def _every_kind_of_tensor() -> dict[str, Tensors]:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2, (6, 16), dtype=torch.uint8, generator=generator)
    every = {f"{dtype}.{shape}": raw.to(dtype).reshape(-1)[: shape.numel()].reshape(shape).clone()
             for dtype in DTYPES for shape in (torch.Size([3, 4]), torch.Size([]), torch.Size([0, 5]))}  # fmt: skip
    shared = torch.rand(5, 4, generator=generator)
    every |= {
        "not contiguous": shared.t(),
        "every other": shared[:, ::2],
        "shared": shared,
        "expanded": shared[:1].expand(3, 4),
    }
    wild = torch.randint(0, 256, (64,), dtype=torch.uint8, generator=generator)  # NaN with a payload, denormals, -0.0
    return {"model": every, "trainer": {str(t): wild.view(t).clone() for t in (torch.bfloat16, torch.float32)}}


def test_a_state_comes_back_bit_for_bit(manager: CheckpointManager) -> None:
    state = State(
        7, 3, {"validation_loss": 0.1, "other": float("inf")}, _every_kind_of_tensor(), {"pi": 0.1 + 0.2, "n": None}
    )
    assert manager.save(state, wait=True) == "checkpoints/step_7"
    loaded = load_latest(manager)
    assert_same(loaded, state)
    assert loaded.metrics == state.metrics


class Gate:
    """Holds the writer at its first step, before anything is on the disk."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE)


def test_a_save_returns_before_it_is_written_and_what_changes_then_is_not_in_it(tmp_path: Path) -> None:
    gate, state = Gate(), make_state(1, loss=1.0)
    live = replace(state, tensors={g: {n: t.clone() for n, t in m.items()} for g, m in state.tensors.items()},
                   metrics=dict(state.metrics), values=dict(state.values))  # fmt: skip
    with CheckpointManager(tmp_path, settings(), before_commit=gate) as manager:
        manager.save(live)
        assert gate.reached.wait(PATIENCE)
        assert not any(manager.folder.iterdir())
        for members in live.tensors.values():
            for tensor in members.values():
                tensor.fill_(99)
        live.metrics["validation_loss"] = live.values["step"] = 99  # type: ignore[index]
        gate.open.set()
        manager.wait()
        loaded = load_latest(manager)
    assert_same(loaded, state)
    assert loaded.metrics == state.metrics


class _Watched(CheckpointManager):
    """Lets the save in flight go on only when somebody begins to wait for it."""

    def wait(self) -> None:
        if self.gate.reached.is_set():
            self.gate.open.set()
        super().wait()

    gate: Gate


class _WatchedTensors(dict[str, Tensors]):
    def __init__(self, tensors: Mapping[str, Tensors], looked_at: Callable[[], None]) -> None:
        super().__init__(tensors)
        self._looked_at = looked_at

    def values(self) -> Any:
        self._looked_at()
        return super().values()

    def items(self) -> Any:
        self._looked_at()
        return super().items()


def test_a_save_waits_until_the_one_before_is_written(tmp_path: Path) -> None:
    log: list[str] = []
    gate = Gate()

    def report(type: str, **fields: Any) -> None:
        log.append(f"{type} {fields['step']}")

    manager = _Watched(tmp_path, settings(), report=report, before_commit=gate)
    manager.gate = gate
    first, second = make_state(1), make_state(2)
    with manager:
        manager.save(first)
        assert gate.reached.wait(PATIENCE)
        tensors = _WatchedTensors(second.tensors, lambda: log.append("the second is looked at"))
        try:
            manager.save(replace(second, tensors=tensors))
        finally:
            gate.open.set()
    assert list(dict.fromkeys(log)) == ["checkpoint_saved 1", "the second is looked at", "checkpoint_saved 2"]


def test_a_save_that_is_not_asynchronous_is_there_when_it_returns(tmp_path: Path) -> None:
    gate = Gate()
    with CheckpointManager(tmp_path, settings(asynchronous=False), before_commit=gate) as manager:
        gate.open.set()
        manager.save(make_state(1))
        assert names(manager) == ["step_1"]


def _addresses(staged: Mapping[str, Tensors]) -> dict[str, int]:
    return {f"{group}/{name}": t.data_ptr() for group, members in staged.items() for name, t in members.items()}


def test_the_memory_of_a_copy_is_used_again_where_it_fits() -> None:
    staging = Staging()
    first = _addresses(staging.take(make_state(1).tensors))
    assert _addresses(staging.take(make_state(2).tensors)) == first
    other = {**make_state(3).tensors, "model": {"weight": torch.ones(5, 5), "bias": torch.ones(3)}}
    staged = staging.take(other)
    staging.wait()
    assert staged["model"]["weight"].equal(torch.ones(5, 5))
    changed = {name for name, address in _addresses(staged).items() if first[name] != address}
    assert changed == {"model/weight"}


def test_what_is_copied_is_never_the_live_tensor() -> None:
    tensors = make_state(1).tensors
    live, staged = _addresses(tensors), _addresses(Staging().take(tensors))
    assert not set(live.values()) & set(staged.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_from_a_busy_gpu_is_whole_also_where_it_is_not_the_current_one() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    live, busy = torch.ones(1 << 24, device=device), torch.rand(4096, 4096, device=device)
    for _ in range(100):
        busy = (busy @ busy).clamp(0, 1)
    staging = Staging()
    staged = staging.take({"model": {"weight": live}})["model"]["weight"]
    live.fill_(2)
    staging.wait()
    assert staged.is_pinned()
    assert staged.equal(torch.ones(1 << 24))


class FailingFileSystem(LocalFileSystem):
    """Cannot write a file as long as `full` is set."""

    full = False

    def write(self, file: Path, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        super().write(file, data)


@pytest.mark.parametrize("asked_by", ["save", "wait", "close"])
def test_a_save_that_fails_is_reported_and_raised_once_and_the_one_after_works(
    tmp_path: Path, reports: Reports, asked_by: str
) -> None:
    files = FailingFileSystem()
    manager = CheckpointManager(tmp_path, settings(), report=reports, files=files)
    save_all(manager, make_state(1))
    files.full = True
    manager.save(make_state(2))  # returns: the failure is found in the background
    ask = {"save": lambda: manager.save(make_state(3)), "wait": manager.wait, "close": manager.close}[asked_by]
    with pytest.raises(StorageError, match="the disk is full"):
        ask()
    files.full = False
    manager.wait()
    assert reports.types == ["checkpoint_saved", "checkpoint_failed"]
    failed = reports.only("checkpoint_failed")
    assert (failed["step"], failed["checkpoint"], failed["error"]) == (2, "checkpoints/step_2", "StorageError")
    assert "the disk is full" in failed["reason"]
    if asked_by == "close":
        return
    save_all(manager, make_state(3))
    manager.close()
    assert names(manager) == ["step_1", "step_3"]
    assert not list(manager.folder.glob(".tmp-*"))


def test_the_error_that_ends_a_training_is_not_hidden_by_a_save_that_failed(tmp_path: Path, reports: Reports) -> None:
    files = FailingFileSystem()
    files.full = True
    with (
        pytest.raises(ZeroDivisionError),
        CheckpointManager(tmp_path, settings(), report=reports, files=files) as manager,
    ):
        manager.save(make_state(1))
        raise ZeroDivisionError
    assert reports.types == ["checkpoint_failed"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("group", ["model", "optimizer"])
def test_numbers_that_are_not_finite_are_refused_and_the_good_checkpoint_stays(
    tmp_path: Path, reports: Reports, group: str, number: float
) -> None:
    manager = CheckpointManager(tmp_path, settings(keep_last=1), report=reports)
    save_all(manager, make_state(1))
    bad = make_state(2)
    next(iter(bad.tensors[group].values())).reshape(-1)[-1] = number
    manager.save(bad)
    with pytest.raises(CheckpointError, match=rf"step 2: {group}/.*not finite"):
        manager.close()
    assert reports.types == ["checkpoint_saved", "checkpoint_failed"]
    assert_same(load_latest(manager), make_state(1))


def test_too_little_room_is_found_before_anything_is_written(tmp_path: Path, reports: Reports) -> None:
    save_all(CheckpointManager(tmp_path, settings()), make_state(1))
    manager = CheckpointManager(tmp_path, settings(reserve_gib=1e9), report=reports)
    with pytest.raises(StorageError, match=r"\d+ MiB are free .* needs \d{12,} MiB"):
        manager.save(make_state(2))
    assert reports.types == ["checkpoint_failed"]
    assert_same(load_latest(manager), make_state(1))
    manager.close()


def _damage(file: Path, fault: str) -> None:
    content = bytearray(file.read_bytes())
    if fault == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif fault == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["flip", "cut", "remove"])
def test_any_damage_is_found_and_the_one_before_is_used(
    manager: CheckpointManager, reports: Reports, name: str, fault: str
) -> None:
    save_all(manager, make_state(10), make_state(20))
    damaged = manager.folder / "step_20"
    _damage(damaged / name, fault)
    left = {file.name: file.read_bytes() for file in damaged.iterdir()}
    assert_same(load_latest(manager), make_state(10))
    quarantined = reports.only("checkpoint_quarantined")
    assert quarantined["checkpoint"] == "checkpoints/step_20"
    assert quarantined["moved_to"] == "checkpoints/quarantine/step_20"
    assert name in quarantined["reason"]
    kept = manager.folder / "quarantine" / "step_20"
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == left
    save_all(manager, make_state(20))
    _damage(damaged / name, fault)
    assert_same(load_latest(manager), make_state(10))
    assert (manager.folder / "quarantine" / "step_20.2").is_dir()


def test_damage_that_cannot_be_set_aside_says_why(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10), make_state(20))
    _damage(manager.folder / "step_20" / "model.safetensors", "flip")
    (manager.folder / "quarantine").write_text("in the way")
    with pytest.raises(StorageError, match=r"quarantine: cannot be written"):
        manager.latest()
    assert (manager.folder / "step_20").is_dir()


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_found(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10, loss=0.25))
    checkpoint = manager.checkpoints()[0]
    file = checkpoint.folder / "manifest.json"
    content = file.read_bytes()
    for position in range(len(content)):
        flipped = content[position] ^ 1 << position % 8
        file.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
        with pytest.raises(CheckpointError):
            read_manifest(checkpoint.folder)


def test_a_wrong_hash_in_the_manifest_is_found(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10))
    checkpoint = manager.checkpoints()[0]
    records = checkpoint.manifest.files
    records["model.safetensors"] = replace(records["model.safetensors"], sha256="0" * 64)
    (checkpoint.folder / "manifest.json").write_bytes(checkpoint.manifest.to_json())
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        verify(checkpoint.folder)


def _everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("ask", [CheckpointManager.latest, CheckpointManager.best])
def test_a_manifest_from_the_future_says_to_upgrade_and_nothing_is_moved(
    manager: CheckpointManager, reports: Reports, ask: Callable[[CheckpointManager], Any]
) -> None:
    save_all(manager, make_state(10, loss=1.0), make_state(20, loss=2.0))
    file = manager.folder / "step_20" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 99, "invented_later": []}))
    before, told = _everything(manager.folder), list(reports)
    with pytest.raises(NewerCheckpointError, match="upgrade"):
        ask(manager)
    assert _everything(manager.folder) == before
    assert reports == told


def _unreadable(file: Path) -> None:
    """Put in its place a file of 0 bytes whose reading the kernel answers with EIO: address 0 is never mapped."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


@pytest.mark.parametrize("ask", [CheckpointManager.latest, CheckpointManager.best, CheckpointManager.checkpoints])
def test_a_manifest_that_cannot_be_read_is_no_damage(
    manager: CheckpointManager, reports: Reports, ask: Callable[[CheckpointManager], Any]
) -> None:
    save_all(manager, make_state(10, loss=2.0), make_state(20, loss=1.0))
    folder, told = manager.folder / "step_20", list(reports)
    whole = (folder / "manifest.json").read_bytes()
    _unreadable(folder / "manifest.json")
    with pytest.raises(StorageError, match=r"step_20/manifest\.json: cannot be read \(Input/output error\)"):
        ask(manager)
    assert reports == told
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(whole)
    assert_same(load_latest(manager), make_state(20, loss=1.0))


@pytest.mark.parametrize("ask", [CheckpointManager.latest, CheckpointManager.best])
def test_a_file_that_cannot_be_read_is_no_damage(
    manager: CheckpointManager, reports: Reports, ask: Callable[[CheckpointManager], Any]
) -> None:
    save_all(manager, make_state(10, loss=2.0), make_state(20, loss=1.0))
    folder, told = manager.folder / "step_20", list(reports)
    (folder / "empty").touch()
    manifest = replace(read_manifest(folder), files=describe_files(folder))
    (folder / "manifest.json").write_bytes(manifest.to_json())
    _unreadable(folder / "empty")
    with pytest.raises(StorageError, match=r"step_20/empty: cannot be read \(Input/output error\)"):
        ask(manager)
    assert reports == told
    assert folder.is_dir()


@pytest.mark.parametrize("read", [read_manifest, verify])
def test_too_many_open_files_are_no_damage(manager: CheckpointManager, read: Callable[[Path], Any]) -> None:
    save_all(manager, make_state(10))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        read(manager.folder / "step_10")
    except StorageError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "step_10/manifest.json: cannot be read (Too many open files)" in message


def test_what_is_saved_can_be_read_by_whom_the_umask_lets_in(manager: CheckpointManager) -> None:
    before = os.umask(0o027)
    try:
        save_all(manager, make_state(10))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (manager.folder / "step_10").iterdir()} == {0o640}


def test_the_best_is_by_the_metric_of_the_settings(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, settings(metric="validation_mase", mode="max", keep_best=1, keep_last=1))
    for step, score in [(1, 0.5), (2, 0.9), (3, float("nan")), (4, 0.7)]:
        save_all(manager, replace(make_state(step), metrics={"validation_mase": score, "validation_loss": 1 / step}))
    assert names(manager) == ["step_2", "step_4"]
    best = manager.best()
    assert best is not None
    assert best.name == "step_2"
    manager.close()


def test_where_none_has_a_score_the_best_is_the_newest(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10), make_state(20, loss=float("nan")))
    best = manager.best()
    assert best is not None
    assert best.name == "step_20"


@pytest.mark.parametrize("fault", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", FILES)
def test_a_best_checkpoint_that_is_damaged_is_reported_not_passed_over(
    manager: CheckpointManager, reports: Reports, name: str, fault: str
) -> None:
    save_all(manager, make_state(10, loss=1.0), make_state(20, loss=3.0), make_state(30, loss=2.0))
    _damage(manager.folder / "step_10" / name, fault)
    best = manager.best()
    assert best is not None
    assert best.name == "step_30"
    assert reports.only("checkpoint_quarantined")["checkpoint"] == "checkpoints/step_10"


def test_a_reader_is_not_disturbed_by_a_checkpoint_that_retention_removes_meanwhile(
    manager: CheckpointManager, reports: Reports
) -> None:
    save_all(manager, make_state(10), make_state(20))

    def verify_too_late(folder: Path) -> Any:
        if folder.name == "step_20":
            shutil.rmtree(folder)
        return verify(folder)

    reports.clear()
    with mock.patch.object(manager_module, "verify", verify_too_late):
        latest = manager.latest()
    assert latest is not None
    assert latest.name == "step_10"
    assert reports == []


@pytest.fixture
def with_backup(tmp_path: Path, reports: Reports) -> Iterator[CheckpointManager]:
    chosen = settings(keep_last=1, backup_folder=str(tmp_path / "backup"))
    with CheckpointManager(tmp_path / "run", chosen, report=reports) as manager:
        yield manager


def _backups(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "backup" / "run").iterdir())


def test_the_best_is_copied_to_the_backup_and_the_older_copy_goes(
    with_backup: CheckpointManager, tmp_path: Path, reports: Reports
) -> None:
    held = []
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 0.5)]:
        save_all(with_backup, make_state(step, loss))
        held.append(_backups(tmp_path))
    assert held == [["step_1"], ["step_2"], ["step_2"], ["step_2"], ["step_5"]]
    copied = [fields["checkpoint"] for type, fields in reports if type == "checkpoint_backed_up"]
    assert copied == ["checkpoints/step_1", "checkpoints/step_2", "checkpoints/step_5"]
    assert _everything(tmp_path / "backup/run/step_5") == _everything(with_backup.folder / "step_5")


def test_the_backup_is_used_when_nothing_in_the_run_verifies(
    with_backup: CheckpointManager, reports: Reports, tmp_path: Path
) -> None:
    save_all(with_backup, make_state(1, 1.0), make_state(2, 2.0))
    for folder in ("step_1", "step_2"):
        _damage(with_backup.folder / folder / "model.safetensors", "flip")
    assert_same(load_latest(with_backup), make_state(1))
    assert reports.types.count("checkpoint_quarantined") == 2
    assert reports.only("warning")["name"] == "backup_used"
    best = with_backup.best()
    assert best is not None
    assert best.folder == tmp_path / "backup" / "run" / "step_1"


def test_a_damaged_backup_is_reported_and_not_used(
    with_backup: CheckpointManager, reports: Reports, tmp_path: Path
) -> None:
    save_all(with_backup, make_state(1, 1.0))
    shutil.rmtree(with_backup.folder)
    _damage(tmp_path / "backup/run/step_1/model.safetensors", "flip")
    assert with_backup.latest() is None
    assert reports.only("warning")["name"] == "backup_damaged"


def test_a_worse_checkpoint_after_a_restore_does_not_push_the_better_backup_out(
    with_backup: CheckpointManager, tmp_path: Path
) -> None:
    save_all(with_backup, make_state(1, 1.0))
    shutil.rmtree(with_backup.folder)
    save_all(with_backup, make_state(2, 2.0))
    assert _backups(tmp_path) == ["step_1"]


def test_a_backup_that_fails_is_reported_and_made_up_for_at_the_next_save(
    with_backup: CheckpointManager, tmp_path: Path, reports: Reports
) -> None:
    (tmp_path / "backup").write_text("in the way")
    save_all(with_backup, make_state(1, 1.0))
    assert reports.types == ["checkpoint_saved", "checkpoint_failed"]
    assert reports.only("checkpoint_failed")["reason"].startswith("backup: ")
    (tmp_path / "backup").unlink()
    save_all(with_backup, make_state(2, 2.0))
    assert reports.types[2:] == ["checkpoint_saved", "checkpoint_backed_up"]
    assert _backups(tmp_path) == ["step_1"]


def test_a_step_that_is_saved_again_is_backed_up_again(with_backup: CheckpointManager, tmp_path: Path) -> None:
    save_all(with_backup, make_state(1, 2.0), make_state(1, 1.0))
    assert read_manifest(tmp_path / "backup/run/step_1").metrics == {"validation_loss": 1.0}


def test_a_pinned_checkpoint_is_never_deleted(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, settings(keep_last=1)) as manager:
        save_all(manager, make_state(1))
        manager.pin("step_1", "champion")
        save_all(manager, *(make_state(step) for step in range(2, 6)))
        assert names(manager) == ["step_1", "step_5"]


def test_pins_that_cannot_be_read_are_told_and_nothing_is_deleted(tmp_path: Path, reports: Reports) -> None:
    manager = CheckpointManager(tmp_path, settings(keep_last=1), report=reports)
    save_all(manager, make_state(1))
    (manager.folder / "pins.json").write_text("[")
    manager.save(make_state(2))
    with pytest.raises(CheckpointError, match=r"pins\.json: does not name checkpoints to keep"):
        manager.close()
    assert reports.types == ["checkpoint_saved", "checkpoint_saved", "checkpoint_failed"]
    assert names(manager) == ["step_1", "step_2"]


def test_retention_keeps_the_newest_the_best_and_every_so_many_steps(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, settings(keep_last=2, keep_every=30)) as manager:
        for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, float("nan")), (60, None), (70, 5.0)]:
            save_all(manager, make_state(step, loss))
        assert names(manager) == ["step_20", "step_30", "step_60", "step_70"]


def test_a_clock_that_goes_backwards_changes_neither_order_nor_retention(tmp_path: Path) -> None:
    times = iter([1e9, 9e8, 8e8, 0.0, -1.0])
    with CheckpointManager(tmp_path, settings(keep_last=2), clock=lambda: next(times)) as manager:
        save_all(manager, *(make_state(step) for step in (8, 9, 10, 11, 100)))
        assert names(manager) == ["step_11", "step_100"]
        assert manager.checkpoints()[-1].manifest.created == -1.0
        assert_same(load_latest(manager), make_state(100))


def test_a_load_verifies_again_unless_latest_just_did(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10))
    with mock.patch.object(manager_module, "verify", wraps=verify) as verified:
        latest = manager.latest()
        assert latest is not None
        assert verified.call_count == 1
        manager.load(latest)
        assert verified.call_count == 1
        manager.load(latest)
        assert verified.call_count == 2
    _damage(latest.folder / "model.safetensors", "flip")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        manager.load(latest)


def test_a_load_verifies_again_where_the_step_was_saved_again(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10, loss=1.0))
    latest = manager.latest()
    assert latest is not None
    again = replace(make_state(10, loss=2.0), epoch=7)
    save_all(manager, again)
    loaded = manager.load(latest)
    assert_same(loaded, again)
    assert loaded.metrics == again.metrics


def test_the_history_is_on_the_disk_before_the_checkpoint_appears(tmp_path: Path) -> None:
    seen = []
    place = tmp_path / "checkpoints"
    before = lambda: seen.append(place.exists() and any(place.glob("step_*")))  # noqa: E731
    with CheckpointManager(tmp_path, settings(), before_commit=before) as manager:
        manager.save(make_state(1), wait=True)
    assert seen == [False]


def test_what_was_saved_is_reported_once_it_is_there(tmp_path: Path) -> None:
    reports = Reports()

    def report(type: str, **fields: Any) -> None:
        reports(type, **fields)
        verify(tmp_path / fields["checkpoint"])

    with CheckpointManager(tmp_path, settings(), report=report) as manager:
        manager.save(make_state(20, loss=1.0))
    saved = reports.only("checkpoint_saved")
    assert (saved["step"], saved["epoch"], saved["checkpoint"]) == (20, 2, "checkpoints/step_20")
    files = (tmp_path / "checkpoints" / "step_20").iterdir()
    assert saved["bytes"] == sum(file.stat().st_size for file in files if file.name != "manifest.json")
    assert 0 <= saved["blocked_seconds"] <= saved["seconds"]


class _Bomb:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(self.marker),))


def test_the_bomb_of_the_next_test_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Bomb(str(tmp_path / "executed"))))  # noqa: S301
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("fitting", [False, True], ids=["hashes differ", "hashes fit"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["pickle", "torch.save"])
def test_a_pickle_in_place_of_a_file_is_never_executed(
    manager: CheckpointManager, tmp_path: Path, name: str, fitting: bool, form: str
) -> None:
    save_all(manager, make_state(10))
    folder = manager.folder / "step_10"
    bomb = _Bomb(str(tmp_path / "executed"))
    if form == "pickle":
        (folder / name).write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, folder / name)
    if fitting and name != "manifest.json":
        manifest = replace(Checkpoint(folder, read_manifest(folder)).manifest, files=describe_files(folder))
        (folder / "manifest.json").write_bytes(manifest.to_json())
        latest = manager.latest()
        assert latest is not None
        with pytest.raises(CheckpointError, match="step_10"):
            manager.load(latest)
    else:
        with pytest.raises(CheckpointError, match="step_10"):
            verify(folder)
        assert manager.latest() is None
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_without_its_values_is_not_a_crash(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10))
    folder = manager.folder / "step_10"
    (folder / "state.json").unlink()
    manifest = replace(read_manifest(folder), files=describe_files(folder))
    (folder / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_latest(manager)


_PLAIN = """
import sys
from pathlib import Path
import torch
from toto_pipeline.checkpoints.manager import CheckpointManager, State
with CheckpointManager(Path(sys.argv[1])) as manager:
    manager.save(State(1, 0, {}, {"model": {"weight": torch.ones(3)}}, {}), wait=True)
    manager.load(manager.latest())
print(*[name for name in ("torch.distributed.tensor", "torch.distributed.checkpoint") if name in sys.modules])
"""


def test_what_is_not_sharded_loads_nothing_of_the_sharded_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PLAIN, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_no_checkpoint_is_none(manager: CheckpointManager) -> None:
    assert manager.latest() is None
    assert manager.best() is None


def test_what_a_killed_writer_left_is_cleared(manager: CheckpointManager) -> None:
    (manager.folder / ".tmp-step_5-1").mkdir()
    manager.prepare()
    assert list(manager.folder.iterdir()) == []


def test_two_checkpoints_are_compared_tensor_by_tensor(manager: CheckpointManager) -> None:
    save_all(manager, make_state(10), make_state(20))
    one, other = manager.checkpoints()
    assert all(d.absolute == d.relative == 0 for d in compare(one, one))
    found = {f"{d.group}/{d.name}": (d.absolute, d.relative) for d in compare(one, other)}
    assert found["model/weight"] == (10.0, 0.5)
    assert set(found) == {"model/weight", "model/bias", "optimizer/weight.step", "optimizer/weight.exp_avg"}
