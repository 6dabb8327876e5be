"""A log in several files reads as one, while it grows and at every instant of a kill."""

from __future__ import annotations

import gzip
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.errors import StorageError
from toto_pipeline.events import segments
from toto_pipeline.events.log import EventWriter, LogReader, read_events, read_from
from toto_pipeline.events.segments import FILE_NAME, Cursor, bytes_between, end_of_log, log_files

SMALL = 2000
"""Bytes of a segment in these tests: some ten events."""


def _write(folder: Path, steps: Iterator[int] | range, **options: Any) -> None:
    with EventWriter(folder, segment_bytes=SMALL, **options) as log:
        for step in steps:
            log.append("step", step=step, loss=1.0)
            log.flush()


def _steps(folder: Path, cursor: Cursor = segments.START) -> list[int]:
    return [event["step"] for event in read_events(folder, cursor) if event["type"] == "step"]


def test_a_full_segment_is_closed_and_compressed_and_the_log_reads_as_one(tmp_path: Path) -> None:
    _write(tmp_path, range(100))
    closed, growing = log_files(tmp_path)[:-1], log_files(tmp_path)[-1]
    assert len(closed) >= 5 and growing.name == FILE_NAME
    assert {path.suffix for path in closed} == {".gz"}
    assert _steps(tmp_path) == list(range(100))


def test_what_an_earlier_process_left_uncompressed_is_compressed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "events-000001.jsonl").write_bytes(orjson.dumps({"type": "step", "step": 1}) + b"\n")
    (tmp_path / "events-000001.jsonl.gz.tmp").write_bytes(b"half")
    _write(tmp_path, range(2, 4))
    assert [path.name for path in log_files(tmp_path)] == ["events-000001.jsonl.gz", FILE_NAME]
    assert _steps(tmp_path) == [1, 2, 3]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60))
def test_a_cursor_goes_on_across_segments(tmp_path_factory: pytest.TempPathFactory, position: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    _write(folder, range(61))
    cursor = [behind for _, behind in read_from(folder, segments.START)][position]
    assert _steps(folder, cursor) == list(range(position + 1, 61))
    assert Cursor.from_json(orjson.loads(orjson.dumps(cursor.to_json()))) == cursor


def test_a_reader_that_follows_sees_each_event_once_while_segments_are_closed_and_compressed(tmp_path: Path) -> None:
    writing = threading.Thread(target=_write, args=(tmp_path, range(3000)))
    writing.start()
    seen: list[int] = []
    with LogReader(tmp_path) as reader:
        while writing.is_alive():
            seen += [event["step"] for event in reader.read(7)]
        writing.join()
        while events := reader.read():
            seen += [event["step"] for event in events]
        assert reader.behind() == 0
    assert seen == list(range(3000))


@pytest.mark.parametrize("left", [0, 40, -9])
def test_a_damaged_segment_is_named_and_never_passed_over(tmp_path: Path, left: int) -> None:
    with EventWriter(tmp_path, segment_bytes=2000) as log:
        for step in range(1, 101):
            log.append("step", step=step)
            log.flush()
    packed = tmp_path / "events-000002.jsonl.gz"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:left])
    with LogReader(tmp_path) as reader, pytest.raises(StorageError, match=r"events-000002\.jsonl\.gz: .* damaged"):
        while reader.read(1):
            pass
    packed.write_bytes(whole)
    with LogReader(tmp_path, reader.cursor) as again:
        assert [event["step"] for event in again.read()][-1] == 100
        assert again.cursor == end_of_log(tmp_path)
    steps = [event["step"] for event in read_events(tmp_path)]
    assert steps == list(range(1, 101))


@pytest.mark.parametrize("left", [0, 40])
def test_a_cursor_inside_a_damaged_segment_is_no_way_around_it(tmp_path: Path, left: int) -> None:
    with EventWriter(tmp_path, segment_bytes=2000) as log:
        for step in range(1, 101):
            log.append("step", step=step)
            log.flush()
    packed = tmp_path / "events-000002.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:left])
    with LogReader(tmp_path, Cursor(2, 500)) as reader, pytest.raises(StorageError, match="damaged"):
        reader.read()


def test_a_reader_counts_what_it_has_not_read(tmp_path: Path) -> None:
    _write(tmp_path, range(50))
    with LogReader(tmp_path) as reader:
        whole = reader.behind()
        assert whole == bytes_between(tmp_path, segments.START, end_of_log(tmp_path))
        assert whole == sum(len(_text(path)) for path in log_files(tmp_path))
        reader.read(20)
        assert 0 < reader.behind() < whole


def _text(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_a_torn_line_that_its_writer_finishes_is_read_whole(tmp_path: Path) -> None:
    line = orjson.dumps({"type": "step", "step": 1}) + b"\n"
    with (tmp_path / FILE_NAME).open("wb", buffering=0) as file, LogReader(tmp_path) as reader:
        file.write(line[:9])
        assert reader.read() == []
        file.write(line[9:])
        assert reader.read() == [{"type": "step", "step": 1}]


KILLED = """
import os, signal, sys
from pathlib import Path
from toto_pipeline.events import segments
from toto_pipeline.events.log import EventWriter

folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = [0]

def killing(function):
    def called(*arguments, **options):
        result = function(*arguments, **options)
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return called

if name == "rename":
    os.rename = killing(os.rename)
elif name == "replace":
    Path.replace = killing(Path.replace)
elif name == "unlink":
    Path.unlink = killing(Path.unlink)
elif name == "sync":
    segments.sync_folder = killing(segments.sync_folder)
log = EventWriter(folder, segment_bytes=2000)
for step in range(400):
    log.append("step", step=step)
    log.flush()
log.close()
"""


@pytest.mark.parametrize("operation", ["rename", "replace", "unlink", "sync"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_kill_at_any_operation_of_a_rotation_loses_nothing(tmp_path: Path, operation: str, count: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), operation, str(count)], check=False)
    assert done.returncode == -signal.SIGKILL
    written = _steps(tmp_path)
    assert written and written == list(range(len(written)))
    _write(tmp_path, range(len(written), len(written) + 30), attempt=2)
    assert _steps(tmp_path) == list(range(len(written) + 30))
    assert not [path for path in log_files(tmp_path)[:-1] if path.suffix != ".gz"]


def test_a_full_disk_is_told_and_what_was_waiting_is_written_when_there_is_room(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with EventWriter(tmp_path, flush_seconds=3600) as log:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
            for step in range(100):
                log.append("step", step=step)
            with pytest.raises(StorageError, match=str(tmp_path)):
                log.flush()
            assert log.path.stat().st_size == 1024
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        log.flush()
    assert _steps(tmp_path) == list(range(100))


def test_a_log_is_streamed_in_constant_memory(tmp_path: Path) -> None:
    with EventWriter(tmp_path, segment_bytes=1 << 20) as log:
        for step in range(40_000):
            log.append("step", step=step, loss=0.5)
    assert len(log_files(tmp_path)) > 3
    peaks = []
    for most in (4_000, 40_000):
        tracemalloc.start()
        assert sum(1 for event, _ in zip(read_events(tmp_path), range(most), strict=False)) == most
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000
