"""How the pages show which model they speak of: its name, and a colour that report.css has for it."""

from __future__ import annotations

from toto_pipeline.dashboards.html.markup import tag, text
from toto_pipeline.runs import MODEL_NAMES


def model_color(model: str) -> str:
    """Name of the style's colour; that of all others where it has none of its own."""
    return model if model in MODEL_NAMES else "other"


def model_label(model: str) -> str:
    """The name of a model behind a square of its colour."""
    return tag("span", "", class_=f"key {model_color(model)}") + text(MODEL_NAMES.get(model, model))
