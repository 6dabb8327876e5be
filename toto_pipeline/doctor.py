"""Is everything here that a retraining needs? Each check says what it found and, where that is wrong, how to mend it.

Nothing is fixed and nothing is left behind: probes write below the home and remove what they wrote.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from toto_pipeline.errors import PipelineError, StorageError
from toto_pipeline.home import HOME_VARIABLE, Home

LEAST_PYTHON = (3, 12)
LEAST_FREE_BYTES = 2 * 1024**3
GIB = 1024**3
PACKAGES = ("dagster", "dagster-mlflow", "mlflow", "torch", "toto-2", "fev", "pyarrow", "pandas", "tensorboard")
"""Distributions whose absence or version explains most troubles."""


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine(home: Home) -> list[Check]:
    """Every check, in the order a person would mend them."""
    return [
        check_python(sys.version_info[:3]),
        *check_packages(),
        *check_devices(),
        check_home(home),
        check_disk(home),
        check_database("dagster storage", home.dagster),
        check_database("mlflow registry", home.registry),
        check_registry(home),
    ]


def check_python(version: tuple[int, ...]) -> Check:
    found = ".".join(map(str, version)) + f" ({platform.machine()}, {platform.system()}) {sys.executable}"
    return Check(
        name="python",
        ok=version >= LEAST_PYTHON,
        found=found,
        remedy="install Python 3.12 or newer (uv python install 3.12) and run `make setup` again",
    )


def check_packages(requirements: list[str] | None = None) -> list[Check]:
    """The versions that matter, and every requirement of ours that is missing or of a wrong version."""
    shown = [
        Check(
            name=f"package {name}",
            ok=version is not None,
            found=version or "not installed",
            remedy=f"pip install {name}, or `make setup`",
        )
        for name in PACKAGES
        for version in [_version(name)]
    ]
    return shown + [
        Check(name=f"package {name}", ok=False, found=found, remedy=f"pip install '{wanted}', or `make setup`")
        for name, found, wanted in _unmet(requirements)
        if name not in PACKAGES or found != "not installed"
    ]


def _unmet(requirements: list[str] | None) -> Iterator[tuple[str, str, str]]:
    from packaging.requirements import Requirement

    if requirements is None:
        try:
            requirements = importlib.metadata.requires("toto-pipeline") or []
        except importlib.metadata.PackageNotFoundError:
            requirements = []  # run from a source tree that was never installed: the list above still stands
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield requirement.name, version or "not installed", str(requirement).split(";")[0]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_devices() -> list[Check]:
    """GPUs as the driver reports them, and whether torch can use them."""
    names, problem = _gpus()
    if problem is not None:
        return [Check(name="gpus", ok=False, found=problem, remedy="reinstall or update the NVIDIA driver")]
    if not names:
        return [Check(name="gpus", ok=True, found="none (no NVIDIA driver); training runs on the CPU")]
    found = Check(name="gpus", ok=True, found=", ".join(names))
    import torch

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [
        found,
        Check(
            name="torch on gpus",
            ok=usable == len(names),
            found=f"{usable} of {len(names)} usable by torch {torch.__version__}",
            remedy="install the torch build for this driver's CUDA version, and check CUDA_VISIBLE_DEVICES",
        ),
    ]


def _gpus() -> tuple[list[str], str | None]:
    """Names with memory, and what is wrong with a driver that is there but does not answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return [], None
    except pynvml.NVMLError as error:
        return [], f"the NVIDIA driver does not answer ({error})"
    try:
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())], None
    except pynvml.NVMLError as error:
        return [], f"the NVIDIA driver does not answer ({error})"
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: object) -> str:
    import pynvml

    name = pynvml.nvmlDeviceGetName(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return f"{name} ({memory.free / GIB:.0f} of {memory.total / GIB:.0f} GiB free)"


def check_home(home: Home) -> Check:
    remedy = f"make {home.root} writable for this user, or point {HOME_VARIABLE} (or --home) elsewhere"
    try:
        home.prepare()
    except StorageError as error:
        return Check(name="home", ok=False, found=str(error), remedy=remedy)
    return Check(name="home", ok=True, found=f"{home.root} ({len(home.run_names())} runs)")


def check_disk(home: Home, free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> Check:
    existing = next(folder for folder in (home.root, *home.root.parents) if folder.exists())
    free = free_bytes(existing)
    return Check(
        name="disk",
        ok=free >= LEAST_FREE_BYTES,
        found=f"{free / GIB:.1f} GiB free at {existing}",
        remedy=f"free at least {LEAST_FREE_BYTES // GIB} GiB; {home.cache} may be deleted at any time",
    )


def check_database(name: str, folder: Path) -> Check:
    """Every SQLite file below a folder opens and is whole."""
    files = sorted(path for path in folder.rglob("*.db") if path.is_file()) if folder.is_dir() else []
    for file in files:
        problem = _sqlite_problem(file)
        if problem is not None:
            return Check(
                name=name,
                ok=False,
                found=f"{file}: {problem}",
                remedy="stop what uses it, then restore it from a backup or move it aside; it is created anew",
            )
    found = (
        f"{len(files)} SQLite files in {folder}, all whole"
        if files
        else f"none yet; the first run creates it in {folder}"
    )
    return Check(name=name, ok=True, found=found)


def _sqlite_problem(file: Path) -> str | None:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)) as database:
            answer = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None if answer == ("ok",) else f"is damaged ({answer})"


def check_registry(home: Home, model_name: str = "toto") -> Check:
    """The registry answers, and the champion's files are where it says."""
    if not (home.registry / "mlflow.db").is_file():
        return Check(name="champion", ok=True, found="none yet")
    from toto_pipeline.promotion.registry import Registry

    try:
        champion = Registry(home, model_name).champion()
    except PipelineError as error:
        return Check(name="champion", ok=False, found=str(error), remedy="see the check of the mlflow registry")
    if champion is None:
        return Check(name="champion", ok=True, found="none yet")
    there = (Path(champion.path) / "config.json").is_file()
    return Check(
        name="champion",
        ok=there,
        found=f"{model_name} version {champion.version} at {champion.path}" + ("" if there else " (no model there)"),
        remedy="restore the folder from a backup, or retrain to promote a new champion",
    )
