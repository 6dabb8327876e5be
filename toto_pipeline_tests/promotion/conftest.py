"""A home whose registry has its tables already: creating them takes seconds, copying the file nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from toto_pipeline.home import Home
from toto_pipeline.promotion.mlflow_connection import DATABASE_FILE, URI_VARIABLE, Store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        home = Home(tmp_path_factory.mktemp("initialised")).prepare()
        Store.of(home).client().search_registered_models()
    return home.registry / DATABASE_FILE


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    home = Home(tmp_path / "home").prepare()
    shutil.copy(empty_database, home.registry / DATABASE_FILE)
    return home
