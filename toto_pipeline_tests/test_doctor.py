"""What the doctor finds, on real files and folders."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from toto_pipeline.doctor import (
    Check,
    check_database,
    check_devices,
    check_disk,
    check_home,
    check_packages,
    check_python,
    check_registry,
)
from toto_pipeline.home import Home


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_python() -> None:
    assert check_python((3, 12, 0)).ok
    old = check_python((3, 11, 9))
    assert not old.ok
    assert "3.12" in old.remedy


def test_packages_that_are_missing_or_too_old_are_named_with_the_way_to_mend_it() -> None:
    found = named(check_packages(["numpy>=2.1", "pydantic<1.0", "no-such-package>=1", "other; python_version<'3'"]))
    assert "package numpy" not in found
    assert not found["package pydantic"].ok
    assert "pydantic<1.0" in found["package pydantic"].remedy
    assert found["package no-such-package"].found == "not installed"
    assert "package other" not in found
    assert found["package dagster"].ok


def test_devices_are_named_even_where_there_are_none() -> None:
    assert check_devices()[0].found


def test_a_home_that_can_be_written(tmp_path: Path) -> None:
    assert check_home(Home(tmp_path / "home")).ok


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    check = check_home(Home(tmp_path / "home"))
    assert not check.ok
    assert "--home" in check.remedy


@pytest.mark.parametrize(("free", "ok"), [(10 * 1024**3, True), (1024**3, False)])
def test_disk(tmp_path: Path, free: int, ok: bool) -> None:
    assert check_disk(Home(tmp_path / "not" / "there"), lambda _: free).ok is ok


def test_databases(tmp_path: Path) -> None:
    assert "none yet" in check_database("store", tmp_path).found
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("create table t (x)")
    assert check_database("store", tmp_path).ok
    (tmp_path / "b.db").write_bytes(b"this is not a database, although it is long enough to be looked at" * 50)
    check = check_database("store", tmp_path)
    assert not check.ok
    assert "b.db" in check.found


def test_a_database_with_a_damaged_page(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with sqlite3.connect(file) as database:
        database.execute("create table t (x)")
        database.executemany("insert into t values (?)", [("x" * 500,) for _ in range(100)])
    pages = bytearray(file.read_bytes())
    pages[4096 * 3 : 4096 * 5] = b"\xff" * 8192
    file.write_bytes(pages)
    assert not check_database("store", tmp_path).ok


def test_no_champion_yet_is_in_order(tmp_path: Path) -> None:
    assert check_registry(Home(tmp_path)) == Check(name="champion", ok=True, found="none yet")
