"""Figures as PNG: of the right size, with what they are to show, whatever the data."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from toto_pipeline.events import figures
from toto_pipeline.monitoring.drawing import BLUE, INK, VERMILION, DrawingError, draw
from toto_pipeline_tests.monitoring.tensorboard_reading import as_read

LEVELS = [level / 10 for level in range(1, 10)]
WAVE = [math.sin(step / 8) for step in range(200)]


def fan(steps: int = 48) -> dict[float, list[float]]:
    return {level: [WAVE[step] + (level - 0.5) * (1 + step / 20) for step in range(steps)] for level in LEVELS}


def pixels(figure: figures.Figure) -> NDArray[np.uint8]:
    """(450, 800, 3)."""
    with Image.open(io.BytesIO(draw(as_read(figure)))) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_colour(image: NDArray[np.uint8], colour: str, at_least: int = 50) -> bool:
    wanted = np.array(to_rgb(colour)) * 255
    return int((np.abs(image - wanted).max(axis=-1) < 12).sum()) >= at_least


ONE_OF_EACH = [
    figures.lines("loss", range(200), {"train": WAVE, "validation": WAVE[::-1]}, x_label="step", y_label="loss"),
    figures.scatter("forecast and outcome", WAVE, WAVE[::-1], x_label="a", y_label="b", diagonal=True),
    figures.bars("error by series", ["one", "two", "three"], [1.0, 3.0, 2.0], x_label="MASE"),
    figures.forecast("a series", WAVE, WAVE[:48], fan()),
]


@pytest.mark.parametrize("figure", ONE_OF_EACH, ids=lambda figure: figure["kind"])
def test_every_kind_is_drawn_at_its_size(figure: figures.Figure) -> None:
    image = pixels(figure)
    assert image.shape == (450, 800, 3)
    blueish = image[..., 2].astype(int) - image[..., 0] > 60
    assert blueish[50:400].sum() > 200


@pytest.mark.parametrize("figure", ONE_OF_EACH, ids=lambda figure: figure["kind"])
def test_the_same_figure_gives_the_same_bytes(figure: figures.Figure) -> None:
    assert draw(as_read(figure)) == draw(as_read(figure))


def test_a_forecast_shows_history_median_actual_and_nested_bands() -> None:
    image = pixels(ONE_OF_EACH[3])
    assert has_colour(image, INK) and has_colour(image, VERMILION) and has_colour(image, BLUE)
    column = image[60:380, 760].astype(int)
    tints, counts = np.unique(column[column[:, 2] > column[:, 0] + 20], axis=0, return_counts=True)
    bands = tints[counts >= 8]
    assert len(bands) == 4, "four pairs of quantiles around the median"


def test_a_forecast_without_an_outcome_or_a_median_is_drawn() -> None:
    image = pixels(figures.forecast("open", WAVE, [], {0.1: WAVE[:9], 0.9: WAVE[:9]}))
    assert not has_colour(image, BLUE)
    assert has_colour(image, INK)


@pytest.mark.parametrize("gap", [[math.nan] * 5, []])
@pytest.mark.parametrize("kind", ["lines", "scatter", "bars", "forecast"])
def test_missing_values_are_drawn_as_gaps(kind: str, gap: list[float]) -> None:
    drawn = {
        "lines": lambda: figures.lines("t", range(len(gap)), {"a": gap}),
        "scatter": lambda: figures.scatter("t", gap, gap, diagonal=True),
        "bars": lambda: figures.bars("t", ["x"] * len(gap), gap),
        "forecast": lambda: figures.forecast("t", gap, gap, dict.fromkeys(LEVELS, gap)),
    }
    assert pixels(drawn[kind]()).shape == (450, 800, 3)


@given(st.text(alphabet="$_\\^{}%&#<>\n aé中", max_size=20))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_text_is_taken_for_a_formula(text: str) -> None:
    draw(figures.lines(text, [0, 1], {text: [1.0, 2.0], "b": [2.0, 1.0]}, x_label=text, y_label=text))
    draw(figures.bars(text, [text], [1.0], x_label=text))


def test_many_bars_say_how_many_are_left_out() -> None:
    few = figures.bars("t", [f"series {index}" for index in range(24)], range(24))
    many = figures.bars("t", [f"series {index}" for index in range(5000)], range(5000))
    assert not np.array_equal(pixels(few), pixels(many))


def test_a_finished_picture_is_shown_as_it_is() -> None:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(3, 2))
    drawing.subplots().plot([1, 2])
    assert pixels(figures.image("t", drawing)).shape == (200, 300, 3)


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"kind": "pie", "title": "t"}, "its kind is 'pie'; expected one of lines, scatter, bars, forecast, image"),
        ({}, "its kind is None"),
        ({"kind": "lines", "title": "t"}, "its data do not fit a figure of the kind 'lines'"),
        ({"kind": "lines", "x": [1, 2], "series": {"a": [1]}}, "its data do not fit a figure of the kind 'lines'"),
        ({"kind": "scatter", "x": [1, 2], "y": [1]}, "2 x and 1 y"),
        ({"kind": "bars", "labels": ["a"], "values": [1, 2]}, "1 labels and 2 values"),
        ({"kind": "forecast", "history": [1], "actual": [], "quantiles": {"low": [1]}}, "do not fit"),
        ({"kind": "image", "png": "not base64!"}, "its picture is not base64"),
        ({"kind": "image", "png": "aGVsbG8="}, "its picture is not a PNG file"),
        ({"kind": "image"}, "its picture is not a PNG file"),
    ],
)
def test_what_cannot_be_drawn_is_said(figure: dict[str, Any], message: str) -> None:
    with pytest.raises(DrawingError, match=message):
        draw(figure)


def test_drawing_leaves_matplotlibs_global_state_alone() -> None:
    script = (
        "import sys; from toto_pipeline.monitoring.drawing import draw; before = 'matplotlib' in sys.modules\n"
        "draw({'kind': 'lines', 'title': 't', 'x': [1], 'series': {'a': [1]}})\n"
        "print(before, 'matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "False"]
