"""Timestamps of any column type as microseconds since 1970.

Timestamps without a time zone stay as they are. Those with one are converted to UTC. One source is either the one or
the other: a mixture would silently shift some series against others, so it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toto_pipeline.data.series import Int64Array
from toto_pipeline.errors import DataError

NAIVE = "no time zone"
UTC = "UTC"
MISSING_WORDS = frozenset(("", "na", "n/a", "nan", "nat", "null", "none", "#n/a"))
_UTC_NAMES = frozenset(("utc", "z", "etc/utc", "gmt", "+00:00", "-00:00", "+0000", "+00"))
_OFFSET = r"\d:\d\d.*?(?P<zone>[Zz]|[+-]\d\d(?::?\d\d)?)$"
_MICROSECONDS = pa.timestamp("us")
_EXPECTED = "an ISO 8601 time such as 2024-01-31 or 2024-01-31T13:00:00"


@dataclass
class Zones:
    """The time zone of a source; `note` refuses a second one."""

    name: str | None = None
    file: str = ""
    offsets: set[str] = field(default_factory=set)

    def note(self, zone: str, file: str, column: str, row: int) -> None:
        """Remember `zone`, seen in `file`.

        Raises:
            DataError: another zone was seen before. Two offsets an hour apart pass: summer and winter time.
        """
        zone = UTC if zone.lower() in _UTC_NAMES else zone
        if self.name is None:
            self.name, self.file = zone, file
        if zone != self.name and not _summer_and_winter(self.offsets | {self.name, zone}):
            raise DataError(
                f"mixed time zones: {_zone_words(zone)} here, {_zone_words(self.name)} before (in {self.file})",
                expected="one time zone, or none at all, in all timestamps of a source",
                remedy="write all timestamps in UTC, or all without a time zone",
                file=file,
                column=column,
                row=row,
            )
        self.offsets.add(zone)

    @property
    def sentences(self) -> list[str]:
        """What was done to time zones, for the record."""
        if self.name in (None, NAIVE):
            return []
        return [f"Timestamps in {' and '.join(sorted(self.offsets))} are kept in UTC."]


def to_microseconds(column: Any, zones: Zones, file: str, name: str, first_row: int) -> Int64Array:
    """Timestamps of an Arrow array (timestamps, dates or ISO text) as int64 microseconds.

    Raises:
        DataError: names the row of the first timestamp that is missing, unreadable, or of another time zone.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if len(array) == 0:
        return np.empty(0, dtype=np.int64)
    if array.null_count:
        raise _missing(file, name, first_row + _first(pc.is_null(array)))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = _parse(array, zones, file, name, first_row)
    elif pa.types.is_timestamp(array.type):
        zones.note(array.type.tz or NAIVE, file, name, first_row)
    elif pa.types.is_date(array.type):
        zones.note(NAIVE, file, name, first_row)
    else:
        raise DataError(
            f"{array.type} values where timestamps were looked for",
            expected=f"timestamps, dates or text ({_EXPECTED})",
            remedy="convert the column, or set data.timestamp_column to the column that holds the timestamps",
            file=file,
            column=name,
        )
    if array.type != _MICROSECONDS:
        array = array.cast(pa.timestamp("us", array.type.tz if pa.types.is_timestamp(array.type) else None), safe=False)
    values: Int64Array = array.view(pa.int64()).to_numpy(zero_copy_only=False)
    return values


def _parse(array: Any, zones: Zones, file: str, name: str, first_row: int) -> Any:
    try:
        parsed = array.cast(_MICROSECONDS)
    except pa.ArrowInvalid:
        return _parse_with_zones(array, zones, file, name, first_row)
    zones.note(NAIVE, file, name, first_row)
    return parsed


def _parse_with_zones(array: Any, zones: Zones, file: str, name: str, first_row: int) -> Any:
    array = array.cast(pa.string())
    matched = pc.extract_regex(array, _OFFSET)
    zone = pc.if_else(pc.is_valid(matched), pc.struct_field(matched, 0), pa.scalar(NAIVE))
    zone = pc.if_else(pc.equal(zone, ""), pa.scalar(NAIVE), zone)
    aware = pc.not_equal(zone, NAIVE)
    for kind, type_ in ((aware, pa.timestamp("us", UTC)), (pc.invert(aware), _MICROSECONDS)):
        rows = np.flatnonzero(kind.to_numpy(zero_copy_only=False))
        bad = _first_failing(array.take(pa.array(rows)), type_)
        if bad is not None:
            raise _unreadable(array[int(rows[bad])].as_py(), file, name, first_row + int(rows[bad]))
    for one in pc.unique(zone).to_pylist():
        zones.note(one, file, name, first_row + _first(pc.equal(zone, one)))
    return array.cast(pa.timestamp("us", UTC))


def _first_failing(array: Any, type_: Any) -> int | None:
    """Position of the first text that cannot be cast to `type_`, by halving."""
    try:
        array.cast(type_)
    except pa.ArrowInvalid:
        pass
    else:
        return None
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            array[low:middle].cast(type_)
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low


def _unreadable(text: str, file: str, column: str, row: int) -> DataError:
    if text.strip().lower() in MISSING_WORDS:
        return _missing(file, column, row)
    return DataError(
        f"{text!r} is not a timestamp",
        expected=_EXPECTED,
        remedy="correct the row, or set data.timestamp_column to the column that holds the timestamps",
        file=file,
        column=column,
        row=row,
    )


def _missing(file: str, column: str, row: int) -> DataError:
    return DataError(
        "the timestamp is missing",
        expected=f"{_EXPECTED} in every row",
        remedy="fill it in, or delete the row",
        file=file,
        column=column,
        row=row,
    )


def _first(mask: Any) -> int:
    return int(np.argmax(mask.to_numpy(zero_copy_only=False)))


def _zone_words(zone: str) -> str:
    return zone if zone in (NAIVE, UTC) else f"time zone {zone}"


def _summer_and_winter(zones: set[str]) -> bool:
    minutes = {_offset_minutes(zone) for zone in zones}
    if None in minutes:
        return False
    known = [value for value in minutes if value is not None]
    return max(known) - min(known) <= 60


def _offset_minutes(zone: str) -> int | None:
    if zone == UTC:
        return 0
    digits = zone[1:].replace(":", "")
    if zone[:1] not in "+-" or not digits.isdigit():
        return None
    minutes = int(digits[:2]) * 60 + int(digits[2:4] or 0)
    return -minutes if zone[0] == "-" else minutes
