"""Where the series come from, and how they become training, validation and test data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from toto_pipeline.settings.base import Settings

SAMPLE = "sample"


class DataSettings(Settings):
    """Where the series come from, how they are laid out, and what to do about faults in them."""

    source: str = Field(
        SAMPLE,
        description="'sample' for the bundled data set, or a file, folder or glob of CSV or Parquet files.",
    )
    layout: Literal["auto", "wide", "long", "symbols"] = Field(
        "auto",
        description="wide: a timestamp column and one column a series. long: rows of id, timestamp, target. symbols: one "
        "file a series, its columns the variates (Open, High, Low, ...). auto: recognised from the column names.",
    )
    timestamp_column: str | None = Field(
        None,
        description="Name of the timestamp column. Unset: timestamp, ds, date, datetime, time and the like are recognised.",
    )
    id_column: str | None = Field(
        None,
        description="Name of the series id column of a long layout. Unset: item_id, unique_id, id, series_id are recognised.",
    )
    value_columns: list[str] = Field(
        default_factory=list,
        description="The value columns to use. Empty: all numeric columns (wide, symbols) or target, y, value (long).",
    )
    duplicates: Literal["error", "first", "last", "mean"] = Field(
        "error",
        description="Rows of one series with the same timestamp: refuse the data, or keep the first, the last or their mean.",
    )
    unsorted: Literal["error", "sort"] = Field(
        "error", description="Rows whose timestamps go backwards: refuse the data, or sort them."
    )
    constant_series: Literal["error", "drop", "keep"] = Field(
        "error", description="A series whose value never changes: refuse the data, leave the series out, or keep it."
    )
    missing_series: Literal["error", "drop"] = Field(
        "error", description="A series without a single value: refuse the data, or leave the series out."
    )
    infinities: Literal["error", "missing"] = Field(
        "error", description="Infinite values: refuse the data, or treat them as missing."
    )
    vanished: Literal["error", "accept"] = Field(
        "error",
        description="A series of the last snapshot of this source that is no longer there: refuse the data, or accept it.",
    )


class PreparationSettings(Settings):
    """How series become training, validation and test data. All cuts are points in time."""

    context_length: int = Field(512, ge=8, description="Steps of history the model sees before it forecasts.")
    horizon: int = Field(96, ge=1, description="Steps to forecast.")
    season: int | None = Field(
        None,
        ge=1,
        description="Steps in a season, for MASE and the seasonal naive baseline. Unset: from the frequency (a day for minutes and hours, a week for days, ...).",
    )
    frequency: str | None = Field(
        None, description="Step between rows, as pandas writes it (10min, h, D). Unset: inferred from the timestamps."
    )
    irregular: Literal["error", "mean"] = Field(
        "error",
        description="Timestamps off the regular grid: refuse the data, or average them into the grid step they fall in.",
    )
    short_series: Literal["error", "drop"] = Field(
        "error", description="A series too short to train and test on: refuse the data, or leave the series out."
    )
    validation_windows: int = Field(
        2, ge=1, description="Horizons held out before the test span, for validation after each epoch."
    )
    test_windows: int = Field(5, ge=1, description="Horizons held out at the end, for evaluation and promotion.")
