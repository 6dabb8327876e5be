"""Sections of a run's page about how good its model is: skill, fine-tuning, calibration, steps ahead, worst series.

Their pictures are SVG written here, which needs no script. Reports of an older evaluation lack what they show; then a
section is left out.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toto_pipeline.dashboards.html.markup import figure, section, sentence, table, tag, text
from toto_pipeline.dashboards.html.models import model_color, model_label
from toto_pipeline.events.schema import number
from toto_pipeline.runs import MODEL_NAMES, Run

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 30
_DASHES = {"champion": "7 3", "seasonal_naive": "2 3", "zero_shot": "5 2 1 2", "drift": "1 4"}


def quality(run: Run) -> str:
    """All sections that the run's report has something for."""
    report = run.report or {}
    parts = (fine_tuning(run, report), skill(report), calibration(report), by_step(report), worst(run, report))
    return "\n".join(part for part in parts if part)


def fine_tuning(run: Run, report: Mapping[str, Any]) -> str:
    """Whether the training helped at all."""
    if "fine_tuning" not in report:
        return ""
    gains = report["fine_tuning"]
    if gains is None:
        why = [str(note) for note in report.get("notes") or [] if "zero-shot" in str(note)]
        return section("Did fine-tuning help?", "fine-tuning", sentence(why[0] if why else "No zero-shot comparison."))
    gain = {name: number(value) for name, value in gains[run.metric].items() if name != "confidence"}
    verdict = _verdict(gain)
    rows = [[text(metric), *_interval(values)] for metric, values in gains.items()]
    return section(
        "Did fine-tuning help?",
        "fine-tuning",
        tag("p", text(f"{verdict} {run.metric} is {_percent(gain['value'])} lower than with the starting weights.")),
        table(["Metric", "Lower by", "At least", "At most"], rows, label="New model against the starting weights"),
        _level(next(iter(gains.values()))),
    )


def skill(report: Mapping[str, Any]) -> str:
    """How much better than the seasonal naive each model is."""
    models: Mapping[str, Any] = report.get("skill") or {}
    if not models:
        return ""
    rows = [
        [model_label(model), text(metric), *_interval(values)]
        for model, metrics in models.items()
        for metric, values in metrics.items()
    ]
    first = next(iter(next(iter(models.values())).values()))
    return section(
        "Skill against the seasonal naive",
        "skill",
        table(["Model", "Metric", "Skill", "At least", "At most"], rows, words=2, label="Skill with intervals"),
        tag(
            "p",
            "Skill is 1 - error / error of the seasonal naive: 0 % is no better, 100 % is faultless.",
            class_="note",
        ),
        _level(first),
    )


def calibration(report: Mapping[str, Any]) -> str:
    """Whether the quantiles are what they say."""
    models: Mapping[str, Any] = report.get("quality") or {}
    if not models:
        return ""
    lines = {
        model: [(float(level), number(share)) for level, share in values["below"].items()]
        for model, values in models.items()
    }
    ideal = [(0.0, 0.0), (1.0, 1.0)]
    percents = list(next(iter(models.values()))["coverage"])
    head = ["Model", "Bias", *(f"{p} % holds" for p in percents), *(f"{p} % width" for p in percents)]
    rows = [
        [
            model_label(model),
            text(figure(number(values["bias"]), 3)),
            *(text(_percent(number(values["coverage"][p]))) for p in percents),
            *(text(figure(number(values["interval_width"][p]), 3)) for p in percents),
        ]
        for model, values in models.items()
    ]
    return section(
        "Calibration",
        "calibration",
        chart(lines, ideal=ideal, across="quantile", up="share of actual values below it"),
        legend(list(lines)),
        table(head, rows, label="Coverage and width of each interval"),
        tag(
            "p",
            "On the diagonal the quantiles are honest. Bias is the mean error of the median in scales: above 0 the "
            "forecasts are too high. An interval of p % holds p % of the actual values if it is honest; of two honest "
            "models the one with narrower intervals knows more.",
            class_="note",
        ),
    )


def by_step(report: Mapping[str, Any]) -> str:
    """How the error grows with the steps ahead."""
    models: Mapping[str, Any] = report.get("by_step") or {}
    if not models:
        return ""
    titles = {"MASE": "mean absolute error in scales", "coverage_80": "share inside the 80 % interval"}
    pictures = [
        tag(
            "figure",
            tag("figcaption", tag("strong", text(title))) + chart(_over_steps(models, name), across="step ahead"),
        )
        for name, title in titles.items()
    ]
    return section(
        "Error by step of the horizon", "by-step", tag("div", "".join(pictures), class_="charts"), legend(list(models))
    )


