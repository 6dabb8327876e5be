"""The libraries that model families need and that are not among the project's own dependencies.

What is not installed is brought into a folder outside the environment, beside the packages that are there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toto_pipeline_tests.contracts.linear_family import make_package

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {
    "toto2": ("toto2", []),
    "chronos": (
        "chronos",
        ["chronos-forecasting==2.3.2", "transformers==5.24.0", "tokenizers==0.23.3", "accelerate==1.15.0", "regex"],
    ),
    "toto1": ("toto", ["toto-ts==0.2.0", "rotary-embedding-torch==0.9.1", "beartype==0.23.1"]),
}
"""For each family the module that it imports, and the packages that bring it, without those that are here anyway."""
SLOW = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("chronos", "toto1"))
FAMILIES = (pytest.param("toto2"), pytest.param("linear"), *SLOW)
"""Every family that is tested: those of this package, and `linear_family`, which another package offers."""


class Libraries:
    """Folders with the libraries of families, each installed when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, family: str) -> Path | None:
        """Where the library of a family lies; None where it is installed in the environment."""
        target = self._folder / family
        if target.is_dir():
            return target
        if family == "linear":
            return make_package(target)
        module, packages = LIBRARIES[family]
        if importlib.util.find_spec(module) is not None:
            return None
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
        if done.returncode and not os.environ.get("CI"):
            pytest.skip(f"{', '.join(packages)} cannot be installed here: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, done.stderr
        return target

    @contextmanager
    def on_path(self, family: str) -> Iterator[None]:
        """The library can be imported here; of what stands in two places the environment's is taken."""
        folder = self.folder(family)
        if folder is None:
            yield
            return
        sys.path.append(str(folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(str(folder))

    def environment(self, family: str) -> dict[str, str]:
        """For a process that imports the library, and this package as it is here."""
        folder = self.folder(family)
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *([] if folder is None else [str(folder)])]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
