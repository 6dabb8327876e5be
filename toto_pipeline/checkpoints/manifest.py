"""The manifest of a checkpoint: what it is, and the size and SHA-256 of every file in it.

A checkpoint folder without a manifest was never finished; one whose files differ from its manifest is damaged.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toto_pipeline.errors import CheckpointError

FILE_NAME = "manifest.json"
SCHEMA = 1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Facts of one checkpoint. `validation_loss` is None where nothing was validated."""

    step: int
    epoch: int
    created: float
    validation_loss: float | None
    files: dict[str, FileRecord]
    schema: int = SCHEMA

    @property
    def size_bytes(self) -> int:
        return sum(record.bytes for record in self.files.values())

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=2, sort_keys=True).encode()


def describe_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file below `folder`, but the manifest itself."""
    return {
        str(file.relative_to(folder)): FileRecord(file.stat().st_size, sha256_of(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != FILE_NAME
    }


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, unreadable, or of a newer schema than this program knows.
    """
    file = folder / FILE_NAME
    try:
        values: dict[str, Any] = json.loads(file.read_bytes())
        if int(values["schema"]) > SCHEMA:
            raise CheckpointError(
                f"{file}: schema {values['schema']} was written by a newer version; this one reads up to {SCHEMA}. "
                "What to do: upgrade toto-pipeline."
            )
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        return Manifest(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: is not the manifest of a checkpoint ({type(error).__name__}: {error})"
        ) from error


def verify(folder: Path) -> Manifest:
    """The manifest, after every file was found to be as it says.

    Raises:
        CheckpointError: names the first file that is missing, of another size, or of another hash.
    """
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing from the checkpoint")
        size = file.stat().st_size
        if size != record.bytes:
            raise CheckpointError(f"{file}: has {size} bytes where the manifest says {record.bytes}")
        if sha256_of(file) != record.sha256:
            raise CheckpointError(f"{file}: its content differs from the manifest's SHA-256")
    return manifest
