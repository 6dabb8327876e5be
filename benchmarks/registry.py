"""A registry with 10 000 versions: how long the champion takes to find, and a new one to register and promote.

The versions are put into MLflow's own SQLite store in bulk, as many tags each as a retraining gives them; half of them
were champion once. Each is measured through the registry, with a model of a few bytes, so that no hashing is counted.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import DATABASE_FILE, URI_VARIABLE
from toto_pipeline.promotion.changes import Change, Mark, change_tag, write_change, write_mark
from toto_pipeline.promotion.registry import Registry

LIMIT_SECONDS = 1.0
NAME = "toto"


def run(quick: bool) -> list[dict[str, Any]]:
    versions, rounds = (1000, 3) if quick else (10_000, 7)
    before = os.environ.pop(URI_VARIABLE, None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(Home(Path(folder) / "home").prepare(), Path(folder), versions, rounds)
    finally:
        if before is not None:
            os.environ[URI_VARIABLE] = before


def _measure(home: Home, folder: Path, versions: int, rounds: int) -> list[dict[str, Any]]:
    registry = Registry(home, NAME)
    registry.register(_model(folder, 0), run="run-0", metrics={"SQL": 0.5}, tags=_tags(0))
    registry.promote("1", expected_champion=None)
    _fill(home, versions)
    registry = Registry(home, NAME)
    registry.champion()  # the connection is made once in a process
    seconds: dict[str, list[float]] = {}
    for number in range(versions, versions + rounds):
        model, expected = _model(folder, number), registry.with_alias("champion")

        def register(number: int = number, model: Path = model) -> None:
            registry.register(model, run=f"run-{number}", metrics={"SQL": 0.5}, tags=_tags(number))

        def promote(number: int = number, expected: str | None = expected) -> None:
            registry.rolled_back(f"{number:064d}")
            registry.promote(str(number + 1), expected_champion=expected)

        _time(seconds, "find the champion", registry.champion)
        _time(seconds, "register a version", register)
        _time(seconds, "promote it", promote)
        _time(seconds, "tell the last 20 changes", lambda: registry.changes(20))
        _time(seconds, "find the version to go back to", registry.to_go_back_to)
    return [_result(f"{name}, {versions} versions", values) for name, values in seconds.items()]


def _fill(home: Home, versions: int) -> None:
    """Copy version 1 under further numbers, every second one a champion, the newest of them the present one."""
    with sqlite3.connect(home.registry / DATABASE_FILE) as database:
        columns = [row[1] for row in database.execute("pragma table_info(model_versions)")]
        first = dict(zip(columns, database.execute("select * from model_versions").fetchone(), strict=True))
        marks = ", ".join("?" * len(columns))
        rows = [[*({**first, "version": n}).values()] for n in range(2, versions + 1)]
        database.executemany(f"insert into model_versions values ({marks})", rows)  # noqa: S608
        own = dict(database.execute("select key, value from model_version_tags where version = 1").fetchall())
        database.executemany(
            "insert into model_version_tags (name, version, key, value) values (?, ?, ?, ?)",
            ((NAME, n, key, value) for n in range(2, versions + 1) for key, value in _copied(own, n).items()),
        )
        champion = max(n for n in range(1, versions + 1) if n % 2)
        database.execute("update registered_model_aliases set version = ? where alias = 'champion'", (champion,))
        mark = write_mark(Mark((champion + 1) // 2, str(champion)))
        database.execute("update registered_model_tags set value = ? where key = 'toto.champion'", (mark,))
    database.close()


def _copied(own: dict[str, str], version: int) -> dict[str, str]:
    tags = {key: value for key, value in own.items() if not key.startswith("toto.change.")}
    tags |= {**_tags(version), "toto.run": f"run-{version - 1} copied"}
    if version % 2:
        number = (version + 1) // 2
        change = Change(
            number=number,
            kind="promotion",
            version=str(version),
            replaced=str(version - 2),
            at=float(version),
            by="user@host",
            reason="better",
            run="",
        )
        tags[change_tag(number)] = write_change(change)
    return tags


def _tags(number: int) -> dict[str, str]:
    names = ("series_snapshot", "training_data", "code_version", "config_hash", "parent_model", "checkpoint_sha256")
    reasons = json.dumps(["SQL 0.680 against the champion's 0.690: 1.4 % better."] * 4)
    return {**{name: f"{name} {number}" for name in names}, "model_sha256": f"{number:064d}", "reasons": reasons}


def _model(folder: Path, number: int) -> Path:
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    (model / "model.safetensors").write_text(str(number))
    return model


def _time(seconds: dict[str, list[float]], name: str, act: Callable[[], Any]) -> None:
    started = time.perf_counter()
    act()
    seconds.setdefault(name, []).append(time.perf_counter() - started)


def _result(name: str, seconds: list[float]) -> dict[str, Any]:
    value = statistics.median(seconds)
    return {"name": name, "value": value, "unit": "s", "limit": f"< {LIMIT_SECONDS}", "ok": value < LIMIT_SECONDS}
