"""What a follower feeds: the door between the event log of a run and a tool that shows it.

A sink is a class with a name, found by the entry point group `toto_pipeline.sinks`. It knows the types of events and
its tool, and nothing else: no clock of the training, no other sink, no thread. The follower reads the log for it, in a
thread of its own, keeps its cursor, tries again what failed, and tells how far behind it is.

    sink = Sink(**settings)                 settings of the sink, from the configuration; cheap, nothing is opened yet
    sink.open(run, state)                   connect; `state` is what the last `write` of an earlier process gave
    state = sink.write(events)              take the events in; once it returns, a kill loses none of them
    sink.close(outcome)                     the run has ended, or the follower must leave (outcome None)

What `write` returns is kept in the file of the sink's cursor, in one atomic write with it. A process that is killed
between `write` and that gives the same events again to the next, with the state from before: a sink that cannot take
an event twice undoes with `state` what came after it.

Any exception of `open`, `write` or `close` means: not now. It is reported and tried again from the same cursor, ever
more rarely. A ConfigError means: never; the sink is disabled until the next start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from toto_pipeline.events.schema import Event

State = Mapping[str, Any]
"""What a sink wants to be told again after a restart: small, and fit for JSON."""

RunOutcome = Literal["completed", "stopped", "canceled", "failed", "killed"]
"""How a training ended, as its log tells; `killed` is one whose processes are gone without a word."""


@dataclass(frozen=True)
class FollowedRun:
    """The run that is followed.

    Attributes:
        folder: the run folder; a sink keeps its own files in a folder of its name below it.
        home: the home that the run lies in, None for a run outside of one.
    """

    folder: Path
    home: Path | None = None

    @property
    def name(self) -> str:
        return self.folder.name


class Sink(Protocol):
    """A tool that shows runs. See the module for the contract."""

    name: str

    def open(self, run: FollowedRun, state: State) -> None: ...

    def write(self, events: Sequence[Event]) -> State:
        """Take in events in the order of the log; types that the sink does not know are skipped."""
        ...

    def close(self, outcome: RunOutcome | None) -> None: ...
