"""Loading `toto_pipeline.definitions` beyond Dagster's own import."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

LIMIT_SECONDS = 3.0
_SCRIPT = """
import time
started = time.perf_counter()
import dagster
import dagster_webserver
middle = time.perf_counter()
import toto_pipeline.definitions
print(middle - started, time.perf_counter() - middle)
"""


def run(quick: bool) -> list[dict[str, Any]]:
    pairs = [_measure() for _ in range(2 if quick else 5)]
    dagster, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    return [
        {"name": "Dagster's own import", "value": dagster, "unit": "s", "limit": None, "ok": None},
        {
            "name": "code location beyond Dagster's import",
            "value": ours,
            "unit": "s",
            "limit": f"<= {LIMIT_SECONDS}",
            "ok": ours <= LIMIT_SECONDS,
        },
    ]


def _measure() -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    first, second = done.stdout.split()
    return float(first), float(second)
