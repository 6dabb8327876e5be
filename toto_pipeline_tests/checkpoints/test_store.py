import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toto_pipeline.checkpoints.store import (
    LocalFileSystem,
    discard_folder,
    publish_folder,
    remove_temporaries,
    replace_folder,
    write_file,
)
from toto_pipeline.errors import StorageError

# The forked children only touch files.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
OPERATIONS = ("make_folder", "write", "sync", "rename", "exchange", "remove", "share")


class CountedFileSystem(LocalFileSystem):
    """Calls `at(number, operation, *its arguments)` before each operation; may be unable to exchange folders."""

    def __init__(self, at: Callable[..., None], *, can_exchange: bool = True) -> None:
        self.count = 0
        for name in OPERATIONS:
            whole = getattr(super(), name)
            if name == "exchange" and not can_exchange:
                whole = lambda *_: False  # noqa: E731
            setattr(self, name, self._counted(at, name, whole))

    def _counted(self, at: Callable[..., None], name: str, whole: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object) -> object:
            self.count += 1
            at(self.count - 1, name, *arguments)
            return whole(*arguments)

        return operation


def _fill(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(text)

    return fill


def _text(folder: Path) -> str:
    """What stands in both files; fails where they differ or one is missing."""
    assert sorted(file.name for file in folder.iterdir()) == ["a.txt", "b.txt"]
    (text,) = {file.read_text() for file in folder.iterdir()}
    return text


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked process that does `work`, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed_at(number: int, work: Callable[[CountedFileSystem], object], *, can_exchange: bool = True) -> bool:
    """Whether a process that does `work` was killed before its operation `number`; False where it has no so many."""

    def kill(count: int, *_: object) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    status = _in_child(lambda: work(CountedFileSystem(kill, can_exchange=can_exchange)))
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))
    publish_folder(tmp_path / "x", _fill("two"))
    assert _text(tmp_path / "x") == "two"
    assert _names(tmp_path) == ["x"]


def test_a_fault_while_filling_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))

    def fail(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        publish_folder(tmp_path / "x", fail)
    assert _text(tmp_path / "x") == "one"
    assert _names(tmp_path) == ["x"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_operation_that_fails_leaves_the_old_one_or_the_new_one(tmp_path: Path, can_exchange: bool) -> None:
    publish_folder(tmp_path / "x", _fill("0"))
    number, failed = 0, True
    while failed:

        def fail(count: int, *_: object, at: int = number) -> None:
            if count == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before, failed = _text(tmp_path / "x"), False
        try:
            publish_folder(
                tmp_path / "x", _fill(str(number + 1)), files=CountedFileSystem(fail, can_exchange=can_exchange)
            )
        except StorageError:
            failed = True
        assert _text(tmp_path / "x") in (before, str(number + 1))
        number += 1
    assert number > 7
    assert _names(tmp_path) == ["x"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_writer_killed_at_any_operation_leaves_the_old_one_or_the_new_one(tmp_path: Path, can_exchange: bool) -> None:
    place = tmp_path / "place"
    publish_folder(place / "x", _fill("0"))
    outcomes = []
    number = 0
    while _killed_at(
        number,
        lambda files, text=str(number + 1): publish_folder(place / "x", _fill(text), files=files),  # type: ignore[misc]
        can_exchange=can_exchange,
    ):
        if can_exchange:
            _text(place / "x")  # whole at every moment, before anybody cleans up
        shutil.copytree(place, tmp_path / "cleaned", dirs_exist_ok=True)
        remove_temporaries(tmp_path / "cleaned")
        outcomes.append(_text(tmp_path / "cleaned" / "x"))
        assert _names(tmp_path / "cleaned") == ["x"]
        shutil.rmtree(tmp_path / "cleaned")
        shutil.rmtree(place)
        publish_folder(place / "x", _fill("0"))
        number += 1
    assert "0" in outcomes
    assert str(number) in outcomes
    assert set(outcomes) <= {"0", *map(str, range(number + 1))}
    assert _text(place / "x") == str(number + 1)


def test_what_a_kill_between_the_two_moves_left_is_put_back_by_the_next_writer(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))

    def kill(count: int, operation: str, *_: object) -> None:
        if operation == "rename" and not (tmp_path / "x").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    files = CountedFileSystem(kill, can_exchange=False)
    assert _in_child(lambda: publish_folder(tmp_path / "x", _fill("two"), files=files)) == -signal.SIGKILL
    assert not (tmp_path / "x").exists()

    def fail(_: Path) -> None:
        assert _text(tmp_path / "x") == "one"  # it is back before anything new is begun
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        publish_folder(tmp_path / "x", fail)
    assert _text(tmp_path / "x") == "one"
    assert _names(tmp_path) == ["x"]


def test_a_replaced_folder_is_gone_also_where_the_system_cannot_exchange(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))
    publish_folder(tmp_path / "new", _fill("two"))
    replace_folder(tmp_path / "new", tmp_path / "x", files=CountedFileSystem(lambda *_: None, can_exchange=False))
    assert _text(tmp_path / "x") == "two"
    assert _names(tmp_path) == ["x"]


def test_a_folder_that_is_discarded_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))
    number = 0
    while _killed_at(number, lambda files: discard_folder(tmp_path / "x", files=files)):
        assert _names(tmp_path) == ["x"] or not (tmp_path / "x").exists()
        remove_temporaries(tmp_path)
        publish_folder(tmp_path / "x", _fill("one"))
        number += 1
    assert number == 3
    assert _names(tmp_path) == []


