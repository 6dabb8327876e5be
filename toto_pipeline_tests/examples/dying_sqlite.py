"""The example sink in a process that is killed between a write and the keeping of its state."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from toto_sqlite_sink import SqliteSink

from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.sink import State


class DyingSqliteSink(SqliteSink):
    def write(self, events: Sequence[Event]) -> State:
        super().write(events)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
