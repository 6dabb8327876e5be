"""From the setting `data.source` to the files it means, and what columns each of them has.

A source is `sample`, one file, a folder (searched through all its subfolders), or a glob. The files are CSV, CSV in
gzip, or Parquet.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toto_pipeline.errors import DataError
from toto_pipeline.settings.base import fingerprint
from toto_pipeline.settings.data import SAMPLE, DataSettings

SUFFIXES = {".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet", ".pq": "parquet"}
SAMPLE_FILE = Path(__file__).parent / "sample" / "appliances_energy.parquet"

ColumnKind = Literal["number", "text", "timestamp", "list", "other"]


@dataclass(frozen=True)
class SourceFile:
    path: Path
    format: Literal["csv", "parquet"]

    @property
    def name(self) -> str:
        """The file as messages call it."""
        return str(self.path)

    @property
    def stem(self) -> str:
        """The file's name without `.csv`, `.csv.gz` or `.parquet`."""
        return self.path.name[: -len(_suffix(self.path) or "")]

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True)
class Columns:
    """The columns of a file in their order, and what kind of values they hold.

    Attributes:
        delimiter: what is between the cells of a CSV file.
        blank_lines: blank lines above the header of a CSV file.
    """

    file: SourceFile
    kinds: dict[str, ColumnKind]
    types: dict[str, str]
    delimiter: str = ","
    blank_lines: int = 0

    @property
    def names(self) -> list[str]:
        return list(self.kinds)


def find_files(source: str) -> list[SourceFile]:
    """The files of a source, sorted by path.

    Raises:
        DataError: there is no such file or folder, or none that is CSV or Parquet.
    """
    if source == SAMPLE:
        return [SourceFile(SAMPLE_FILE, "parquet")]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_data(file, path))
        return _files(found, source, f"the folder holds no CSV or Parquet file{_others(path)}")
    if path.exists():
        return _files([path], source, "the file is neither CSV nor Parquet by its name")
    if glob.has_magic(source):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
        return _files(found, source, "the glob fits no CSV or Parquet file")
    raise DataError(
        "there is no such file or folder",
        expected="'sample', or an existing file, folder or glob of CSV or Parquet files",
        remedy=f"correct data.source (relative paths start at {Path.cwd()})",
        file=source,
    )


def source_key(settings: DataSettings) -> str:
    """A short name for what is read from where; it stays the same from one snapshot to the next."""
    place = settings.source if settings.source == SAMPLE else str(Path(settings.source).expanduser().absolute())
    columns = settings.timestamp_column, settings.id_column, settings.value_columns
    return fingerprint([place, settings.layout, *columns])[:16]


@contextmanager
def reading(file: SourceFile) -> Iterator[None]:
    """Turn what the operating system says about reading a source file into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror or error})",
            expected=f"a {file.format} file this user may read",
            remedy="check that the file is whole and readable, or take it out of data.source",
            file=file.name,
        ) from error


def _files(found: list[Path], source: str, nothing: str) -> list[SourceFile]:
    files = [
        SourceFile(path, "csv" if SUFFIXES[suffix] == "csv" else "parquet")
        for path in found
        if (suffix := _suffix(path))
    ]
    if not files:
        raise DataError(
            nothing,
            expected=f"files ending in {', '.join(SUFFIXES)}",
            remedy="point data.source at the files, or convert them",
            file=source,
        )
    return files


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    return not hidden and _suffix(file) is not None and file.is_file()


def _others(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return " (it is empty)"
    return f" (it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
