from pathlib import Path

import pytest

from toto_pipeline.errors import PipelineError, StorageError
from toto_pipeline.home import Home


def _run(home: Home, name: str) -> None:
    home.run(name).mkdir(parents=True)
    (home.run(name) / "config.json").write_text("{}")


def test_runs_are_found_by_prefix_and_by_latest(tmp_path: Path) -> None:
    home = Home(tmp_path).prepare()
    _run(home, "aa11")
    _run(home, "ab22")
    assert home.find_run("ab").name == "ab22"
    assert home.find_run("latest").name == "ab22"
    with pytest.raises(PipelineError, match="fits 2 runs"):
        home.find_run("a")
    with pytest.raises(PipelineError, match="fits no run"):
        home.find_run("zz")


def test_no_runs_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="toto-pipeline retrain"):
        Home(tmp_path).find_run("latest")


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="TOTO_HOME"):
        Home(tmp_path / "file" / "home").prepare()
