"""Checkpoints and what happens to processes and disks: kills, full disks, power cuts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from toto_pipeline.checkpoints.manager import CheckpointManager, State
from toto_pipeline.checkpoints.store import LocalFileSystem
from toto_pipeline.errors import StorageError
from toto_pipeline_tests.checkpoints.test_manager import Reports, assert_same, load_latest, make_state, names, settings
from toto_pipeline_tests.checkpoints.test_store import CountedFileSystem


@pytest.fixture(scope="module")
def starter() -> Any:
    """Starts processes by forking one that has imported everything, so that each takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=int)
    process.start()
    process.join()
    return context


def _run(starter: Any, work: Callable[..., None], *arguments: object) -> int:
    """The exit status of a process that does `work`, negative where a signal ended it."""
    process = starter.Process(target=work, args=arguments)
    process.start()
    process.join()
    return int(process.exitcode)


def _die_at(number: int) -> Callable[..., None]:
    """Ends the process at its operation `number`; a file is half written then, a folder half removed."""

    def at(count: int, operation: str, *arguments: Any) -> None:
        if count != number:
            return
        if operation == "write":
            arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
        if operation == "remove" and arguments[0].is_dir():
            sorted(arguments[0].iterdir())[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    return at


def _again(step: int) -> State:
    """Another state of the same step, as after a resume."""
    state = make_state(step, loss=0.5)
    for members in state.tensors.values():
        for tensor in members.values():
            tensor.add_(1)
    return state


SECOND = {"the next step": make_state(20), "the same step again": _again(10)}


def _save_and_die(run: Path, second: str, number: int, can_exchange: bool, asynchronous: bool) -> None:
    torch.set_num_threads(1)
    files = CountedFileSystem(_die_at(number), can_exchange=can_exchange)
    manager = CheckpointManager(run, settings(keep_last=1, asynchronous=asynchronous), files=files)
    manager.save(SECOND[second])
    manager.close()


@pytest.mark.parametrize(
    ("second", "can_exchange", "asynchronous"),
    [
        ("the next step", True, True),
        ("the next step", True, False),
        ("the same step again", True, True),
        ("the same step again", False, True),
    ],
)
def test_a_kill_at_any_operation_of_a_save_leaves_the_old_checkpoint_or_the_new_one(
    starter: Any, tmp_path: Path, second: str, can_exchange: bool, asynchronous: bool
) -> None:
    with CheckpointManager(tmp_path / "template", settings()) as manager:
        manager.save(make_state(10))
    found, status, number = [], -signal.SIGKILL, 0
    while status:
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "template", run)
        status = _run(starter, _save_and_die, run, second, number, can_exchange, asynchronous)
        assert status in (0, -signal.SIGKILL)
        found.append(_what_is_left(run, SECOND[second]))
        number += 1
    assert number > 10
    assert found == sorted(found, key=["old", "new"].index)  # once it is there it stays
    assert set(found) == {"old", "new"}


def _what_is_left(run: Path, second: State) -> str:
    """Which of the two checkpoints a training that starts again finds, which is whole; it saves the next one."""
    reports = Reports()
    with CheckpointManager(run, settings(keep_last=1), report=reports) as manager:
        manager.prepare()
        loaded = load_latest(manager)
        assert manager.best() is not None
        assert reports == []  # no manifest is missing, none of the files of the newest is damaged
        is_new = loaded.values == second.values and loaded.tensors["model"]["weight"].equal(
            second.tensors["model"]["weight"]
        )
        assert_same(loaded, second if is_new else make_state(10))
        manager.save(make_state(30), wait=True)
        assert_same(load_latest(manager), make_state(30))
    left = {file.name for file in manager.folder.iterdir()}
    assert not [name for name in left if name.startswith(".tmp-")]
    return "new" if is_new else "old"


