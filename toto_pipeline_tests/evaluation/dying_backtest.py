"""A back-test in a process of its own that is killed with -9 at the nth forecast: FOLDER LOG DIE_AT (0: never)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import orjson

from toto_pipeline.evaluation.backtest import backtest
from toto_pipeline.settings.promotion import EvaluationSettings
from toto_pipeline_tests.evaluation.small_data import Steady, small_data, wave


class Recorded(Steady):
    """Writes a line a forecast, before it answers."""

    def __init__(self, log: Path, die_at: int) -> None:
        super().__init__()
        self.log, self.die_at, self.count = log, die_at, 0

    def forecast(self, history_BVT: np.ndarray, horizon: int) -> np.ndarray:
        self.count += 1
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.log.open("a") as file:
            file.write(f"{len(history_BVT)}\n")
        return super().forecast(history_BVT, horizon)


def main() -> None:
    folder, log, die_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    data = small_data(folder / "data", {f"s{i}": wave(300, i) for i in range(6)}, chunk=2)
    evaluation = backtest(
        {"candidate": Recorded(log, die_at)},
        data,
        EvaluationSettings(pictures=0, worst_pictures=0),
        cache=folder / "cache",
        identities={"candidate": {"weights": "5eed"}},
    )
    tables = {"scores": evaluation.scores, "by_series": evaluation.by_series, "by_step": evaluation.by_step}
    content = {name: table.to_pydict() for name, table in tables.items()}
    print(orjson.dumps({**content, "fingerprint": evaluation.windows_fingerprint}).decode())


if __name__ == "__main__":
    main()
