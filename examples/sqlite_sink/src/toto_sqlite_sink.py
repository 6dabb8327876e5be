"""A sink that keeps the numbers of runs in a SQLite database.

    runs           a row a run: its settings, how many events of its log are taken in, how it ended
    attempts       a row a start of the training: the step that it went on from
    measurements   a row a number, under the name that every tool shows it by; NaN is NULL
    current        a view: the measurements without those that a later attempt has done again

Each row has the number of its event in the log. The rows of a batch and the number of events taken in are committed in
one transaction, so after a kill the database holds whole batches only. What it holds beyond the state that the follower
has kept is deleted when the sink is opened, and comes again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, State

LOCK_SECONDS = 30.0
"""How long another run that writes to the same database is waited for; then the follower tries again."""

TABLES = """
PRAGMA journal_mode = WAL;  -- who reads does not hold up who writes
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, events INTEGER NOT NULL, config TEXT, outcome TEXT);
CREATE TABLE IF NOT EXISTS attempts (
    run TEXT, event INTEGER, attempt INTEGER, time REAL, resumed_from INTEGER NOT NULL, PRIMARY KEY (run, event)
);
CREATE TABLE IF NOT EXISTS measurements (
    run TEXT, event INTEGER, place INTEGER, name TEXT, value REAL, step INTEGER, epoch INTEGER, attempt INTEGER,
    time REAL, PRIMARY KEY (run, event, place)  -- names are not unique: a loop may have a score named as another number
) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS current AS SELECT * FROM measurements AS measured WHERE NOT EXISTS (
    SELECT 1 FROM attempts AS later WHERE later.run = measured.run AND later.event > measured.event
    AND later.resumed_from < measured.step
);
"""


class SqliteSink:
    """See the module, and `Sink` for the methods.

    Args:
        database: the file of the database; several runs may share one. By default each run has its own, in
            `sqlite/measurements.db` of its folder.
    """

    name = "sqlite"

    def __init__(self, *, database: str | None = None) -> None:
        self._file = None if database is None else Path(database).expanduser().absolute()
        self._database: sqlite3.Connection | None = None

    def open(self, run: FollowedRun, state: State) -> None:
        """
        Raises:
            ConfigError: the file is no database, or holds less of the run than was written to it.
        """
        self._run, self._events = run.name, int(state.get("events", 0))
        file = self._file or run.folder / self.name / "measurements.db"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._close()  # what a call that failed has left
        self._database = sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level="IMMEDIATE")
        try:
            self._database.executescript(TABLES)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                raise
            raise ConfigError(
                f"{file}: is not a SQLite database. Expected: one, or no file yet. What to do: name another file with "
                "monitoring.sinks.sqlite.database."
            ) from error
        self._go_back(self._database, file, run.folder)

    def _go_back(self, database: sqlite3.Connection, file: Path, folder: Path) -> None:
        """Delete what came after the state."""
        with database:
            database.execute("INSERT OR IGNORE INTO runs (run, events) VALUES (?, 0)", [self._run])
            (held,) = database.execute("SELECT events FROM runs WHERE run = ?", [self._run]).fetchone()
            if held < self._events:
                raise ConfigError(
                    f"{file}: holds {held} events of the run {self._run}. Expected: the {self._events} that were "
                    "written. What to do: bring the file back, or fill it from the log with "
                    f"`toto-pipeline follow {folder} --restart {self.name}`."
                )
            database.execute("DELETE FROM measurements WHERE run = ? AND event >= ?", [self._run, self._events])
            database.execute("DELETE FROM attempts WHERE run = ? AND event >= ?", [self._run, self._events])
            database.execute("UPDATE runs SET events = ? WHERE run = ?", [self._events, self._run])

    def write(self, events: Sequence[Event]) -> State:
        assert self._database is not None  # noqa: S101 - `open` comes first
        taken_in = self._events + len(events)
        with self._database as database:
            for number, event in enumerate(events, self._events):
                if event["type"] == "run_started":
                    self._start(database, number, event)
                database.executemany("INSERT INTO measurements VALUES (?,?,?,?,?,?,?,?,?)", self._rows(number, event))
            database.execute("UPDATE runs SET events = ?, outcome = NULL WHERE run = ?", [taken_in, self._run])
        self._events = taken_in
        return {"events": taken_in}

    def _start(self, database: sqlite3.Connection, number: int, event: Event) -> None:
        attempt = [self._run, number, event.get("attempt"), event.get("time"), event.get("resumed_from") or 0]
        database.execute("INSERT INTO attempts VALUES (?, ?, ?, ?, ?)", attempt)
        config = json.dumps(event.get("config") or {})
        database.execute("UPDATE runs SET config = ? WHERE run = ?", [config, self._run])

    def _rows(self, number: int, event: Event) -> Iterator[list[Any]]:
        of_event = [event.get(field) for field in ("step", "epoch", "attempt", "time")]
        numbers = enumerate(measurements(event))
        return ([self._run, number, place, name, value, *of_event] for place, (name, value) in numbers)

    def close(self, outcome: RunOutcome | None) -> None:
        if self._database is not None and outcome is not None:
            with self._database as database:
                database.execute("UPDATE runs SET outcome = ? WHERE run = ?", [outcome, self._run])
        self._close()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
