"""The walls of the architecture, held by tests: who may import whom, and what loading costs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "toto_pipeline"
DAGSTER_ROOMS = ("assets", "automation", "definitions", "resources")

LEVELS = {
    "definitions": 5,
    "__init__": 5,
    "assets": 4,
    "resources": 4,
    "cli": 4,
    "commands": 4,
    "doctor": 4,
    "dashboards": 3,
    "promotion": 3,
    "automation": 3,
    "training": 3,
    "integrations": 3,
    "evaluation": 2,
    "alerts": 2,
    "monitoring": 2,
    "data": 1,
    "config": 1,
    "checkpoints": 1,
    "models": 1,
    "events": 1,
    "runs": 2,
    "forecasting": 2,
    "settings": 0,
    "home": 0,
    "errors": 0,
    "version": 0,
}
"""Imports run from a higher level to the same or a lower one."""
OPTIONAL = ("models.chronos", "models.toto1", "integrations.transformers")
"""Modules that need a library which is not among the project's own dependencies."""


def _modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path)
        for path in sorted(ROOT.rglob("*.py"))
    ]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def test_only_dagsters_rooms_import_dagster() -> None:
    offenders = [
        name
        for name, path in _modules()
        if _room(name) not in DAGSTER_ROOMS and any(m.split(".")[0].startswith("dagster") for m in _imports(path))
    ]
    assert offenders == []


def test_imports_run_down_only() -> None:
    offenders = []
    for name, path in _modules():
        for imported in _imports(path):
            if not imported.startswith("toto_pipeline."):
                continue
            target = _room(imported.removeprefix("toto_pipeline."))
            if LEVELS[target] > LEVELS[_room(name)]:
                offenders.append(f"{name} -> {imported}")
    assert offenders == []


def test_there_are_no_circles_between_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for name, path in _modules():
        below = {_room(m.removeprefix("toto_pipeline.")) for m in _imports(path) if m.startswith("toto_pipeline.")}
        rooms.setdefault(_room(name), set()).update(below - {_room(name)})
    graphlib.TopologicalSorter(rooms).prepare()


_BLOCKER = """
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise AssertionError("imported " + name)
sys.meta_path.insert(0, Blocker())
for name in {modules!r}:
    importlib.import_module(name)
"""


def _import_with_blocked(modules: list[str], blocked: list[str]) -> subprocess.CompletedProcess[str]:
    script = _BLOCKER.format(blocked=blocked, modules=modules)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_the_core_can_be_imported_without_dagster() -> None:
    modules = [
        f"toto_pipeline.{name}"
        for name, _ in _modules()
        if name
        and _room(name) not in DAGSTER_ROOMS
        and not name.endswith("__main__")
        and name not in ("__init__", *OPTIONAL)
    ]
    done = _import_with_blocked(modules, ["dagster", "dagster_mlflow"])
    assert done.returncode == 0, done.stderr


def test_the_training_process_imports_no_tracker() -> None:
    modules = ["toto_pipeline.training.__main__", "toto_pipeline.training.trainer", "toto_pipeline.models.toto2"]
    done = _import_with_blocked(modules, ["dagster", "mlflow", "tensorboard", "fev", "datasets"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["toto_pipeline", "toto_pipeline.cli", "toto_pipeline.config"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    done = _import_with_blocked([module], ["torch", "mlflow", "dagster", "pandas", "pyarrow", "toto2", "matplotlib"])
    assert done.returncode == 0, done.stderr


def test_the_code_location_loads_without_anything_heavy() -> None:
    done = _import_with_blocked(
        ["toto_pipeline.definitions"], ["torch", "toto2", "mlflow", "gluonts", "fev", "datasets", "matplotlib"]
    )
    assert done.returncode == 0, done.stderr