def _save_with_a_small_limit(run: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    reports = Reports()
    manager = CheckpointManager(run, settings(), report=reports)
    big = make_state(20)
    big.tensors["model"]["big"] = torch.ones(100_000)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    manager.save(big)
    with pytest.raises(StorageError, match="the disk is full"):
        manager.wait()
    assert reports.types == ["checkpoint_failed"]
    assert_same(load_latest(manager), make_state(10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    manager.save(big)
    manager.close()
    assert_same(load_latest(manager), big)


def test_a_file_that_may_not_grow_fails_the_save_and_the_one_after_works(starter: Any, tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, settings()) as manager:
        manager.save(make_state(10))
    assert _run(starter, _save_with_a_small_limit, tmp_path) == 0
    assert names(manager) == ["step_10", "step_20"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_runs_full_while_a_checkpoint_is_written_loses_nothing(small_disk: Path) -> None:
    reports = Reports()
    filler = small_disk / "filler"

    def fill_the_disk() -> None:
        """Another program is faster: the room that was there is gone when the writer begins."""
        if filler.exists():
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(b"x" * (free - 200_000))

    big = make_state(20)
    big.tensors["model"]["big"] = torch.ones(100_000)
    with CheckpointManager(small_disk / "run", settings(), report=reports, before_commit=fill_the_disk) as manager:
        manager.prepare()
        manager.save(make_state(10), wait=True)
        filler.touch()
        manager.save(big)
        with pytest.raises(StorageError, match="the disk is full"):
            manager.wait()
        assert reports.types == ["checkpoint_saved", "checkpoint_failed"]
        assert not list(manager.folder.glob(".tmp-*"))
        assert_same(load_latest(manager), make_state(10))
        filler.unlink()
        manager.save(big, wait=True)
        assert_same(load_latest(manager), big)
        with pytest.raises(StorageError, match=r"MiB are free on the disk"):
            manager.save(State(30, 3, {}, {"model": {"huge": torch.ones(1_000_000)}}, {}))


class LossyDisk(LocalFileSystem):
    """Remembers what would be there after a power cut.

    Of a file that is what it held when it was last synced. Of a folder it is the entries of the last sync, or, with
    `names_survive`, those of now: a disk may keep a rename and lose what it renamed. What was in a removed folder is
    gone at once. The folder is moved out of `root`, so that the system does not give its number to something else.
    """

    def __init__(self, root: Path, graveyard: Path, *, names_survive: bool, before: Callable[[], None]) -> None:
        self._root, self._graveyard, self._names_survive, self._before = root, graveyard, names_survive, before
        self._contents: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, tuple[int, bool]]] = {}
        self.sync(root)

    def make_folder(self, folder: Path) -> None:
        self._before()
        super().make_folder(folder)

    def write(self, file: Path, data: bytes) -> None:
        self._before()
        super().write(file, data)

    def sync(self, path: Path) -> None:
        self._before()
        super().sync(path)
        if path.is_dir():
            self._entries[path.stat().st_ino] = self._entries_now(path)
        else:
            self._contents[path.stat().st_ino] = path.read_bytes()

    def rename(self, path: Path, target: Path) -> None:
        self._before()
        super().rename(path, target)

    def exchange(self, path: Path, other: Path) -> bool:
        self._before()
        return super().exchange(path, other)

    def remove(self, path: Path) -> None:
        self._before()
        self._entries[path.stat().st_ino] = {}
        path.rename(self._graveyard / f"{len(list(self._graveyard.iterdir()))}")

    def restore(self, target: Path) -> None:
        """Write what a power cut at this moment leaves to `target`."""
        if self._names_survive:
            for file in self._root.rglob("*"):
                copy = target / file.relative_to(self._root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if file.is_file():
                    copy.write_bytes(self._contents.get(file.stat().st_ino, b""))
        else:
            self._restore_folder(self._root.stat().st_ino, target)

    def _restore_folder(self, number: int, target: Path) -> None:
        target.mkdir(parents=True)
        for name, (entry, is_folder) in self._entries.get(number, {}).items():
            if is_folder:
                self._restore_folder(entry, target / name)
            else:
                (target / name).write_bytes(self._contents.get(entry, b""))

    @staticmethod
    def _entries_now(folder: Path) -> dict[str, tuple[int, bool]]:
        return {entry.name: (entry.stat().st_ino, entry.is_dir()) for entry in folder.iterdir()}


@pytest.mark.parametrize("names_survive", [False, True])
def test_after_a_power_cut_at_any_moment_what_was_reported_is_there(tmp_path: Path, names_survive: bool) -> None:
    graveyard = tmp_path / "graveyard"
    runs = tmp_path / "runs"
    for folder in (graveyard, runs):
        folder.mkdir()
    states = {10: make_state(10), 20: make_state(20), 30: make_state(30)}
    reports = Reports()
    moments: list[int] = []

    def power_cut() -> None:
        saved = [fields["step"] for type, fields in reports if type == "checkpoint_saved"]
        disk.restore(tmp_path / "after" / str(len(moments)))
        moments.append(max(saved, default=0))

    disk = LossyDisk(runs, graveyard, names_survive=names_survive, before=lambda: None)
    disk._before = power_cut
    (runs / "run").mkdir()  # as a training does, which does not sync its parent
    with CheckpointManager(runs / "run", settings(keep_last=1), report=reports, files=disk) as manager:
        manager.prepare()
        for state in (*states.values(), make_state(30)):
            manager.save(state, wait=True)
    power_cut()
    assert len(moments) > 40
    assert set(moments) == {0, 10, 20, 30}
    for moment, step in enumerate(moments):
        _check_after_power_cut(tmp_path / "after" / str(moment) / "run", step, states)


def _check_after_power_cut(run: Path, reported: int, states: dict[int, State]) -> None:
    with CheckpointManager(run, settings()) as manager:
        latest = manager.latest()
        assert latest is not None or not reported
        if latest is not None:
            assert latest.manifest.step >= reported
            assert_same(manager.load(latest), states[latest.manifest.step])
