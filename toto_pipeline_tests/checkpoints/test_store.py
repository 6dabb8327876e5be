import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toto_pipeline.checkpoints.store import publish_folder, remove_temporaries, write_file
from toto_pipeline.errors import StorageError


def _fill(text: str):  # type: ignore[no-untyped-def]
    return lambda folder: (folder / "a.txt").write_text(text)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))
    publish_folder(tmp_path / "x", _fill("two"))
    assert (tmp_path / "x" / "a.txt").read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_fault_while_filling_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))

    def fail(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        publish_folder(tmp_path / "x", fail)
    assert (tmp_path / "x" / "a.txt").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


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
    assert (tmp_path / "x" / "a.txt").read_text() == "one"
    assert (tmp_path / "f").read_bytes() == b"one"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["f", "x"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from toto_pipeline.checkpoints.store import publish_folder
def fill(folder):
    (folder / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
publish_folder(Path(sys.argv[1]) / "x", fill)
"""


def test_a_writer_killed_in_the_middle_leaves_the_old_one(tmp_path: Path) -> None:
    publish_folder(tmp_path / "x", _fill("one"))
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "x" / "a.txt").read_text() == "one"
    remove_temporaries(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(tmp_path / "file" / "below", b"x")
    assert (tmp_path / "file").is_file()
