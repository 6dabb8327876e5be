"""The manifest of a checkpoint: what it is, and the size and SHA-256 of every file in it.

A checkpoint folder without a manifest was never finished; one whose files differ from its manifest is damaged. The
manifest holds the hash of its own content too, because which checkpoint is the best is read from it. A file that cannot
be read just now (no permission, no free descriptor, a disk that does not answer) is no damage: nothing is known of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toto_pipeline.errors import CheckpointError, NewerCheckpointError, StorageError
from toto_pipeline.events.schema import number, spell_out

FILE_NAME = "manifest.json"
SCHEMA = 2
_CHUNK_BYTES = 1 << 20

Format = Literal["plain", "sharded"]
"""plain: one safetensors file a group of tensors. sharded: the files of all ranks below `shards/`."""


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Facts of one checkpoint.

    Attributes:
        created: Unix time in seconds.
        metrics: of the validation at this step; empty where there was none.
        ranks: training processes that wrote it.
    """

    step: int
    epoch: int
    created: float
    metrics: dict[str, float]
    files: dict[str, FileRecord]
    format: Format = "plain"
    ranks: int = 1
    schema: int = SCHEMA

    @property
    def size_bytes(self) -> int:
        return sum(record.bytes for record in self.files.values())

    def to_json(self) -> bytes:
        values = spell_out(asdict(self))
        values["checksum"] = _checksum(values)
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False).encode()


def describe_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file below `folder`, but the manifest itself."""
    return describe(folder, (f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != FILE_NAME))


def describe(folder: Path, files: Iterable[Path]) -> dict[str, FileRecord]:
    """Size and hash of `files`, by their names relative to `folder`."""
    return {str(file.relative_to(folder)): FileRecord(file.stat().st_size, sha256_of(file)) for file in files}


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises:
        NewerCheckpointError: it is of a newer schema than this program knows.
        CheckpointError: it is missing or not a manifest.
        StorageError: it is there, and the operating system does not let it be read.
    """
    file = folder / FILE_NAME
    with reading(file):
        content = file.read_bytes()
    try:
        values: dict[str, Any] = json.loads(content)
        schema = int(values["schema"])
        if schema > SCHEMA:
            raise NewerCheckpointError(
                f"{file}: schema {schema} was written by a newer version; this one reads up to {SCHEMA}. "
                "What to do: upgrade toto-pipeline. Nothing was changed."
            )
        if schema == 1:
            loss = values.pop("validation_loss")
            values["metrics"] = {} if loss is None else {"validation_loss": loss}
        elif values.pop("checksum") != _checksum(values):
            raise ValueError("its content differs from its own checksum")  # noqa: TRY301
        values["metrics"] = {name: number(value) for name, value in values["metrics"].items()}
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        return Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: is not the manifest of a checkpoint ({type(error).__name__}: {error})"
        ) from error


def verify(folder: Path) -> Manifest:
    """The manifest, after every file was found to be as it says.

    Raises:
        NewerCheckpointError: it is of a newer schema than this program knows.
        CheckpointError: names the first file that is missing, of another size, or of another hash.
        StorageError: names a file that the operating system does not let be read.
    """
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        file = folder / name
        with reading(file):
            size = file.stat().st_size
        if size != record.bytes:
            raise CheckpointError(f"{file}: has {size} bytes where the manifest says {record.bytes}")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        hashes = threads.map(lambda name: _hash_found(folder / name), manifest.files)
        for (name, record), found in zip(manifest.files.items(), hashes, strict=True):
            if found != record.sha256:
                raise CheckpointError(f"{folder / name}: its content differs from the manifest's SHA-256")
    return manifest


def _hash_found(file: Path) -> str:
    with reading(file):
        return sha256_of(file)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what the operating system says about a file that is read into what it means for the checkpoint."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{error.filename or file}: is missing from the checkpoint") from error
    except OSError as error:
        raise StorageError(
            f"{error.filename or file}: cannot be read ({error.strerror or error}). Expected: a disk that answers, and "
            "a file this user may read. What to do: mend that and start again. The checkpoint was left where it is."
        ) from error
