"""A run as a table."""

from __future__ import annotations

from array import array
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.log import read_events
from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.segments import log_files

if TYPE_CHECKING:
    import pandas as pd


def read_run(
    run_folder: Path | str, *, types: Collection[str] | None = None, every_attempt: bool = False
) -> pd.DataFrame:
    """All numbers that a run has recorded, one a row; of a run under way, those that are written by now.

    Args:
        run_folder: the folder of the run, which holds its events.
        types: only of events of these types, such as `("epoch",)`; all by default.
        every_attempt: keep also what a restart has gone back on. By default the rows of an earlier attempt that lie
            behind the step from which a later one resumed are left out.

    Returns:
        Columns time (UTC), type (category), attempt, step and epoch (nullable integers), name (category; see
        `measurements`) and value (float64), in the order in which they were recorded.

    Raises:
        ConfigError: there is no event log.
    """
    import numpy as np
    import pandas as pd

    folder = Path(run_folder)
    if not log_files(folder):
        raise ConfigError(
            f"{folder}: holds no event log. Expected: the folder of a run, with events.jsonl. "
            "What to do: name a folder below runs/ of the home."
        )
    times, values = array("d"), array("d")
    attempts, steps, epochs, names, kinds = (array("q") for _ in range(5))
    codes: dict[str, int] = {}
    kind_codes: dict[str, int] = {}
    resumed: list[tuple[int, int]] = []
    for event in read_events(folder):
        kind, attempt = event["type"], int(event.get("attempt", 1))
        if kind == "run_started" and event.get("resumed_from") is not None:
            resumed.append((attempt, int(event["resumed_from"])))
        if types is not None and kind not in types:
            continue
        for name, value in measurements(event):
            times.append(event["time"])
            kinds.append(kind_codes.setdefault(kind, len(kind_codes)))
            attempts.append(attempt)
            steps.append(event.get("step", -1))
            epochs.append(event.get("epoch", -1))
            names.append(codes.setdefault(name, len(codes)))
            values.append(value)
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime(np.asarray(times), unit="s", utc=True),
            "type": pd.Categorical.from_codes(np.asarray(kinds), categories=list(kind_codes)),
            "attempt": np.asarray(attempts),
            "step": pd.array(np.asarray(steps), dtype="Int64"),
            "epoch": pd.array(np.asarray(epochs), dtype="Int64"),
            "name": pd.Categorical.from_codes(np.asarray(names), categories=list(codes)),
            "value": np.asarray(values),
        }
    )
    for column in ("step", "epoch"):
        frame.loc[frame[column] < 0, column] = pd.NA
    if not every_attempt:
        for attempt, step in resumed:
            gone_back_on = (frame["attempt"] < attempt) & (frame["step"] > step).fillna(False).astype(bool)
            frame = frame[~gone_back_on]
    return frame.reset_index(drop=True)
