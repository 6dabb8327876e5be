"""Frequencies are recognised, and their grids are those of pandas."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.data.frequency import count_steps, default_season, infer_frequency, parse_frequency
from toto_pipeline.errors import ConfigError

SEASONS = {
    "s": 3600, "30s": 120, "min": 1440, "10min": 144, "15min": 96, "90min": 16, "h": 24, "6h": 4, "D": 7, "B": 5,
    "W-SUN": 52, "W-WED": 52, "MS": 12, "ME": 12, "QS-JAN": 4, "QS-FEB": 4, "QE-JAN": 4, "QE-FEB": 4, "QE-DEC": 4,
    "YS-JAN": 1, "YS-MAR": 1, "YE-DEC": 1, "3D": 2, "ms": 3_600_000,
}  # fmt: skip


def microseconds(alias: str, n: int, start: str = "2001-01-01") -> np.ndarray:
    return pd.date_range(start, periods=n, freq=alias).as_unit("us").asi8


@pytest.mark.parametrize("alias", SEASONS)
def test_inferred_and_regular(alias: str) -> None:
    timestamps = microseconds(alias, 60)
    assert infer_frequency(count_steps(timestamps), [timestamps]) == alias
    grid = parse_frequency(alias).shifted(int(timestamps[0]))
    ordinals = grid.ordinal(timestamps)
    assert set(np.diff(ordinals)) == {1}
    np.testing.assert_array_equal(grid.time(ordinals), timestamps)
    np.testing.assert_array_equal(grid.times_from(int(timestamps[0]), 60), timestamps)


@pytest.mark.parametrize(("alias", "season"), SEASONS.items())
def test_season(alias: str, season: int) -> None:
    assert default_season(parse_frequency(alias)) == season


@given(
    st.sampled_from(["10min", "h", "D", "B", "W-SUN", "MS", "ME", "QE-FEB", "YS-MAR"]),
    st.lists(st.integers(0, 199), min_size=100, max_size=190, unique=True),
)
@settings(max_examples=30, deadline=None)
def test_gaps_do_not_change_what_is_inferred(alias: str, kept: list[int]) -> None:
    timestamps = microseconds(alias, 200)[sorted(kept)]
    steps = count_steps(timestamps)
    assert steps.total() == len(kept) - 1
    grid = parse_frequency(alias).shifted(int(timestamps[0]))
    np.testing.assert_array_equal(grid.ordinal(timestamps) - grid.ordinal(timestamps[:1]), np.sort(kept) - min(kept))


def test_most_common_step_wins() -> None:
    timestamps = np.delete(microseconds("10min", 100), [5, 6, 7, 40, 60])
    assert infer_frequency(count_steps(timestamps), [timestamps]) == "10min"


def test_no_steps_no_frequency() -> None:
    assert infer_frequency(Counter(), []) is None


@pytest.mark.parametrize("alias", ["", "fortnight", "-1h", "0h", "2B", "SME", "5ns"])
def test_what_is_no_frequency(alias: str) -> None:
    with pytest.raises(ConfigError, match=r"preparation\.frequency"):
        parse_frequency(alias)