def test_leftovers_of_dead_writers_are_cleared_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (living, dead):
        (tmp_path / f".tmp-x-{process.pid}").mkdir()
    publish_folder(tmp_path / "x", _fill("one"))
    assert _names(tmp_path) == [f".tmp-x-{living.pid}", "x"]
    living.communicate(b"\n")
    publish_folder(tmp_path / "x", _fill("two"))
    assert _names(tmp_path) == ["x"]


def test_the_temporary_of_another_folder_is_left_alone_though_its_name_begins_alike(tmp_path: Path) -> None:
    other = tmp_path / f".tmp-x-1-{os.getpid()}"  # of x-1, which another thread is filling
    other.mkdir()
    publish_folder(tmp_path / "x", _fill("one"))
    assert other.is_dir()


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from toto_pipeline.checkpoints.store import publish_folder, write_file
from toto_pipeline.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
place = Path(sys.argv[1])
for attempt in (
    lambda: publish_folder(place / "x", lambda folder: (folder / "a.txt").write_bytes(b"2" * 5000)),
    lambda: write_file(place / "f", b"2" * 5000),
):
    try:
        attempt()
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))
    write_file(tmp_path / "f", b"one")
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("the disk is full") == 2
    assert _text(tmp_path / "x") == "one"
    assert (tmp_path / "f").read_bytes() == b"one"
    assert _names(tmp_path) == ["f", "x"]


def test_a_file_whose_writer_is_killed_at_any_operation_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    write_file(tmp_path / "f", b"0")
    number = 0
    while _killed_at(number, lambda files: write_file(tmp_path / "f", b"1" * 5000, files=files)):
        assert (tmp_path / "f").read_bytes() in (b"0", b"1" * 5000)
        number += 1
    assert number == 4
    remove_temporaries(tmp_path)
    assert _names(tmp_path) == ["f"]


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_what_a_library_wrote_for_its_user_alone_is_open_to_whom_the_umask_lets_in(
    tmp_path: Path, umask: int, expected: int
) -> None:
    order: list[tuple[str, str]] = []

    def note(_: int, operation: str, path: Path, *rest: object) -> None:
        order.append((operation, path.name))

    def fill(folder: Path) -> None:
        (folder / "below").mkdir()
        for place in (folder, folder / "below"):
            save_file({"weight": torch.ones(2)}, place / "model.safetensors")
        (folder / "config.json").write_text("{}")
        (folder / "run.sh").touch(0o700)

    before = os.umask(umask)
    try:
        publish_folder(tmp_path / "x", fill, files=CountedFileSystem(note))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "x").rglob("*") if file.is_file()}
    assert modes == {"model.safetensors": expected, "config.json": expected, "run.sh": expected | 0o100}
    for name in modes:
        assert order.index(("share", name)) < order.index(("sync", name))  # so the disk has the mode too


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(tmp_path / "file" / "below", b"x")
    assert (tmp_path / "file").is_file()
