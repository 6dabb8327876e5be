"""What of an evaluation is done already: the scores of one model on one chunk of the windows, kept on disk.

An evaluation that was killed goes on with the parts that are not there yet, and one whose champion and data are those
of the last night takes the champion's scores from it. A part is found by the SHA-256 of everything its content
depends on: the model's identity as its caller knows it, the windows with their histories, the settings that change
numbers, the code of this package and of the forecaster, and the name and version of every installed package. So a
part is never taken for another; where in doubt it is made again.

Parts lie in the cache, which may be deleted at any time. Those that nobody asked for in a month are removed.

Shapes: R rows (series of all windows of a chunk, times variates), K measures, N series of the chunk, V variates,
H horizon.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import os
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.home import storage_errors
from toto_pipeline.settings.base import fingerprint

Floats = NDArray[np.float64]
FOLDER = "evaluation-parts"
_SCORE = "score:"
_UNUSED_SECONDS = 30 * 86400


@dataclass(frozen=True)
class Part:
    """Scores of a model on a chunk, and the seconds that its forecasts took."""

    scores_R: Mapping[str, Floats]
    series_KNV: Floats
    """Sums of the measures over the observed steps of all windows."""
    series_counts_KNV: Floats
    steps_KH: Floats
    """Sums of the measures over all series, variates and windows."""
    steps_counts_KH: Floats
    seconds: float


class Parts:
    """A folder of parts; without a folder nothing is kept and nothing found."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, key: str) -> Part | None:
        """The part with this key; None where there is none, or where it is damaged and has to be made again."""
        if self.folder is None:
            return None
        file = _file(self.folder, key)
        try:
            part = _decoded(file.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # the check sum in the file tells; the part is made again and replaced
        os.utime(file)
        return part

    def save(self, key: str, part: Part) -> None:
        """Keep a part; a reader sees it whole or not at all.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        if self.folder is not None:
            write_file(_file(self.folder, key), _encoded(part))

    def remove_unused(self, now: float | None = None) -> None:
        """Remove what nobody asked for in a month."""
        if self.folder is None or not self.folder.is_dir():
            return
        oldest = (time.time() if now is None else now) - _UNUSED_SECONDS
        with storage_errors(self.folder):
            for file in sorted(self.folder.iterdir()):
                if file.stat().st_mtime < oldest:
                    file.unlink(missing_ok=True)


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.part"


def part_key(**facts: Any) -> str:
    """SHA-256 (hex) of JSON-able facts and of the code that turns them into scores."""
    return fingerprint({**facts, "code": _own_code(), "packages": _packages()})


def code_of(forecaster: object) -> str:
    """SHA-256 (hex) of the module that a forecaster's class was written in; its name where there is no source."""
    cls = type(forecaster)
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        source = ""
    return hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}\n{source}".encode()).hexdigest()


@functools.cache
def _own_code() -> str:
    """SHA-256 (hex) of the sources of this package that make forecasts and scores."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted([*(root / "evaluation").rglob("*.py"), *(root / "models").rglob("*.py")]):
        digest.update(f"{file.relative_to(root)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _packages() -> str:
    """SHA-256 (hex) of the names and versions of all installed packages."""
    folders = [Path(folder) for folder in sys.path if Path(folder).is_dir()]
    found = sorted({entry.name for folder in folders for entry in folder.glob("*.dist-info")})
    return hashlib.sha256("\n".join([sys.version, *found]).encode()).hexdigest()


def _encoded(part: Part) -> bytes:
    arrays = {
        **{f"{_SCORE}{name}": values for name, values in part.scores_R.items()},
        "series": part.series_KNV,
        "series_counts": part.series_counts_KNV,
        "steps": part.steps_KH,
        "steps_counts": part.steps_counts_KH,
        "seconds": np.array(part.seconds),
    }
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **cast("dict[str, Any]", arrays))
    body = stream.getvalue()
    return hashlib.sha256(body).digest() + body


def _decoded(content: bytes) -> Part:
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("the check sum does not fit")
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return Part(
            scores_R={name.removeprefix(_SCORE): arrays[name] for name in arrays.files if name.startswith(_SCORE)},
            series_KNV=arrays["series"],
            series_counts_KNV=arrays["series_counts"],
            steps_KH=arrays["steps"],
            steps_counts_KH=arrays["steps_counts"],
            seconds=float(arrays["seconds"]),
        )
