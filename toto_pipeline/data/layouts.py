"""Which column of a file is what: the wide, long and symbols layouts, and how they are told apart.

wide     timestamp | a | b | c        one series a column
long     id | timestamp | target      one row a step; GluonTS, Nixtla and fev each have their names for these
lists    id | timestamp[] | target[]  one row a series, as fev stores them (a kind of long)
symbols  timestamp | Open | Close     one file a series, its columns the variates
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from toto_pipeline.data.series import TARGET
from toto_pipeline.data.sources import Columns
from toto_pipeline.errors import DataError
from toto_pipeline.settings.data import DataSettings

Kind = Literal["wide", "long", "lists", "symbols"]

TIMESTAMP_NAMES = ("timestamp", "ds", "date", "datetime", "time", "timestamps", "date_time", "__index_level_0__")
ID_NAMES = ("item_id", "unique_id", "id", "series_id")
TARGET_NAMES = ("target", "y", "value")
_PRICES = frozenset(("open", "high", "low", "close"))
_OWN_NAMES = frozenset(("id", "source_file", "first_row", "n_rows", "start", "end", "timestamp"))


@dataclass(frozen=True)
class Layout:
    """Where a file's series are.

    Attributes:
        values: the columns that hold values: one a series (wide), or one a variate.
        variates: the variates of each series, in the order of `values` (just `target` for a univariate series).
        left_out: columns that are neither.
    """

    kind: Kind
    timestamp: str
    id: str | None
    values: tuple[str, ...]
    variates: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def ordered(self, variates: Sequence[str]) -> Layout:
        """The same layout with its variates in this order."""
        return self if len(variates) == 1 else replace(self, values=tuple(variates), variates=tuple(variates))


def recognise(columns: Columns, settings: DataSettings) -> Layout:
    """The layout of a file.

    Raises:
        DataError: a column that is needed is not there; names the columns that are, and the setting that helps.
    """
    timestamp = _timestamp_column(columns, settings)
    identifier = _id_column(columns, settings, timestamp)
    kind = _kind(columns, settings, timestamp, identifier)
    used_id = identifier if kind in ("long", "lists") else None
    values = _value_columns(columns, settings, kind, timestamp, used_id)
    univariate = kind == "wide" or (len(values) == 1 and kind != "symbols")
    taken = {timestamp, used_id, *values}
    layout = Layout(
        kind,
        timestamp,
        used_id,
        values,
        (TARGET,) if univariate else values,
        tuple(name for name in columns.names if name not in taken),
    )
    _check_variate_names(columns, layout)
    return layout


def common_variates(columns: Sequence[Columns], layouts: Sequence[Layout]) -> tuple[str, ...]:
    """The variates of the first file, which all others must have.

    Raises:
        DataError: a file has another layout or other variates; names both files.
    """
    first, first_file = layouts[0], columns[0].file.name
    for one, layout in zip(columns, layouts, strict=True):
        if layout.kind != first.kind:
            raise DataError(
                f"the layout is {layout.kind}, but that of {first_file} is {first.kind}",
                expected="files of one layout in a source",
                remedy="keep them apart, or set data.layout",
                file=one.file.name,
            )
        if set(layout.variates) != set(first.variates):
            other = sorted(set(layout.variates) ^ set(first.variates))
            raise DataError(
                f"the columns are not those of {first_file}: they differ in {', '.join(other)}",
                expected=f"the columns {', '.join(first.variates)} in every file",
                remedy="add what is missing, or name the common columns with data.value_columns",
                file=one.file.name,
                column=other[0],
            )
    return first.variates


def _timestamp_column(columns: Columns, settings: DataSettings) -> str:
    if settings.timestamp_column is not None:
        _require(columns, settings.timestamp_column, "data.timestamp_column")
        return settings.timestamp_column
    found = _named(columns, TIMESTAMP_NAMES)
    if found is None:
        raise DataError(
            f"there is no timestamp column among {_names(columns.names)}",
            expected=f"a column named {', '.join(TIMESTAMP_NAMES[:5])} or the like",
            remedy="rename the column, or set data.timestamp_column to its name",
            file=columns.file.name,
        )
    return found


def _id_column(columns: Columns, settings: DataSettings, timestamp: str) -> str | None:
    if settings.id_column is not None and settings.layout in ("auto", "long"):
        _require(columns, settings.id_column, "data.id_column")
        return settings.id_column
    found = _named(columns, ID_NAMES)
    if found is None and settings.layout == "long":
        raise DataError(
            f"there is no series id column among {_names(columns.names)}",
            expected=f"a column named {', '.join(ID_NAMES)}, because data.layout is long",
            remedy="set data.id_column to its name, or data.layout=wide if each column is a series",
            file=columns.file.name,
        )
    return None if found == timestamp else found


def _kind(columns: Columns, settings: DataSettings, timestamp: str, identifier: str | None) -> Kind:
    if settings.layout in ("wide", "symbols"):
        return "wide" if settings.layout == "wide" else "symbols"
    if identifier is not None:
        return "lists" if columns.kinds[timestamp] == "list" else "long"
    prices = _PRICES & {name.lower() for name in columns.names}
    return "symbols" if len(prices) >= 3 else "wide"


def _value_columns(
    columns: Columns, settings: DataSettings, kind: Kind, timestamp: str, identifier: str | None
) -> tuple[str, ...]:
    if settings.value_columns:
        for name in settings.value_columns:
            _require(columns, name, "data.value_columns")
        return tuple(settings.value_columns)
    wanted = "list" if kind == "lists" else "number"
    numeric = [
        name for name in columns.names if name and columns.kinds[name] == wanted and name not in (timestamp, identifier)
    ]
    if kind in ("long", "lists"):
        target = _named(columns, TARGET_NAMES)
        if target is not None:
            return (target,)
        if len(numeric) != 1:
            raise DataError(
                f"there is no value column among {_names(columns.names)}",
                expected=f"a column named {', '.join(TARGET_NAMES)}",
                remedy="set data.value_columns to the names of the columns to forecast",
                file=columns.file.name,
            )
    if not numeric:
        raise DataError(
            f"there is no number column among {_names(columns.names)}",
            expected="a timestamp column and at least one column of numbers",
            remedy="set data.value_columns to the columns to use, or correct the file",
            file=columns.file.name,
        )
    return tuple(numeric)


def _check_variate_names(columns: Columns, layout: Layout) -> None:
    taken = sorted(_OWN_NAMES & set(layout.variates))
    if taken:
        raise DataError(
            f"a variate cannot be called {taken[0]!r}",
            expected=f"variate names other than {', '.join(sorted(_OWN_NAMES))}",
            remedy="rename the column, or leave it out by setting data.value_columns",
            file=columns.file.name,
            column=taken[0],
        )


def _named(columns: Columns, known: Sequence[str]) -> str | None:
    by_name = {name.lower(): name for name in reversed(columns.names)}
    return next((by_name[name] for name in known if name in by_name), None)


def _require(columns: Columns, name: str, setting: str) -> None:
    if name not in columns.kinds:
        raise DataError(
            f"there is no column {name!r}, which {setting} names, among {_names(columns.names)}",
            expected=f"a column {name!r}",
            remedy=f"correct {setting}",
            file=columns.file.name,
        )


def _names(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
