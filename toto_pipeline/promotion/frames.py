"""Forecasts of a data frame: the same reading, checking and regularising as for files, without any file of the user's.

A frame in the long layout has a column `id`, a column `timestamp` and one column for each variate of the model
(`target` where it has one). A frame without an id is wide, each of its columns a series; of a model with several
variates it is one series. Further names for the columns are those that `data.layout` knows.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toto_pipeline.data.layouts import ID_NAMES, TARGET_NAMES, TIMESTAMP_NAMES
from toto_pipeline.data.series import TARGET
from toto_pipeline.errors import DataError, ForecastInputError
from toto_pipeline.home import Home
from toto_pipeline.models.forecaster import QUANTILES, Forecaster
from toto_pipeline.promotion.model_folder import ForecastingFacts

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from toto_pipeline.config import RetrainSettings
    from toto_pipeline.forecasting import SeriesForecast

FRAME = "the data frame"
"""What error messages call it."""
ONLY_SERIES = "series"
"""The id of the one series of a frame without ids, for a model of several variates."""
_FILE = "frame.parquet"
_BATCH_SIZE = 64


class FrameForecaster:
    """A model and how it is to be used. Safe to call from several threads, which take turns."""

    def __init__(self, forecaster: Forecaster, facts: ForecastingFacts) -> None:
        self.forecaster = forecaster
        self.facts = facts
        self._turn = threading.Lock()

    def forecast(self, frame: pd.DataFrame, horizon: int | None = None, settings: Sequence[str] = ()) -> pd.DataFrame:
        """Quantile forecasts of the `horizon` steps behind the end of every series of `frame`.

        Args:
            frame: long or wide; see the module.
            horizon: steps ahead; by default what the model was trained for.
            settings: as for `--set`, of `data` and `preparation`, such as `data.duplicates=mean`.

        Returns:
            A row for each series, variate and step: id, variate, timestamp, and the quantiles 0.1 to 0.9. Timestamps
            are in UTC where those of `frame` have a time zone.

        Raises:
            ForecastInputError: the frame cannot be used; names the column and the row (counted from 1).
            ConfigError: a setting is not known or not valid.
        """
        table, layout = arrow_table(frame, self.facts.variates)
        ahead = self.facts.horizon if horizon is None else _checked_horizon(horizon)
        chosen = forecast_settings(self.facts, ahead, layout, settings)
        with self._turn:
            return _frame(list(self._forecasts(table, chosen)))

    def _forecasts(self, table: pa.Table, settings: RetrainSettings) -> Iterator[SeriesForecast]:
        import pyarrow.parquet as pq

        from toto_pipeline.data.snapshot import take_snapshot
        from toto_pipeline.forecasting import forecast

        with tempfile.TemporaryDirectory(prefix="toto-forecast-") as scratch, _of_the_frame(scratch):
            file = Path(scratch) / _FILE
            pq.write_table(table, file)
            data = settings.data.model_copy(update={"source": str(file)})
            snapshot = take_snapshot(data, Home(Path(scratch) / "home").prepare())
            preparation = settings.preparation
            if preparation.frequency is None and snapshot.manifest.frequency is None:
                preparation = preparation.model_copy(update={"frequency": self.facts.frequency})
            yield from forecast(snapshot, self.forecaster, preparation, batch_size=_BATCH_SIZE)


def forecast_settings(
    facts: ForecastingFacts, horizon: int, given: Sequence[str] = (), assignments: Sequence[str] = ()
) -> RetrainSettings:
    """The settings under which new data are read as the training data were; `assignments` win.

    Args:
        given: assignments that say where the data are and how they are laid out.

    Raises:
        ConfigError: an assignment is not valid.
    """
    import orjson

    from toto_pipeline.config import load_settings

    irregular, frequency = (facts.preparation.get(name) for name in ("irregular", "frequency"))
    trained = {
        **{f"data.{name}": value for name, value in facts.policies.items()},
        "data.constant_series": "keep",
        "data.vanished": "accept",
        "preparation.context_length": facts.context_length,
        **({"preparation.irregular": irregular} if irregular else {}),
        **({"preparation.frequency": frequency} if frequency else {}),
    }
    ours = [f"{name}={orjson.dumps(value).decode()}" for name, value in trained.items()]
    return load_settings(None, None, [*ours, *given, *assignments, f"preparation.horizon={horizon}"])


def arrow_table(frame: pd.DataFrame, variates: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """A frame as a table with the columns that a forecast needs, and the settings that tell which is which.

    Args:
        variates: those of the model; none where they are not known.

    Raises:
        ForecastInputError: a column is missing, unknown or not of numbers, or there are no rows.
    """
    import pyarrow as pa

    frame = _with_text_names(frame)
    if frame.empty:
        raise ForecastInputError(
            f"it has {len(frame)} rows and {len(frame.columns)} columns",
            expected="the history of at least one series, a row a step",
            remedy="pass the rows that the forecast is to follow on",
            file=FRAME,
        )
    timestamp = _named(frame, TIMESTAMP_NAMES)
    if timestamp is None:
        raise _missing("timestamp", frame, "a column of points in time, or an index of them")
    identifier = _named(frame, ID_NAMES)
    if identifier is None and len(variates) > 1:
        frame, identifier = frame.assign(id=ONLY_SERIES), "id"
    values = [name for name in frame.columns if name not in (timestamp, identifier)]
    if identifier is None:
        layout = ["data.layout=wide"]
    else:
        values = _variates(frame, values, variates)
        layout = ["data.layout=long", f"data.id_column={identifier}"]
    columns = {timestamp: _times(frame, timestamp), **{name: _numbers(frame, name) for name in values}}
    if identifier is not None:
        columns[identifier] = _ids(frame, identifier)
    names = "[" + ", ".join(_quoted(name) for name in values) + "]"
    return pa.table(columns), [*layout, f"data.timestamp_column={_quoted(timestamp)}", f"data.value_columns={names}"]


def _quoted(name: str) -> str:
    import json

    return json.dumps(name)


def _with_text_names(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose column names are texts, and whose index is a column where it holds the timestamps."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise ForecastInputError(
            f"it is a {type(frame).__name__}",
            expected="a pandas DataFrame of id, timestamp and values",
            remedy="make a DataFrame of it",
            file=FRAME,
        )
    if isinstance(frame.index, pd.DatetimeIndex):
        frame = frame.rename_axis(frame.index.name or "timestamp").reset_index()
    frame = frame.rename(columns=str)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ForecastInputError(
            "it is there twice",
            expected="columns of different names",
            remedy="rename or drop one of them",
            file=FRAME,
            column=str(twice[0]),
        )
    return frame


def _named(frame: pd.DataFrame, known: Sequence[str]) -> str | None:
    by_name = {name.lower(): name for name in reversed(list(frame.columns))}
    return next((by_name[name] for name in known if name in by_name), None)


def _variates(frame: pd.DataFrame, found: Sequence[str], variates: Sequence[str]) -> list[str]:
    """The value columns of a long frame, in the model's order."""
    if not variates:
        return list(found)
    wanted = list(variates)
    if wanted == [TARGET]:
        wanted = [_named(frame[list(found)], TARGET_NAMES) or TARGET]
    for name in wanted:
        if name not in found:
            raise _missing(name, frame, f"a column for each variate of the model: {', '.join(variates)}")
    for name in found:
        if name not in wanted:
            raise ForecastInputError(
                "it is no variate of the model",
                expected=f"the id, the timestamp, and the columns {', '.join(wanted)}",
                remedy="drop the column, or use a model that was trained with it",
                file=FRAME,
                column=name,
            )
    return wanted


