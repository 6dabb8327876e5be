"""A home whose registry has its tables already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import DATABASE_FILE, URI_VARIABLE
from toto_pipeline_tests.fixtures.mlflow_store import make_empty_database


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_database(tmp_path_factory.mktemp("initialised"))


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    home = Home(tmp_path / "home").prepare()
    shutil.copy(empty_database, home.registry / DATABASE_FILE)
    return home
