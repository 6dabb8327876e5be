"""CSV files: what columns they have, their rows in batches, and, where a batch cannot be read, the exact place.

Arrow reads the rows. When it refuses some, `explain` reads the file again with Python's csv module, slowly, and finds
the row and column to name.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pacsv

from toto_pipeline.data.sources import ColumnKind, Columns, SourceFile, reading
from toto_pipeline.errors import DataError

_SNIFFED_ROWS = 50
_SNIFFED_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20
_DELIMITERS = ",;\t|"
_BINARY_STARTS = (b"PAR1", b"PK\x03\x04", b"\x89PNG", b"\x1f\x8b")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(\.\d{3})*,\d+([eE][+-]?\d+)?")
NULLS = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null",
]  # fmt: skip


def inspect_csv(file: SourceFile) -> Columns:
    """Columns of a CSV file, judged by its first rows.

    Raises:
        DataError: the file is empty, has a header only, is not UTF-8 text, or names a column twice.
    """
    with reading(file):
        head = _head(file)
    if not head.strip():
        raise _fault(
            file, "the file is empty", "a header line and data rows", "fill the file, or take it out of data.source"
        )
    delimiter = _delimiter(head)
    header, *rows = [line for line in csv.reader(io.StringIO(head), delimiter=delimiter) if any(line)]
    header = [name.strip() for name in header]
    _check_header(file, header)
    if not rows:
        raise _fault(
            file,
            "the file has a header and no rows",
            "data rows below the header",
            "fill the file, or take it out of data.source",
        )
    cells = list(zip(*(row for row in rows if len(row) == len(header)), strict=True)) or [()] * len(header)
    kinds = {name: _kind(column) for name, column in zip(header, cells, strict=True)}
    types = {name: "double" if kind == "number" else "string" for name, kind in kinds.items()}
    blank_lines = next(number for number, line in enumerate(head.splitlines()) if line.strip())
    return Columns(file, kinds, types, delimiter, blank_lines)


def csv_batches(columns: Columns, used: Sequence[str], numbers: Sequence[str], ids: str | None) -> Iterator[Any]:
    """Record batches of the `used` columns: numbers as float64, ids as a dictionary, anything else as text.

    Raises:
        DataError: names row and column of what cannot be read.
    """
    file = columns.file
    types = {name: pa.float64() if name in set(numbers) else pa.string() for name in used}
    if ids is not None:
        types[ids] = pa.dictionary(pa.int32(), pa.string())
    wide_row_bytes = 16 * len(columns.names)
    options = {
        "read_options": pacsv.ReadOptions(
            column_names=columns.names,
            skip_rows=columns.blank_lines + 1,
            block_size=max(_BLOCK_BYTES, 4 * wide_row_bytes),
        ),
        "parse_options": pacsv.ParseOptions(delimiter=columns.delimiter),
        "convert_options": pacsv.ConvertOptions(column_types=types, include_columns=list(used), null_values=NULLS),
    }
    rows = 0
    with reading(file), _open_binary(file) as stream:
        try:
            with pacsv.open_csv(stream, **options) as reader:
                for batch in reader:
                    rows += batch.num_rows
                    yield batch
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
            explain(columns, numbers)
            raise _fault(
                file, f"cannot be read as CSV ({error})", "UTF-8 text with the same number of cells in every row",
                "correct the file",
            ) from error  # fmt: skip


def explain(columns: Columns, numbers: Sequence[str]) -> None:
    """Read the file slowly and raise the DataError for its first fault; return if there is none."""
    file = columns.file
    places = [(columns.names.index(name), name) for name in numbers]
    row = 0
    with _open_binary(file) as stream:
        reader = csv.reader(_lines(file, stream), delimiter=columns.delimiter)
        header_seen = False
        for cells in reader:
            if not cells or (len(cells) == 1 and not cells[0].strip() and len(columns.names) > 1):
                continue
            if not header_seen:
                header_seen = True
                continue
            row += 1
            _check_row(columns, cells, places, row)


def _check_row(columns: Columns, cells: list[str], places: list[tuple[int, str]], row: int) -> None:
    file, expected = columns.file, len(columns.names)
    if len(cells) != expected:
        raise _fault(
            file, f"the row has {len(cells)} cells", f"{expected} cells in every row, as in the header",
            "correct the row (a text with a comma in it needs quotes)", row=row,
        )  # fmt: skip
    for place, name in places:
        if not _is_number(cells[place]):
            raise not_a_number(file.name, name, row, cells[place])


def not_a_number(file: str, column: str, row: int, text: str) -> DataError:
    """The error for text in a number column."""
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        return DataError(
            f"{text!r} is written with a decimal comma",
            expected="numbers with a decimal point, such as 1.5",
            remedy="write the file with decimal points",
            file=file,
            column=column,
            row=row,
        )
    return DataError(
        f"{text!r} is not a number",
        expected="a number, or an empty cell where the value is missing",
        remedy="correct the cell, or name the columns to use with data.value_columns",
        file=file,
        column=column,
        row=row,
    )


def looks_numeric(values: Sequence[str]) -> bool:
    """Whether text cells hold numbers, mostly: half of those that are not empty (none at all counts as numbers)."""
    filled = [value for value in values if value.strip() not in NULLS]
    numeric = sum(_is_number(value) or _DECIMAL_COMMA.fullmatch(value.strip()) is not None for value in filled)
    return 2 * numeric >= len(filled)


def _kind(values: Sequence[str]) -> ColumnKind:
    return "number" if looks_numeric(values) else "text"


def _is_number(text: str) -> bool:
    text = text.strip()
    if text in NULLS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _head(file: SourceFile) -> str:
    """The first rows as text, whole lines only."""
    with _open_binary(file) as stream:
        data = stream.read(1 << 16)
        if b"\0" in data or data.startswith(_BINARY_STARTS):
            raise _fault(
                file,
                "the file is binary, not CSV text",
                "comma-separated UTF-8 text",
                "give the file the suffix of what it is, or convert it",
            )
        while data.count(b"\n") <= _SNIFFED_ROWS and len(data) < _SNIFFED_BYTES and (more := stream.read(1 << 16)):
            data += more
        if stream.read(1):
            data = data[: data.rfind(b"\n") + 1] or data
    return "".join(_lines(file, io.BytesIO(data)))


def _lines(file: SourceFile, stream: IO[bytes]) -> Iterator[str]:
    """Lines of a file as text. A byte order mark is left out.

    Raises:
        DataError: names the row that is not UTF-8.
    """
    row = -1
    for number, line in enumerate(stream):
        if line.strip():
            row += 1
        try:
            yield line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise _fault(
                file, f"the bytes {error.object[error.start : error.start + 4]!r} are not UTF-8", "UTF-8 text",
                "save the file with the encoding UTF-8", row=row or None,
            ) from None  # fmt: skip


def _check_header(file: SourceFile, header: list[str]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None) if len(set(header)) < len(header) else None
    if twice is not None:
        raise _fault(
            file, f"the header names column {twice!r} twice", "a header line with a different name for each column",
            "rename one of the columns", column=twice,
        )  # fmt: skip


def _delimiter(head: str) -> str:
    first = head.lstrip().splitlines()[0]
    return max(_DELIMITERS, key=lambda delimiter: (first.count(delimiter), -_DELIMITERS.index(delimiter)))


def _open_binary(file: SourceFile) -> Any:
    return gzip.open(file.path, "rb") if file.name.lower().endswith(".gz") else file.path.open("rb")


def _fault(
    file: SourceFile, found: str, expected: str, remedy: str, column: str | None = None, row: int | None = None
) -> DataError:
    return DataError(found, expected=expected, remedy=remedy, file=file.name, column=column, row=row)
