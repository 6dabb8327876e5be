"""The sections of a run's page, each a function from what is known of the run to HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from toto_pipeline.dashboards.html.markup import (
    duration,
    facts,
    figure,
    section,
    sentence,
    significant,
    table,
    tag,
    text,
    utc,
)
from toto_pipeline.dashboards.html.models import model_label
from toto_pipeline.events.log import epochs as epoch_events
from toto_pipeline.events.schema import number
from toto_pipeline.runs import BASELINE, CANDIDATE, CHAMPION, METRIC_TITLES, MODEL_NAMES, STAGES, Run, planned_epochs

HEADLINES = {
    "promoted": "Promoted",
    "refused": "Refused",
    "failed": "Failed",
    "canceled": "Canceled",
    "trained": "Trained, not decided",
    "unfinished": "No end recorded",
    "interrupted": "Interrupted",
}
NEITHER = frozenset({"coverage_80", "interval_width"})
"""Metrics of which neither lower nor higher is simply better."""
ONLY_VARIATE = "target"
"""Name of the variate of a series that has no other; not worth a word."""
METRIC_WORDS = {
    "MASE": "mean absolute scaled error",
    "SQL": "scaled quantile loss",
    "WQL": "weighted quantile loss",
    "WAPE": "weighted absolute percentage error",
    "coverage_80": "share of actual values inside the 80 % interval; 0.8 is ideal",
    "interval_width": "mean width of the 80 % interval, scaled by the naive error",
}


def header(run: Run) -> str:
    state = run.state
    lines = tag("p", text(verdict(run)), class_="verdict")
    if run.reason and state in ("failed", "canceled", "refused"):
        lines += tag("p", text(run.reason), class_="reason")
    name = (run.config.get("promotion") or {}).get("model_name") or "toto"
    preset = run.config.get("preset") or "unknown preset"
    return tag(
        "header",
        tag("p", text(f"{name} / {preset} / {utc(run.created)}"), class_="over")
        + tag("h1", tag("span", "", class_=f"mark {state}", aria_hidden="true") + text(headline(run)), class_=state)
        + lines
        + tag("p", "Run " + tag("code", text(run.run)), class_="run"),
    )


def headline(run: Run) -> str:
    if run.state == "promoted" and run.decision is not None and run.decision.version is not None:
        return f"Promoted as version {run.decision.version}"
    if run.state == "unfinished" and not run.milestones:
        return "Preparing"
    return HEADLINES[run.state]


def verdict(run: Run) -> str:
    """What came out, in one or two sentences with numbers."""
    own = run.scores.get(CANDIDATE, {}).get(run.metric, math.nan)
    if not math.isfinite(own):
        return _how_far(run)
    parts = [
        compared(run.gain(reference), MODEL_NAMES[reference].lower())
        for reference in (BASELINE, CHAMPION)
        if math.isfinite(run.gain(reference))
    ]
    words = f": {', '.join(parts)}" if parts else ""
    return f"{run.metric} on the test windows is {own:.4f}{words}."


def compared(gain: float, other: str) -> str:
    return f"{abs(100 * gain):.1f}\u00a0% {'lower' if gain >= 0 else 'higher'} than the {other}'s"


def _how_far(run: Run) -> str:
    if not run.milestones:
        return "Training has not started, so there is nothing to compare yet."
    done = f"{len(run.progress.finished_epochs)} of {run.progress.epochs} epochs are recorded"
    if run.progress.outcome is None:
        last = utc(number(run.milestones[-1]["time"]))
        return f"{done}, the last milestone at {last}. The training is still going, or its process was killed."
    return f"{done}; the training ended as {run.progress.outcome}. The model has not been evaluated."


def tiles(run: Run) -> str:
    progress = run.progress
    own = run.scores.get(CANDIDATE, {})
    started = run.started or {}
    note = "on the test windows" if own else "not evaluated"
    rates = [epoch.windows_per_second for epoch in progress.finished_epochs]
    values = [
        (run.metric, figure(own.get(run.metric, math.nan)), note),
        ("MASE", figure(own.get("MASE", math.nan)), note),
        ("Best validation loss", figure(progress.best_validation_loss), _best_epoch(run)),
        ("Trained for", duration(run.training_seconds), f"{len(rates)} of {planned_epochs(run)} epochs"),
        ("Throughput", significant(rates[-1]) if rates else "-", "windows a second"),
        ("Parameters", significant(number(started.get("parameters"))), str(started.get("device") or "")),
    ]
    if run.metric == "MASE":
        values.pop(0)
    cells = "".join(
        tag("li", tag("span", text(name)) + tag("strong", text(value)) + tag("small", text(note)))
        for name, value, note in values
    )
    return tag("ul", cells, class_="tiles", aria_label="Key figures")


def _best_epoch(run: Run) -> str:
    return "no epoch yet" if run.progress.best_epoch is None else f"epoch {run.progress.best_epoch}"


def problems(run: Run) -> str:
    found = list(dict.fromkeys([*run.progress.warnings, *(f"{problem}." for problem in run.problems)]))
    if not found:
        return ""
    rows = "".join(tag("li", text(line)) for line in found)
    return section("Warnings", "warnings", tag("ul", rows, class_="warnings"))


def decision(run: Run) -> str:
    if run.decision is None:
        why = {
            "failed": "The run failed before a decision could be made.",
            "canceled": "The run was stopped before a decision could be made.",
        }.get(run.state, "No decision yet: the promotion gate has not run. The champion is as it was.")
        return section("Decision", "decision", sentence(why))
    rules = "".join(
        tag(
            "li",
            tag("strong", "Passed" if rule.passed else "Failed") + tag("span", text(rule.text), title=rule.name),
            class_="passed" if rule.passed else "failed",
        )
        for rule in run.decision.rules
    )
    return section("Decision", "decision", tag("ul", rules, class_="rules"))


def scores(run: Run) -> str:
    if not run.scores:
        return section("Scores", "scores", sentence(_no_evaluation(run)))
    metrics = list(dict.fromkeys(metric for values in run.scores.values() for metric in values))
    rows = [
        [model_label(model), *(_score(run, metric, values.get(metric, math.nan), model) for metric in metrics)]
        for model, values in run.scores.items()
    ]
    notes = "; ".join(f"{title(name)}: {METRIC_WORDS[name]}" for name in metrics if name in METRIC_WORDS)
    return section(
        "Scores on the test windows",
        "scores",
        table(["Model", *map(title, metrics)], rows, label="Scores of each model"),
        tag("p", text(f"{notes}. Bold is best; percentages are against the new model."), class_="note"),
    )


def title(metric: str) -> str:
    return METRIC_TITLES.get(metric, metric)


def _score(run: Run, metric: str, value: float, model: str) -> str:
    written = text(figure(value))
    values = [row[metric] for row in run.scores.values() if math.isfinite(row.get(metric, math.nan))]
    if metric not in NEITHER and values and value == min(values):
        written = tag("strong", written)
    own = run.scores.get(CANDIDATE, {}).get(metric, math.nan)
    if model != CANDIDATE and metric not in NEITHER and own and math.isfinite(value / own):
        written += tag("small", text(f"{100 * (value / own - 1):+.1f} %"))
    return written


def _no_evaluation(run: Run) -> str:
    if run.state in ("failed", "canceled"):
        return f"No scores: the run {'failed' if run.state == 'failed' else 'was stopped'} before its evaluation."
    return "No scores yet: they are written when the model has been compared on the test windows."


def forecasts(run: Run, pictures: Mapping[str, Any] | None, problem: str | None) -> str:
    if problem is not None:
        return section("Forecasts", "forecasts", sentence(f"evaluation/forecasts.json {problem}."))
    if pictures is None:
        return section("Forecasts", "forecasts", sentence(_no_evaluation(run).replace("scores", "forecasts")))
    if not pictures["series"]:
        return section("Forecasts", "forecasts", sentence("No forecasts were kept: evaluation.pictures is 0."))
    options = "".join(
        tag("option", text(series_name(series)), value=str(index)) for index, series in enumerate(pictures["series"])
    )
    chooser = tag("label", "Series " + tag("select", options, id="series"))
    models = list(dict.fromkeys(model for series in pictures["series"] for model in series["forecasts"]))
    boxes = "".join(_box(model, checked=model == CANDIDATE) for model in models)
    return section(
        "Forecasts",
        "forecasts",
        tag("div", chooser + tag("fieldset", tag("legend", "Models") + boxes), class_="controls"),
        tag("div", "", id="forecast", class_="chart tall"),
        tag("p", "Bands are the 20, 40, 60 and 80 % intervals; the line is the median.", class_="note"),
    )


def _box(model: str, *, checked: bool) -> str:
    box = f'<input type="checkbox" name="model" value="{text(model)}"{" checked" if checked else ""}>'
    return tag("label", box + model_label(model))


def series_name(series: Mapping[str, Any]) -> str:
    variate = "" if series["variate"] in (None, ONLY_VARIATE) else f" / {series['variate']}"
    mase = f" (MASE {series['mase']:.3f})" if series["mase"] is not None else ""
    return f"{series['id']}{variate}{mase}"


def curves(run: Run, steps: int) -> str:
    if not steps:
        words = "No step is recorded" + (": training has not started yet." if not run.milestones else " yet.")
        return section("Training", "training", sentence(words))
    charts = [
        ("loss", "Loss", "training loss of each step and epoch, validation loss of each epoch"),
        ("learning_rate", "Learning rate", "base rate of each step"),
        ("gradient_norm", "Gradient norm", "before clipping"),
        ("windows_per_second", "Throughput", "windows a second"),
    ]
    cells = "".join(
        tag(
            "figure",
            tag("figcaption", tag("strong", text(title)) + tag("span", text(note)))
            + (_scale_switch() if name == "loss" else "")
            + tag("div", "", id=f"chart-{name}", class_="chart"),
            class_="wide" if name == "loss" else "",
        )
        for name, title, note in charts
    )
    return section("Training", "training", tag("div", cells, class_="charts"))


def _scale_switch() -> str:
    return '<label class="switch"><input type="checkbox" id="log-scale"> logarithmic</label>'


def epochs(run: Run) -> str:
    events = epoch_events(run.milestones)
    if not events:
        return section("Epochs", "epochs", sentence("No epoch has ended yet."))
    metrics = list(dict.fromkeys(name for event in events for name in event.get("metrics") or {}))
    head = [
        "Epoch",
        "Train loss",
        "Validation loss",
        *map(title, metrics),
        "Learning rate",
        "Grad. norm",
        "Windows/s",
        "Time",
    ]
    rows = [
        [
            tag("span", text(event["epoch"])) + (_best_mark() if event["epoch"] == run.progress.best_epoch else ""),
            text(figure(number(event.get("train_loss")))),
            text(figure(number(event.get("validation_loss")))),
            *(text(figure(number((event.get("metrics") or {}).get(name)))) for name in metrics),
            text(significant(number(event.get("learning_rate")))),
            text(significant(number(event.get("gradient_norm")))),
            text(significant(number(event.get("windows_per_second")))),
            text(duration(number(event.get("seconds")))),
        ]
        for event in events
    ]
    return section("Epochs", "epochs", table(head, rows, label="Every epoch"))


def _best_mark() -> str:
    return tag("span", "best", class_="best")


def stages(run: Run) -> str:
    if run.outcome is None or not run.outcome.stages:
        return ""
    rows = [
        [
            text(STAGES.get(stage.stage, stage.stage)),
            text(stage.state),
            text(stage.message),
            text(duration(stage.seconds)),
        ]
        for stage in run.outcome.stages
    ]
    return section("Stages", "stages", table(["Stage", "State", "", "Time"], rows, words=3, label="Stages"))


def lineage(run: Run) -> str:
    started = run.started or {}
    data = run.config.get("data") or {}
    attempts = sum(event["type"] == "run_started" for event in run.milestones)
    pairs: list[tuple[str, Any]] = [
        ("Data source", data.get("source") or "unknown"),
        ("Data fingerprint", started.get("data_fingerprint") or "unknown: training has not started"),
        ("Code version", started.get("code_version") or "unknown: training has not started"),
        ("Settings hash", started.get("config_hash") or "unknown: training has not started"),
        ("Host", started.get("host") or "unknown: training has not started"),
        ("Attempts", attempts_in_words(attempts, run.milestones)),
        ("Checkpoint", _best_checkpoint(run)),
        ("Files", "events.jsonl, checkpoints/, model/, evaluation/ beside this page"),
    ]
    return section("Lineage", "lineage", facts(pairs))


def attempts_in_words(attempts: int, milestones: Iterable[Mapping[str, Any]]) -> str:
    resumed = [
        str(event["resumed_from"])
        for event in milestones
        if event["type"] == "run_started" and event.get("resumed_from") is not None
    ]
    return f"{attempts}" + (f", resumed from step {', '.join(resumed)}" if resumed else "")


def _best_checkpoint(run: Run) -> str:
    best = [event for event in epoch_events(run.milestones) if event["epoch"] == run.progress.best_epoch]
    return str(best[0].get("checkpoint") or "none") if best else "none yet"


def settings(run: Run) -> str:
    if not run.config:
        return section("Settings", "settings", sentence("config.json is not there, so the settings are not known."))
    pairs = [(name, value) for name, value in flat(run.config) if name not in ("run", "created")]
    count = tag("summary", text(f"{len(pairs)} settings"))
    return section("Settings", "settings", tag("details", count + facts(pairs)))


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and values of nested settings."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "unset" if inner is None else inner
