"""A wheel built from the checkout brings everything along."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_lock_pins_every_package_and_names_no_index() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip()]
    assert all(re.match(r"^[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ]+( ;.*)?$", line) for line in lines)
    assert "://" not in "\n".join(lines)


def test_every_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!\[ ;]", entry)[0].lower().replace("_", "-") for entry in wanted}
    locked = {re.split(r"[=\[]", line)[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert names - locked == set()


def test_setup_cfg_repeats_nothing_of_pyproject() -> None:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    assert not {"metadata", "options.entry_points", "tool:pytest", "mypy", "flake8"} & set(parsed.sections())


@pytest.mark.slow
def test_a_wheel_brings_the_sample_the_page_and_the_command(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "toto_pipeline/data/sample/appliances_energy.parquet",
        "toto_pipeline/data/sample/README.md",
        "toto_pipeline/automation/instance.yaml",
        "toto_pipeline/dashboards/html/report.html",
        "toto_pipeline/dashboards/html/report.css",
        "toto_pipeline/dashboards/html/report.js",
        "toto_pipeline/py.typed",
    ):
        assert wanted in names
    assert not any(name.startswith("toto_pipeline_tests") for name in names)

    venv.create(tmp_path / "venv", with_pip=True, system_site_packages=False)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    packages = next((Path(sys.prefix) / "lib").glob("python3*/site-packages"))
    own = next((tmp_path / "venv" / "lib").glob("python3*/site-packages"))
    (own / "dependencies.pth").write_text(f"{packages}\n")  # what the wheel depends on is here already
    home = tmp_path / "home"
    command = [str(tmp_path / "venv/bin/toto-pipeline"), "--home", str(home)]
    done = subprocess.run(
        [*command, "retrain", "--json", "--set", "training.epochs=1", "--set", "training.steps_per_epoch=5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 10), done.stderr
    assert list(home.glob("runs/*/report.html"))
    where = subprocess.run(
        [python, "-c", "import toto_pipeline; print(toto_pipeline.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path))
