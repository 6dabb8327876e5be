"""Which code made a model: the package version and, in a checkout, the commit."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from toto_pipeline import __version__


@functools.cache
def code_version() -> str:
    """`0.1.0` of an installed package, `0.1.0+g1a2b3c4` of a checkout, `.dirty` where files were changed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__
    try:
        commit = _git(root, "rev-parse", "--short=10", "HEAD")
        dirty = ".dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.SubprocessError):
        return __version__  # no git, or not our repository: the version is what is known
    return f"{__version__}+g{commit}{dirty}"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True, timeout=10)
    return done.stdout.strip()
