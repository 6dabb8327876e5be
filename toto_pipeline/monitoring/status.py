"""How far each sink is: written by the follower into the run folder, read by whoever wants to know.

    monitoring/status.json    process, host, started, updated, outcome, sinks (name -> state, cursor, bytes_behind, ...)

A file that a killed follower left behind names a process that is no more; `is_at_work` tells.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import PipelineError
from toto_pipeline.events.processes import is_alive

FOLDER = "monitoring"
STATUS_FILE = "status.json"

SinkState = Literal["ok", "retrying", "open", "disabled", "done"]
"""ok: fed as events come; retrying: the last call failed, the next comes soon; open: failed so often that it is tried
once a minute only; disabled: its configuration is wrong, until the next start; done: has all, and knows the end."""


@dataclass(frozen=True, kw_only=True)
class SinkStatus:
    """How far a sink is.

    Attributes:
        cursor: segment and offset of the log behind what it has taken in.
        bytes_behind: bytes of the log that it has not.
        seconds_behind: age of the oldest event that it has not taken in; 0 where there is none.
        events: events taken in, from the start of the log.
        failures: calls that failed, since the start of this follower.
        error: what the last of them said.
    """

    state: SinkState
    cursor: tuple[int, int]
    bytes_behind: int
    seconds_behind: float
    events: int
    failures: int = 0
    error: str | None = None

    @property
    def is_behind(self) -> bool:
        return self.state != "done" and (self.bytes_behind > 0 or self.state != "ok")


@dataclass(frozen=True, kw_only=True)
class FollowerStatus:
    """How far a follower is. Times are Unix seconds; `outcome` is that of the run, None while it is not known."""

    process: str
    started: float
    updated: float
    outcome: str | None = None
    host: str = field(default_factory=platform.node)
    sinks: Mapping[str, SinkStatus] = field(default_factory=dict)

    @property
    def is_at_work(self) -> bool:
        """Whether the follower still runs; one on another machine is believed to."""
        return self.host != platform.node() or is_alive(self.process)


def read_status(run_folder: Path) -> FollowerStatus | None:
    """What the last follower of a run has said; None where there was none.

    Raises:
        PipelineError: the file is damaged.
    """
    file = run_folder / FOLDER / STATUS_FILE
    try:
        return _from_json(orjson.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{file}: is no status of a follower ({type(error).__name__}: {error}). "
            "What to do: delete it; the next follower writes it anew."
        ) from error


def write_status(run_folder: Path, status: FollowerStatus) -> None:
    write_file(run_folder / FOLDER / STATUS_FILE, orjson.dumps(to_json(status), option=orjson.OPT_INDENT_2))


def to_json(status: FollowerStatus) -> dict[str, Any]:
    return asdict(status)


def _from_json(values: Mapping[str, Any]) -> FollowerStatus:
    sinks = {
        name: SinkStatus(**{**sink, "cursor": (int(sink["cursor"][0]), int(sink["cursor"][1]))})
        for name, sink in values["sinks"].items()
    }
    return FollowerStatus(**{**values, "sinks": sinks})
