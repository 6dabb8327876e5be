"""Saving, finding and loading the checkpoints of a run.

    checkpoints/step_<n>/model.safetensors  optimizer.safetensors  ...  state.json  manifest.json
    checkpoints/step_<n>/shards/            instead of these, where several processes hold parts of the tensors
    checkpoints/quarantine/                 damaged ones, kept for whoever wants to know
    checkpoints/pins.json                   those that must stay

    training thread    wait for the save before -> check the disk -> copy to memory -> go on training
    writer thread      check the numbers -> write and hash -> rename -> retention -> backup

Tensors are safetensors, the rest is JSON; nothing is ever pickled. A checkpoint is verified against its hashes at every
load; a damaged one is set aside and the one before it is used.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError

from toto_pipeline.checkpoints import pins, plain, retention
from toto_pipeline.checkpoints.manifest import (
    FILE_NAME,
    FileRecord,
    Format,
    Manifest,
    describe,
    describe_files,
    read_manifest,
    reading,
    verify,
)
from toto_pipeline.checkpoints.ranks import OneRank, Ranks, together
from toto_pipeline.checkpoints.staging import Staging
from toto_pipeline.checkpoints.state import Checkpoint, State, Tensors, is_sharded, numbered, readable
from toto_pipeline.checkpoints.store import (
    LOCAL,
    TEMPORARY_PREFIX,
    FileSystem,
    discard_folder,
    make_folders,
    publish_folder,
    remove_temporaries,
    replace_folder,
    sync_tree,
)
from toto_pipeline.errors import CheckpointError, NewerCheckpointError, PipelineError, StorageError
from toto_pipeline.home import storage_errors
from toto_pipeline.settings.training import CheckpointSettings

__all__ = ["Checkpoint", "CheckpointManager", "State", "Tensors"]

_STATE_FILE = "state.json"
_NEVER_NOT_FINITE = ("model", "optimizer")


@dataclass(frozen=True)
class _Job:
    """A save on its way to the disk: `state` is what is neither a tensor nor a value."""

    state: State
    staged: Mapping[str, Tensors]
    values: bytes
    format: Format
    started: float
    blocked_seconds: float

    @property
    def name(self) -> str:
        return f"step_{self.state.step}"


def _ignore(type: str, **fields: Any) -> None: ...


class CheckpointManager:
    """The checkpoints of one run. One training writes, all its processes take part; any number may read.

    `report(type, **fields)` is told what happens, as events. `before_commit()` is called when a checkpoint is about to
    appear: the history that led to it should be on the disk by then. Both are also called from the writer thread.
    """

    def __init__(
        self,
        run_folder: Path,
        settings: CheckpointSettings | None = None,
        *,
        ranks: Ranks | None = None,
        report: Callable[..., None] = _ignore,
        before_commit: Callable[[], None] = lambda: None,
        files: FileSystem = LOCAL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run_folder = run_folder
        self.folder = run_folder / pins.FOLDER
        self.settings = settings or CheckpointSettings()
        self._ranks: Ranks = ranks or OneRank()
        self._background: Ranks = getattr(self._ranks, "background", self._ranks)
        self._report = report
        self._before_commit = before_commit
        self._files = files
        self._clock = clock
        self._staging = Staging()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._in_flight: Future[None] | None = None
        self._good: set[str] = set()
        self._just_verified: dict[Path, Manifest] = {}
        backups = self.settings.backup_folder
        self._backups = None if backups is None else Path(backups).expanduser() / run_folder.name

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._writer.shutdown()  # what failed to be saved was reported; the error that ends the run goes first

    def close(self) -> None:
        """Wait for what is in flight, and end the writer."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def prepare(self) -> None:
        """Make the folder and clear what a killed writer left in it."""
        if self._ranks.rank == 0:
            with storage_errors(self.folder):
                make_folders(self.folder, files=self._files)
                self._files.sync(self.run_folder.parent)  # whoever made the folder of the run may not have
                remove_temporaries(self.folder, files=self._files)
        self._ranks.barrier()

    def path(self, step: int) -> str:
        """Where the checkpoint of a step is or will be, relative to the run."""
        return f"{pins.FOLDER}/step_{step}"

    def save(self, state: State, *, wait: bool = False) -> str:
        """Start to save `state`; its tensors may change as soon as this returns. The path, relative to the run.

        All ranks call it; of tensors that all hold alike only rank 0 saves its own.

        Raises:
            StorageError: there is too little room on the disk; or what the save before this one failed with.
            CheckpointError: likewise.
        """
        started = time.perf_counter()
        self.wait()
        self._just_verified = {}
        format: Format = "sharded" if is_sharded(state.tensors) else "plain"
        if format == "sharded" or self._ranks.rank == 0:
            if format == "plain":
                self._check_room_at_once(state)
            staged = self._staging.take(state.tensors)
            values = json.dumps(dict(state.values), allow_nan=False).encode()
            facts = replace(state, metrics=dict(state.metrics), tensors={}, values={})
            job = _Job(facts, staged, values, format, started, time.perf_counter() - started)
            self._in_flight = self._writer.submit(self._commit, job)
        if wait or not self.settings.asynchronous:
            self.wait()
        return self.path(state.step)

    def wait(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            Exception: what the last save failed with, once.
        """
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints with a readable manifest, oldest first. Files are not verified here."""
        return readable(self.folder)  # `latest` and `best` set aside and report what is not

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones on the way are set aside.

        Where there is none left, the backup.

        Raises:
            NewerCheckpointError: one was written by a newer version; nothing is moved.
            StorageError: a file cannot be read, which says nothing about its content; nothing is moved.
        """
        return self._agree(self._latest)

    def best(self) -> Checkpoint | None:
        """The verified checkpoint that is best by `settings.metric`; the newest where none has a score.

        Raises:
            NewerCheckpointError: one was written by a newer version; nothing is moved.
            StorageError: a file cannot be read, which says nothing about its content; nothing is moved.
        """
        return self._agree(self._best)

    def load(self, checkpoint: Checkpoint, into: Mapping[str, Tensors] | None = None) -> State:
        """The state of a checkpoint, its hashes verified. Tensors are on the CPU, or in `into`, filled, if sharded.

        What `latest` or `best` verified just before is not verified again.

        Raises:
            CheckpointError: a file is missing or damaged.
            StorageError: a file cannot be read.
        """
        folder = checkpoint.folder
        manifest = self._just_verified.pop(folder, None) or verify(folder)
        try:
            with reading(folder):
                values = json.loads((folder / _STATE_FILE).read_bytes())
                sharded = manifest.format == "sharded"
                tensors = self._read_shards(folder, into) if sharded else plain.read(folder, manifest)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{folder}: a file is missing or not what its name says ({error})") from error
        return State(manifest.step, manifest.epoch, manifest.metrics, tensors, values, manifest.schema)

    def pin(self, name: str, reason: str) -> None:
        """Keep a checkpoint whatever the settings say."""
        pins.pin(self.run_folder, name, reason)

    def _agree(self, decide: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """What rank 0 decides, on all ranks, or raise on all what it raises there."""
        answer: Checkpoint | PipelineError | None = None
        if self._ranks.rank == 0:
            try:
                answer = decide()
            except PipelineError as error:
                answer = error
        answer = self._ranks.gather(answer)[0]
        if isinstance(answer, PipelineError):
            raise answer
        self._just_verified = {} if answer is None else {answer.folder: answer.manifest}  # by rank 0, for all
        return answer

    def _latest(self) -> Checkpoint | None:
        for folder in reversed(numbered(self.folder)):
            checkpoint = self._checked(folder, verify)
            if checkpoint is not None:
                return self._remember(checkpoint)
        return self._from_backup()

    def _best(self) -> Checkpoint | None:
        while True:
            found = [self._checked(folder, read_manifest) for folder in numbered(self.folder)]
            checkpoints = {c.name: c for c in found if c is not None}
            chosen = self._rank_by_metric(list(checkpoints.values()))
            if chosen is None:
                return self._latest()
            checkpoint = self._checked(checkpoints[chosen].folder, verify)
            if checkpoint is not None:
                return self._remember(checkpoint)

    def _rank_by_metric(self, checkpoints: list[Checkpoint]) -> str | None:
        kept = [self._kept(c, {}) for c in checkpoints]
        best = retention.best(kept, metric=self.settings.metric, mode=self.settings.mode)
        return best[0].name if best else None

    def _from_backup(self) -> Checkpoint | None:
        for folder in reversed(numbered(self._backups) if self._backups else []):
            try:
                checkpoint = Checkpoint(folder, verify(folder))
            except NewerCheckpointError:
                raise
            except CheckpointError as error:
                self._report("warning", name="backup_damaged", message=str(error))
                continue
            self._report("warning", name="backup_used", message=f"no checkpoint of the run verifies; using {folder}")
            return checkpoint
        return None

    def _remember(self, checkpoint: Checkpoint) -> Checkpoint:
        self._good.add(checkpoint.name)
        return checkpoint

    def _checked(self, folder: Path, check: Callable[[Path], Manifest]) -> Checkpoint | None:
        try:
            return Checkpoint(folder, check(folder))
        except NewerCheckpointError:
            raise
        except CheckpointError as error:
            if not folder.exists():
                return None  # the retention of the training removed it under the eyes of a reader
            moved = self._quarantine(folder)
            self._report(
                "checkpoint_quarantined",
                checkpoint=str(folder.relative_to(self.run_folder)),
                moved_to=str(moved.relative_to(self.run_folder)),
                reason=str(error),
            )
            return None

    def _quarantine(self, folder: Path) -> Path:
        place = self.folder / "quarantine"
        target, count = place / folder.name, 1
        while target.exists():
            count += 1
            target = place / f"{folder.name}.{count}"
        with storage_errors(place):
            make_folders(place, files=self._files)
            self._files.rename(folder, target)
        return target

    def _read_shards(self, folder: Path, into: Mapping[str, Tensors] | None) -> dict[str, Tensors]:
        if into is None:
            raise CheckpointError(f"{folder}: is sharded. Expected: tensors to load it into.")
        from toto_pipeline.checkpoints import sharded

        saved = sharded.names(folder)
        wanted = {g: {n: t for n, t in into[g].items() if n in names} for g, names in saved.items() if g in into}
        sharded.read(folder, wanted, getattr(self._ranks, "checkpoint_group", None))
        return wanted

    def _check_room_at_once(self, state: State) -> None:
        try:
            self._check_room(state.tensors)
        except StorageError as error:
            self._report_failure(state, error)
            raise

    def _check_room(self, tensors: Mapping[str, Tensors]) -> None:
        needed = sum(t.numel() * t.element_size() for members in tensors.values() for t in members.values())
        needed += int(self.settings.reserve_gib * 2**30)
        with storage_errors(self.folder):
            make_folders(self.folder, files=self._files)
            free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise StorageError(
                f"{self.folder}: {free / 2**20:.0f} MiB are free on the disk, and a checkpoint needs "
                f"{needed / 2**20:.0f} MiB with training.checkpoints.reserve_gib. What to do: free some, or keep fewer "
                "checkpoints. Everything saved earlier is untouched."
            )

    def _commit(self, job: _Job) -> None:
        """In the writer thread: from the copy in memory to a checkpoint on the disk."""
        try:
            self._staging.wait()
            checkpoint = self._commit_shards(job) if job.format == "sharded" else self._commit_plain(job)
            if self._ranks.rank == 0:
                self._announce(job, checkpoint)
                self._apply_retention()
                self._back_up()
        except Exception as error:
            self._report_failure(job.state, error)
            raise

    def _announce(self, job: _Job, checkpoint: Checkpoint) -> None:
        self._good.add(job.name)
        self._report(
            "checkpoint_saved",
            step=job.state.step,
            epoch=job.state.epoch,
            checkpoint=str(checkpoint.folder.relative_to(self.run_folder)),
            bytes=checkpoint.manifest.size_bytes,
            seconds=time.perf_counter() - job.started,
            blocked_seconds=job.blocked_seconds,
        )

    def _commit_plain(self, job: _Job) -> Checkpoint:
        def fill(folder: Path) -> None:
            with storage_errors(folder):
                plain.write(folder, job.staged)
            self._files.write(folder / _STATE_FILE, job.values)
            self._write_manifest(job, folder, describe_files(folder))

        self._before_commit()
        _refuse_not_finite(job)
        folder = publish_folder(self.folder / job.name, fill, files=self._files)
        return Checkpoint(folder, read_manifest(folder))

    def _commit_shards(self, job: _Job) -> Checkpoint:
        """All ranks write into one folder, and rank 0 makes it appear. What fails on one is raised on all."""
        ranks, final = self._background, self.folder / job.name
        temporary = final.with_name(f"{TEMPORARY_PREFIX}{job.name}-{ranks.gather(os.getpid())[0]}")
        try:
            together(ranks, lambda: self._begin_shards(job, temporary))
            records = self._write_shards(job, temporary)
            together(ranks, lambda: self._finish_shards(job, temporary, records))
        except Exception:
            if ranks.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return Checkpoint(final, read_manifest(final))

    def _begin_shards(self, job: _Job, temporary: Path) -> None:
        self._before_commit()
        _refuse_not_finite(job)
        if self._background.rank == 0:
            self._check_room(job.staged)
            with storage_errors(self.folder):
                remove_temporaries(self.folder, files=self._files)
                self._files.make_folder(temporary)

    def _write_shards(self, job: _Job, temporary: Path) -> dict[str, FileRecord]:
        """Size and hash of the files of all ranks; each hashes its own."""
        from toto_pipeline.checkpoints import sharded

        mine = sharded.write(temporary, job.staged, getattr(self._background, "checkpoint_group", None))
        everyones = together(self._background, lambda: describe(temporary, mine))
        return {name: record for records in everyones for name, record in records.items()}

    def _finish_shards(self, job: _Job, temporary: Path, records: dict[str, FileRecord]) -> None:
        if self._background.rank > 0:
            return
        with storage_errors(self.folder):
            self._files.write(temporary / _STATE_FILE, job.values)
            self._write_manifest(job, temporary, records | describe(temporary, [temporary / _STATE_FILE]))
            sync_tree(temporary, files=self._files)
            replace_folder(temporary, self.folder / job.name, files=self._files)
            self._files.sync(self.folder)

    def _write_manifest(self, job: _Job, folder: Path, records: dict[str, FileRecord]) -> None:
        state = job.state
        manifest = Manifest(
            state.step, state.epoch, self._clock(), dict(state.metrics), records, job.format, self._ranks.size
        )
        self._files.write(folder / FILE_NAME, manifest.to_json())

    def _apply_retention(self) -> None:
        pinned = pins.read_pins(self.run_folder)
        kept = [self._kept(c, pinned) for c in self.checkpoints()]
        with storage_errors(self.folder):
            for name in retention.to_delete(kept, self.settings):
                discard_folder(self.folder / name, files=self._files)

    def _kept(self, checkpoint: Checkpoint, pinned: Mapping[str, str]) -> retention.Kept:
        name, manifest = checkpoint.name, checkpoint.manifest
        return retention.Kept(name, manifest.step, manifest.metrics, name in self._good, name in pinned)

    def _back_up(self) -> None:
        """Copy the best to the backup folder, then drop older copies. A failure is told, and training goes on."""
        best = self._to_back_up()
        if self._backups is None or best is None:
            return
        target = self._backups / best.name
        try:
            with storage_errors(self._backups):
                publish_folder(target, lambda folder: _copy(best.folder, folder))
                verify(target)
                for older in numbered(self._backups):
                    if older != target:
                        discard_folder(older)
        except (OSError, StorageError, CheckpointError) as error:
            self._report_failure(best.manifest, error, prefix="backup: ")
            return
        self._report("checkpoint_backed_up", checkpoint=f"{pins.FOLDER}/{best.name}", folder=str(target))

    def _to_back_up(self) -> Checkpoint | None:
        """The best of the run and of the backups, if the backups do not hold it: an earlier copy may have failed."""
        if self._backups is None:
            return None
        copies = {c.name: c for c in readable(self._backups)}
        own = {c.name: c for c in self.checkpoints()}
        best = own.get(self._rank_by_metric(list({**copies, **own}.values())) or "")
        held = best is not None and best.name in copies and copies[best.name].manifest == best.manifest
        return None if held else best

    def _report_failure(self, of: State | Manifest, error: Exception, prefix: str = "") -> None:
        self._report(
            "checkpoint_failed",
            step=of.step,
            epoch=of.epoch,
            checkpoint=f"{pins.FOLDER}/step_{of.step}",
            reason=f"{prefix}{error}",
            error=type(error).__name__,
        )


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _refuse_not_finite(job: _Job) -> None:
    """Raise where weights or optimizer hold NaN or infinity: such a state must not push a good one out."""
    for group in _NEVER_NOT_FINITE:
        for name, tensor in job.staged.get(group, {}).items():
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            if local.is_floating_point() and not bool(local.isfinite().all()):
                raise CheckpointError(
                    f"step {job.state.step}: {group}/{name} holds numbers that are not finite, so it is not saved. "
                    "What to do: lower training.learning_rate; earlier checkpoints are untouched."
                )
