"""Processes of other frameworks: what they need, where the pipeline does not depend on it, is installed beside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ("transformers==5.24.0", "accelerate==1.15.0", "tokenizers==0.23.3", "regex==2026.11.19")
"""What the pipeline's own environment lacks of it."""


def install_transformers(folder: Path) -> Path:
    """A folder for the path of modules."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    done = subprocess.run(
        [*command, "--target", str(folder), *PACKAGES], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"transformers cannot be installed:\n{done.stderr}"
    return folder


def environment(packages: Path | None = None) -> dict[str, str]:
    """What a process needs to find these packages."""
    path = [str(packages)] if packages is not None else []
    root = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *path]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def in_two_processes(script: str, folder: Path, packages: Path | None = None) -> None:
    """Run a Python script in two processes that train together."""
    file = folder / "together.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(file)],
        env=environment(packages),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