def _missing(name: str, frame: pd.DataFrame, expected: str) -> ForecastInputError:
    return ForecastInputError(
        f"it is not there; the columns are {', '.join(frame.columns)}",
        expected=expected,
        remedy="add or rename the column",
        file=FRAME,
        column=name,
    )


def _ids(frame: pd.DataFrame, name: str) -> pa.Array:
    """Ids as text; a missing one is refused, since it would become a series of its own."""
    import pyarrow as pa

    missing = frame[name].isna().to_numpy()
    if missing.any():
        raise ForecastInputError(
            "the series id is missing",
            expected="a series id in every row",
            remedy="fill it in, or drop the row",
            file=FRAME,
            column=name,
            row=int(missing.argmax()) + 1,
        )
    return pa.array(frame[name].astype(str), pa.string())


def _times(frame: pd.DataFrame, name: str) -> pa.Array:
    """Timestamps as they are; what is unreadable about them is found where files are read."""
    import pyarrow as pa

    try:
        return pa.Array.from_pandas(frame[name])
    except (pa.ArrowException, TypeError, ValueError):
        return pa.array([None if value is None else str(value) for value in frame[name]], pa.string())


def _numbers(frame: pd.DataFrame, name: str) -> pa.Array:
    """Float64; NaN is missing.

    Raises:
        ForecastInputError: a value is no number.
    """
    import pandas as pd
    import pyarrow as pa

    column = frame[name]
    converted = pd.to_numeric(column, errors="coerce")
    is_time = pd.api.types.is_datetime64_any_dtype(column)  # which pandas takes for a number of nanoseconds
    unfit = column.notna() & (is_time | converted.isna())
    if unfit.any():
        place = int(unfit.to_numpy().argmax())
        raise ForecastInputError(
            f"{column.iloc[place]!r} is not a number",
            expected="a number, or NaN where the value is missing",
            remedy="correct the value, or drop the column",
            file=FRAME,
            column=name,
            row=place + 1,
        )
    return pa.array(converted.to_numpy(dtype="float64", na_value=float("nan")), pa.float64())


def _checked_horizon(horizon: int) -> int:
    if isinstance(horizon, bool) or int(horizon) != horizon or horizon < 1:
        raise ForecastInputError(
            f"the horizon is {horizon!r}",
            expected="a whole number of steps to forecast, at least 1",
            remedy="pass such a number, or none for what the model was trained for",
        )
    return int(horizon)


@contextmanager
def _of_the_frame(scratch: str) -> Iterator[None]:
    """Speak of the frame where the reader of files speaks of the one it was handed."""
    try:
        yield
    except DataError as error:
        of_ours = error.file is not None and error.file.startswith(scratch)
        raise ForecastInputError(
            error.found.replace(str(Path(scratch) / _FILE), FRAME),
            expected=error.expected,
            remedy=error.remedy,
            file=FRAME if of_ours else error.file,
            column=error.column,
            row=error.row,
        ) from None


def _frame(forecasts: Sequence[SeriesForecast]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    lengths = [len(one.timestamps) for one in forecasts]
    quantiles = np.concatenate([one.quantiles_HQ for one in forecasts])
    columns: dict[str, Any] = {
        "id": np.repeat(np.array([one.id for one in forecasts], dtype=object), lengths),
        "variate": np.repeat(np.array([one.variate for one in forecasts], dtype=object), lengths),
        "timestamp": np.concatenate([one.timestamps for one in forecasts]).astype("datetime64[ns]"),
    }
    return pd.DataFrame(columns | {f"{level:.1f}": quantiles[:, i] for i, level in enumerate(QUANTILES)})
