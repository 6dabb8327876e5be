"""The files of registered versions: where they are, bringing them here, and whether they are what was registered."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.manifest import FileRecord, sha256_of
from toto_pipeline.checkpoints.store import publish_folder
from toto_pipeline.errors import RegistryError
from toto_pipeline.monitoring.mlflow_connection import TRANSFER_SECONDS, Store
from toto_pipeline.monitoring.mlflow_run import artifact_folder
from toto_pipeline.settings.base import fingerprint

ARTIFACT = "model"
"""Name of the artifact folder of an MLflow run that holds the model."""
FILES_TAG = "toto.files"

Files = Mapping[str, FileRecord]


class VersionFiles:
    """Files of the versions of one model: below the local store, or on a server and in a cache."""

    def __init__(self, store: Store, model_name: str, cache: Path) -> None:
        self._store, self._name, self._cache = store, model_name, cache

    def path(self, run_id: str, version: str) -> Path:
        """Where the files of a version are, or with a server will be once they are brought."""
        if self._store.local:
            return artifact_folder(self._store, run_id) / ARTIFACT
        server = fingerprint(self._store.uri)[:8]
        return self._cache / f"{server}-{self._name}-{version}"

    def keep(self, client: Any, folder: Path, run_id: str, extra: Mapping[str, bytes]) -> None:
        """Make the files of `folder`, and `extra` by name, the model of an MLflow run."""
        if self._store.local:
            publish_folder(self.path(run_id, ""), lambda new: _copy(folder, new, extra))
            return
        with tempfile.TemporaryDirectory() as temporary, self._store.talking(TRANSFER_SECONDS):
            client.log_artifacts(run_id, str(folder), ARTIFACT)
            _write(Path(temporary), extra)
            if extra:
                client.log_artifacts(run_id, temporary, ARTIFACT)

    def bring(self, client: Any, run_id: str, version: str, files: Files) -> Path:
        """The files of a version on this machine, downloaded where they are not there as recorded."""
        path = self.path(run_id, version)
        if not self._store.local and difference(path, files) is not None:
            self._download(client, run_id, path)
        return path

    def _download(self, client: Any, run_id: str, target: Path) -> None:
        def fill(new: Path) -> None:
            with self._store.talking(TRANSFER_SECONDS):
                brought = client.download_artifacts(run_id, ARTIFACT, str(new))
            for file in Path(brought).iterdir():
                file.rename(new / file.name)
            Path(brought).rmdir()

        publish_folder(target, fill)


def write_records(files: Files) -> str:
    """Size and hash of every file, as the tag of a version."""
    return json.dumps({name: [record.bytes, record.sha256] for name, record in files.items()}, sort_keys=True)


def read_records(tags: Mapping[str, str]) -> dict[str, FileRecord] | None:
    """What `write_records` wrote; None where it did not."""
    try:
        recorded = json.loads(tags[FILES_TAG])
        return {name: FileRecord(int(size), str(digest)) for name, (size, digest) in recorded.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def refuse_other_files(found: Files, recorded: Files, *, generated: frozenset[str], where: str, run: str) -> None:
    """Raise unless the files of a run are those that it was registered with; `generated` ones may differ.

    Raises:
        RegistryError: names the files that are others.
    """
    names = {*found, *recorded} - generated
    changed = sorted(name for name in names if found.get(name) != recorded.get(name))
    if changed:
        raise RegistryError(
            f"Run {run} is already registered as {where}, with other content of {', '.join(changed)}. Expected: the "
            "files that were registered. What to do: start a new run for a new model."
        )


def difference(folder: Path, files: Files) -> str | None:
    """The first way in which a folder is not as recorded, in words; None where it is."""
    for name, record in files.items():
        file = folder / name
        if not file.is_file():
            return f"{file}: is missing"
        size = file.stat().st_size
        if size != record.bytes:
            return f"{file}: has {size} bytes, registered were {record.bytes}"
        if sha256_of(file) != record.sha256:
            return f"{file}: its content was changed (its SHA-256 is not the registered one)"
    return None


def _copy(source: Path, target: Path, extra: Mapping[str, bytes]) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
    _write(target, extra)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def describe_contents(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    """Size and hash of files that are not on a disk yet."""
    return {name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
