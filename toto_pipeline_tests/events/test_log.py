import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import orjson
from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.events.log import (
    FILE_NAME,
    START,
    EventWriter,
    decode,
    encode,
    epochs,
    follow,
    latest_attempt,
    read_events,
    read_from,
)
from toto_pipeline.events.schema import number


def test_events_come_back_as_they_were_written(tmp_path: Path) -> None:
    with EventWriter(tmp_path, clock=lambda: 5.0, monotonic=lambda: 7.0) as log:
        log.append("step", step=1, epoch=0, loss=0.5)
    assert list(read_events(tmp_path)) == [
        {"schema": 1, "type": "step", "attempt": 1, "time": 5.0, "monotonic": 7.0, "step": 1, "epoch": 0, "loss": 0.5}
    ]


@given(st.floats())
def test_every_float_survives_and_the_line_is_valid_json(value: float) -> None:
    line = encode({"type": "step", "loss": value, "nested": {"values": [value]}})
    event = decode(line)
    assert event is not None
    back = number(event["nested"]["values"][0])
    assert back == value or (math.isnan(back) and math.isnan(value))
    assert b"NaN" not in line and b"Infinity" not in line


def test_a_torn_last_line_is_skipped_and_the_next_writer_starts_on_its_own(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as log:
        log.append("step", step=1, epoch=0)
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"type":"step","step":2')
    assert [e["step"] for e in read_events(tmp_path)] == [1]
    with EventWriter(tmp_path, attempt=2) as log:
        log.append("step", step=2, epoch=0)
    assert [(e["attempt"], e["step"]) for e in read_events(tmp_path)] == [(1, 1), (2, 2)]


def test_a_cursor_goes_on_where_it_stood(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as log:
        for step in range(3):
            log.append("step", step=step, epoch=0)
        log.flush()
        pairs = list(read_from(tmp_path, START))
        cursor = pairs[1][1]
        log.append("step", step=3, epoch=0)
    assert [e["step"] for e in read_events(tmp_path, cursor)] == [2, 3]


def test_what_was_flushed_survives_sigkill(tmp_path: Path) -> None:
    script = (
        "import sys,os,signal\n"
        "from pathlib import Path\n"
        "from toto_pipeline.events.log import EventWriter\n"
        "log = EventWriter(Path(sys.argv[1]))\n"
        "for step in range(500): log.append('step', step=step, epoch=0, loss=1.0)\n"
        "log.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [e["step"] for e in read_events(tmp_path)] == list(range(500))


def test_events_are_written_without_being_asked_for(tmp_path: Path) -> None:
    flushed = threading.Event()
    with EventWriter(tmp_path, flush_seconds=0.01, watch=lambda _: flushed.set()) as log:
        log.append("step", step=1, epoch=0)
        assert flushed.wait(30)
        assert [e["step"] for e in read_events(tmp_path)] == [1]


def test_following_reads_until_the_writer_has_ended(tmp_path: Path) -> None:
    log = EventWriter(tmp_path)
    rounds: list[int] = []

    def write_more(_seconds: float) -> None:
        rounds.append(1)
        log.append("step", step=len(rounds), epoch=0)
        log.flush()

    events = list(follow(tmp_path, lambda: len(rounds) == 3, sleep=write_more))
    assert [e["step"] for e in events] == [1, 2, 3]
    log.close()


def test_a_later_attempt_stands_for_the_earlier() -> None:
    def event(kind: str, attempt: int, step: int, epoch: int) -> dict[str, object]:
        return {"type": kind, "attempt": attempt, "step": step, "epoch": epoch}

    first = [event("step", 1, step, 0) for step in (1, 2, 3)] + [event("epoch", 1, 2, 1)]
    second = [event("step", 2, step, 0) for step in (2, 3)] + [event("epoch", 2, 2, 1)]
    merged = latest_attempt(first + second)
    assert [(e["type"], e["step"], e["attempt"]) for e in merged] == [
        ("step", 1, 1),
        ("step", 2, 2),
        ("epoch", 2, 2),
        ("step", 3, 2),
    ]
    assert [e["attempt"] for e in epochs(first + second)] == [2]


def test_foreign_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not json\n[1]\n" + orjson.dumps({"type": "step", "step": 1}) + b"\n")
    assert [e["step"] for e in read_events(tmp_path)] == [1]
