"""The folder that tells Prometheus whom to scrape (its `file_sd_configs`): a file for each run that is watched.

    <run>.json     what Prometheus reads: the address, and the labels `job` and `run`
    <run>.owner    who wrote it: the exporter and the processes that train, by names that tell whether they still run

A run that ends in order takes both away. Where the exporter was killed, the file stays, so that Prometheus tells by
`up == 0` that nobody watches the run; it goes when the run has ended too and another exporter starts. What was written
on another machine, or by somebody else, is never touched.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.events.processes import is_alive, process_name
from toto_pipeline.home import storage_errors

JOB = "toto_training"
OWNER_SUFFIX = ".owner"


@dataclass(frozen=True)
class Owner:
    """Who wrote a target, and on what it depends."""

    host: str
    exporter: str
    trainers: tuple[str, ...] = ()
    ended: bool = False

    @classmethod
    def here(cls, trainers: Iterable[str] = (), *, ended: bool = False) -> Owner:
        return cls(platform.node(), process_name(), tuple(trainers), ended)

    def is_gone(self) -> bool:
        """Whether nothing can come of this target any more."""
        waits_for = (self.exporter,) if self.ended else (self.exporter, *self.trainers)
        return self.host == platform.node() and not any(is_alive(name) for name in waits_for)


@dataclass(frozen=True)
class Target:
    """The files of one run.

    Raises:
        StorageError: the folder cannot be written (from the methods that write).
    """

    folder: Path
    run: str

    @property
    def file(self) -> Path:
        return self.folder / f"{self.run}.json"

    @property
    def owner_file(self) -> Path:
        return self.folder / f"{self.run}{OWNER_SUFFIX}"

    def publish(self, address: str, owner: Owner) -> None:
        self.own(owner)
        group = {"targets": [address], "labels": {"job": JOB, "run": self.run}}
        write_file(self.file, orjson.dumps([group], option=orjson.OPT_INDENT_2))

    def own(self, owner: Owner) -> None:
        write_file(self.owner_file, orjson.dumps(asdict(owner)))

    def owner(self) -> Owner | None:
        """None where it is not known."""
        try:
            fields = orjson.loads(self.owner_file.read_bytes())
            return Owner(fields["host"], fields["exporter"], tuple(fields["trainers"]), fields["ended"])
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
            return None

    def withdraw(self) -> None:
        with storage_errors(self.folder):
            self.file.unlink(missing_ok=True)
            self.owner_file.unlink(missing_ok=True)

    def withdraw_own(self) -> None:
        """Unless another exporter has taken the run over."""
        owner = self.owner()
        if owner is not None and owner.exporter == process_name():
            self.withdraw()


def remove_stale(folder: Path) -> list[str]:
    """Take away the targets of runs that have ended and whose exporter is gone; the runs."""
    targets = [Target(folder, path.name.removesuffix(OWNER_SUFFIX)) for path in sorted(folder.glob(f"*{OWNER_SUFFIX}"))]
    stale = [target for target in targets if (owner := target.owner()) is not None and owner.is_gone()]
    for target in stale:
        target.withdraw()
    return [target.run for target in stale]


def reachable(host: str, port: int) -> str:
    """The address of a server that listens on `host`, for Prometheus on this machine or, if let in, on another."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = platform.node()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
