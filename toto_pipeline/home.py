"""Where everything lives: one home, `$TOTO_HOME` or `./.toto`.

    snapshots/<hash>/        validated input data, content-addressed
    training_data/<hash>/    regularised series and their splits, memory-mapped by the trainer
    runs/<run>/              one retraining: config.json, events.jsonl, checkpoints/, model/, evaluation/, report.html
    forecasts/<id>/          what a champion forecast of a snapshot: forecasts.parquet, pictures/, forecast.json
    registry/                mlflow.db and the artifacts of registered models
    dagster/                 Dagster's own storage and logs
    cache/                   what may be deleted at any time

Nothing inside a run names an absolute path, so a run folder can be moved or copied.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toto_pipeline.errors import PipelineError, StorageError

HOME_VARIABLE = "TOTO_HOME"
DEFAULT_HOME = ".toto"


@dataclass(frozen=True)
class Home:
    """The folders of one home. Creating the object touches no disk; `prepare()` does."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        return cls(Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().absolute())

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def training_data(self) -> Path:
        return self.root / "training_data"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def forecasts(self) -> Path:
        return self.root / "forecasts"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def dagster(self) -> Path:
        return self.root / "dagster"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def prepare(self) -> Home:
        """Create the home and prove that it can be written.

        Raises:
            StorageError: the folder cannot be created or written.
        """
        with storage_errors(self.root):
            for folder in (self.snapshots, self.training_data, self.runs, self.registry, self.dagster, self.cache):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"toto")
                probe.flush()
        return self

    def run(self, run_id: str) -> Path:
        return self.runs / run_id

    def find_run(self, prefix: str) -> Path:
        """The run folder named by a full id, an unambiguous beginning of one, or `latest`.

        Raises:
            PipelineError: no run, or more than one, fits.
        """
        names = self.run_names()
        if not names:
            raise PipelineError(f"No runs in {self.runs}. Start one with: toto-pipeline retrain")
        if prefix == "latest":
            return self.runs / names[-1]
        fitting = [name for name in names if name.startswith(prefix)]
        if len(fitting) == 1:
            return self.runs / fitting[0]
        problem = "fits no run" if not fitting else f"fits {len(fitting)} runs: {', '.join(fitting[:5])}"
        raise PipelineError(f"{prefix!r} {problem}. `toto-pipeline runs` lists them; `latest` names the newest.")

    def run_names(self) -> list[str]:
        """Run ids, oldest first."""
        if not self.runs.is_dir():
            return []
        folders = [entry for entry in self.runs.iterdir() if (entry / "config.json").is_file()]
        return [folder.name for folder in sorted(folders, key=lambda f: (f / "config.json").stat().st_mtime)]


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a disk into a message with the way out."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{place}: the disk is full ({error.strerror}). Expected: free space below {path}. What to do: "
                f"free some, or point {HOME_VARIABLE} at a larger disk. Everything saved earlier is untouched."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(
                f"{place}: cannot be written ({error.strerror}). Expected: a folder this user may write. "
                f"What to do: change its owner or mode, or point {HOME_VARIABLE} elsewhere."
            ) from error
        raise
