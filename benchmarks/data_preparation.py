"""How fast data is prepared, and in how much memory.

Each case generates its files, then takes a snapshot and prepares training data in a fresh process, whose peak resident
memory is read from the operating system. Speed is values a second over both steps.

    python benchmarks/data_preparation.py [--quick] [--json] [CASE ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

SERIES = 10_000
POINTS = 10_000
FILES = 100
MEMORY_LIMIT_BYTES = 1 << 30
START = np.datetime64("2020-01-01T00:00:00", "us")
STEP = np.timedelta64(10, "m")


@dataclass(frozen=True)
class Case:
    """`generate(folder, n_series, n_points)` writes the files; the speed is a promise where there is one."""

    name: str
    generate: Callable[[Path, int, int], None]
    least_points_per_second: float | None = None


def run(quick: bool, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Measure all cases (or those of these names): {name, value, unit, limit, ok} each, two a case."""
    n_series, n_points = (SERIES // 20, POINTS) if quick else (SERIES, POINTS)
    results: list[dict[str, Any]] = []
    for case in CASES:
        if names and case.name not in names:
            continue
        with tempfile.TemporaryDirectory(prefix="toto-benchmark-") as folder:
            case.generate(Path(folder), n_series, n_points)
            measured = _measure(Path(folder), n_series * n_points)
        results += _rows(case, measured)
    return results


def _rows(case: Case, measured: dict[str, float]) -> list[dict[str, Any]]:
    speed, memory = measured["points_per_second"], measured["peak_bytes"]
    least = case.least_points_per_second
    return [
        {
            "name": f"data preparation, {case.name}: speed",
            "value": round(speed / 1e6, 2),
            "unit": "million points/s",
            "limit": None if least is None else f"> {least / 1e6:g}",
            "ok": least is None or speed > least,
        },
        {
            "name": f"data preparation, {case.name}: peak memory",
            "value": round(memory / 2**20),
            "unit": "MiB",
            "limit": f"< {MEMORY_LIMIT_BYTES >> 20}",
            "ok": memory < MEMORY_LIMIT_BYTES,
        },
    ]


def _measure(folder: Path, n_values: int) -> dict[str, float]:
    """Prepare the data of `folder` in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--prepare", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    if measured["values"] != n_values:
        raise AssertionError(f"{measured['values']} values were prepared, not {n_values}")
    return {"points_per_second": n_values / measured["seconds"], "peak_bytes": float(measured["peak_bytes"])}


def _prepare(folder: Path) -> None:
    from toto_pipeline.data.snapshot import take_snapshot
    from toto_pipeline.data.training_data import prepare_training_data
    from toto_pipeline.home import Home
    from toto_pipeline.settings.data import DataSettings, PreparationSettings

    home = Home(folder / "home")
    started = time.perf_counter()
    snapshot = take_snapshot(DataSettings(source=str(folder / "source")), home)
    taken = time.perf_counter()
    data = prepare_training_data(snapshot, PreparationSettings(), home)
    ended = time.perf_counter()
    facts = {
        "seconds": ended - started,
        "snapshot_seconds": taken - started,
        "values": data.manifest.n_steps * len(data.manifest.variates),
        "peak_bytes": _peak_bytes(),
    }
    print(json.dumps(facts))


def _peak_bytes() -> int:
    """Peak resident memory of this process. `getrusage` would also count what its parent had when it forked."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _times(n_points: int) -> np.ndarray:
    return START + STEP * np.arange(n_points)


def _walks(n_series: int, n_points: int, seed: int) -> np.ndarray:
    """(n_series, n_points) random walks with two decimals."""
    steps = np.random.default_rng(seed).normal(size=(n_series, n_points))
    return np.round(np.cumsum(steps, axis=1), 2).astype(np.float32)


def _long_tables(folder: Path, n_series: int, n_points: int, write: Callable[[Any, Path], None]) -> None:
    source = folder / "source"
    source.mkdir()
    a_file = max(1, n_series // FILES)
    for first in range(0, n_series, a_file):
        names = [f"series_{number:05d}" for number in range(first, first + a_file)]
        ids = pa.DictionaryArray.from_arrays(np.repeat(np.arange(a_file, dtype=np.int32), n_points), names)
        values = _walks(a_file, n_points, first).ravel()
        table = pa.table(
            {"id": ids.cast(pa.string()), "timestamp": np.tile(_times(n_points), a_file), "target": values}
        )
        write(table, source / f"part_{first:05d}")


def _long_parquet(folder: Path, n_series: int, n_points: int) -> None:
    _long_tables(folder, n_series, n_points, lambda table, path: pq.write_table(table, f"{path}.parquet"))


def _long_csv(folder: Path, n_series: int, n_points: int) -> None:
    _long_tables(folder, n_series, n_points, lambda table, path: pacsv.write_csv(table, f"{path}.csv"))


def _wide_parquet(folder: Path, n_series: int, n_points: int) -> None:
    (folder / "source").mkdir()
    walks = _walks(n_series, n_points, 0)
    columns = {f"series_{number:05d}": walks[number] for number in range(n_series)}
    pq.write_table(pa.table({"timestamp": _times(n_points), **columns}), folder / "source" / "wide.parquet")


def _interleaved_parquet(folder: Path, n_series: int, n_points: int) -> None:
    """One long file, sorted by time: the rows of a series are as far apart as they can be."""
    (folder / "source").mkdir()
    names = pa.array([f"series_{number:05d}" for number in range(n_series)])
    schema = pa.schema([("id", pa.string()), ("timestamp", pa.timestamp("us")), ("target", pa.float32())])
    state = np.zeros(n_series)
    random = np.random.default_rng(0)
    with pq.ParquetWriter(folder / "source" / "interleaved.parquet", schema) as writer:
        for times in np.array_split(_times(n_points), max(1, n_points // 100)):
            walks = state + np.cumsum(random.normal(size=(len(times), n_series)), axis=0)
            state = walks[-1]
            ids = pa.DictionaryArray.from_arrays(np.tile(np.arange(n_series, dtype=np.int32), len(times)), names)
            values = np.round(walks, 2).astype(np.float32).ravel()
            columns = [ids.cast(pa.string()), np.repeat(times, n_series), values]
            writer.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema))


CASES = (
    Case("long Parquet", _long_parquet, 5e6),
    Case("long CSV", _long_csv, 1e6),
    Case("wide Parquet", _wide_parquet),
    Case("interleaved long Parquet", _interleaved_parquet),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the series")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        _prepare(options.prepare)
        return 0
    results = run(options.quick, tuple(options.cases))
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        for row in results:
            verdict = "" if row["limit"] is None else f"{row['limit']}  {'ok' if row['ok'] else 'MISSED'}"
            print(f"{row['name']:<56}{row['value']:>10} {row['unit']:<18}{verdict}")
    return 0 if all(row["ok"] for row in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
