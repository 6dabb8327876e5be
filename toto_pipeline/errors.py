"""The errors a user can mend. Each says what was found, what was expected, and what to do.

The command line prints the message without a traceback and exits with `exit_code`; Dagster fails the asset
with the same text. Everything else that is raised is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class PipelineError(Exception):
    """Something a user did, or can mend. `str(error)` is the whole message."""

    exit_code: ClassVar[int] = 1


class ConfigError(PipelineError):
    """A setting is unknown, misspelt, of the wrong type or out of range."""

    exit_code = 2


class DataError(PipelineError):
    """Input data cannot be used as it is.

    The message reads `file, column, row: found; expected ...; remedy`, with the parts that are known.
    `row` counts data rows from 1, not counting the header.
    """

    exit_code = 3

    def __init__(
        self,
        found: str,
        *,
        expected: str,
        remedy: str,
        file: Path | str | None = None,
        column: str | None = None,
        row: int | None = None,
    ) -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        self.file = None if file is None else str(file)
        self.column = column
        self.row = row
        where = [
            self.file,
            None if column is None else f"column {column!r}",
            None if row is None else f"row {row}",
        ]
        place = ", ".join(part for part in where if part)
        super().__init__(f"{place + ': ' if place else ''}{found}. Expected: {expected}. What to do: {remedy}")


class ForecastInputError(DataError):
    """A data frame cannot be forecast as it is; `column` and `row` say where, as far as there is a place."""


class WeightsError(PipelineError):
    """Model weights cannot be found, or do not fit the architecture."""

    exit_code = 4


class CheckpointError(PipelineError):
    """A checkpoint is damaged, or there is none where one is needed."""

    exit_code = 5


class NewerCheckpointError(CheckpointError):
    """A checkpoint was written by a newer version of this program; nothing is wrong with it."""


class StorageError(PipelineError):
    """The home cannot be written: permissions, a read-only file system, a full disk."""

    exit_code = 6


class TrainingError(PipelineError):
    """Training ended without a usable model."""

    exit_code = 7


class RegistryError(PipelineError):
    """The model registry cannot be reached, or does not hold what was asked for."""

    exit_code = 8


class EvaluationError(PipelineError):
    """Models cannot be compared: a forecast is not usable, or an evaluation is missing or damaged."""

    exit_code = 9