def worst(run: Run, report: Mapping[str, Any]) -> str:
    """The series that the new model forecasts worst, by name."""
    rows: Sequence[Mapping[str, Any]] = report.get("worst_series") or []
    if not rows:
        return ""
    models = list(rows[0]["MASE"])
    lines = [
        [
            text(row["id"] if row["variate"] in (None, "target") else f"{row['id']} / {row['variate']}"),
            *(text(figure(number(row["MASE"][model]), 3)) for model in models),
        ]
        for row in rows
    ]
    pictures = [
        _png(run.folder / "evaluation" / str(one["file"]), str(one["id"])) for one in report.get("worst_pictures") or []
    ]
    head = ["Series, by MASE", *(MODEL_NAMES.get(model, model) for model in models)]
    return section("Worst series", "worst", table(head, lines, label="Worst series"), *pictures)


def chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str = "",
    ideal: Sequence[tuple[float, float]] = (),
) -> str:
    """An SVG of lines over one axis; points that are not finite break a line."""
    points = [point for line in [*lines.values(), ideal] for point in line if math.isfinite(point[1])]
    if not points:
        return sentence("There is nothing to draw: no value is defined.")
    (left, right), (low, high) = _span([x for x, _ in points]), _span([y for _, y in points])

    def place(x: float, y: float) -> str:
        across_share, up_share = (x - left) / (right - left), (y - low) / (high - low)
        px = _LEFT + across_share * (_WIDTH - _LEFT - _RIGHT)
        return f"{px:.1f} {_TOP + (1 - up_share) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    grid = "".join(_gridline(value, place(left, value), place(right, value)) for value in _ticks(low, high))
    marks = "".join(_label(value, place(value, low)) for value in _ticks(left, right))
    drawn = _path([place(*point) for point in ideal], "soft", "3 4", 1.0) if ideal else ""
    for model, line in lines.items():
        for part in _unbroken(line):
            drawn += _path([place(*point) for point in part], model_color(model), _DASHES.get(model, "none"), 2.0)
    described = f"{up or 'value'} over {across}: {', '.join(MODEL_NAMES.get(model, model) for model in lines)}"
    axis = tag("text", text(across), x=str(_WIDTH - _RIGHT), y=str(_HEIGHT - 2), text_anchor="end")
    svg = tag("svg", grid + marks + axis + drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=described)
    return tag("div", svg, class_="chart still")


def legend(models: Sequence[str]) -> str:
    items = "".join(
        tag(
            "li",
            tag(
                "svg",
                tag("path", d="M1 5L25 5", stroke=f"var(--{model_color(model)})", stroke_width="2.4",
                    stroke_dasharray=_DASHES.get(model, "none")),
                viewBox="0 0 26 10",
                aria_hidden="true",
            )
            + text(MODEL_NAMES.get(model, model)),
        )
        for model in models
    )  # fmt: skip
    return tag("ul", items, class_="legend")


def _caption(title: str) -> str:
    return tag("figcaption", tag("strong", text(title)))


def _over_steps(models: Mapping[str, Any], name: str) -> dict[str, list[tuple[float, float]]]:
    return {
        model: [(float(step), number(value)) for step, value in enumerate(values[name], start=1)]
        for model, values in models.items()
    }


def _verdict(gain: Mapping[str, float]) -> str:
    if gain["low"] > 0:
        return "Yes."
    if gain["high"] < 0:
        return "No: it made the model worse."
    return "Not proven: the interval holds no difference."


def _interval(values: Mapping[str, Any]) -> list[str]:
    return [text(_percent(number(values[name]))) for name in ("value", "low", "high")]


def _level(values: Mapping[str, Any]) -> str:
    confidence = number(values["confidence"])
    return tag(
        "p", text(f"Each bound holds with {100 * confidence:.0f} % confidence (paired bootstrap)."), class_="note"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.5
    return low - room if low != 0 else 0.0, high + room


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= raw)
    return [round(place * step, 12) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _gridline(value: float, start: str, end: str) -> str:
    x, y = start.split()
    words = tag("text", text(f"{value:g}"), x=f"{float(x) - 6:.1f}", y=f"{float(y) + 4:.1f}", text_anchor="end")
    return tag("path", d=f"M{start}L{end}", class_="grid") + words


def _label(value: float, place: str) -> str:
    x, y = place.split()
    return tag("text", text(f"{value:g}"), x=x, y=f"{float(y) + 16:.1f}", text_anchor="middle")


def _path(places: Sequence[str], color: str, dash: str, width: float) -> str:
    return tag(
        "path",
        d="M" + "L".join(places),
        fill="none",
        stroke=f"var(--{color})",
        stroke_width=f"{width:g}",
        stroke_dasharray=dash,
    )


def _unbroken(line: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    parts: list[list[tuple[float, float]]] = [[]]
    for point in line:
        if math.isfinite(point[1]):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _png(file: Path, name: str) -> str:
    if not file.is_file():
        return sentence(f"The picture {file.name} of {name} is not there.")
    data = base64.b64encode(file.read_bytes()).decode()
    return tag("figure", f'<img src="data:image/png;base64,{data}" alt="{text(name)}" class="wide">')
