"""The model card of a registered version: what it is, in facts, as Markdown.

`model_card` is a function of facts and nothing else, so that the same run gives the same card. A fact that is not known
is left out; nothing is said in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toto_pipeline.data.training_data import TrainingDataManifest
from toto_pipeline.promotion.markdown import bullets, code, escape, table
from toto_pipeline.runs import CANDIDATE, METRIC_TITLES, MODEL_NAMES, read_run

_METRICS = ("MASE", "SQL", "WQL", "WAPE", "coverage_80")
_MOST_NAMES, _MOST_SENTENCES = 20, 10


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        tags: lineage of the version: snapshot, training data, code, configuration, parent, checkpoint, Dagster run.
        data: facts of the training data. source: `data.source` of the run.
        training: facts of the run's log: parameters, device, epochs, steps, best_epoch, best_validation_loss, ...
        scores: model key to metric to value. rules: (passed, text) of the gate.
    """

    name: str
    run: str
    tags: Mapping[str, str]
    data: TrainingDataManifest | None = None
    source: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rules: tuple[tuple[bool, str], ...] = ()


def gather(name: str, run_folder: Path, tags: Mapping[str, str], data: TrainingDataManifest | None) -> CardFacts:
    """The facts of a run, as far as its folder tells them."""
    run = read_run(run_folder)
    started, progress = run.started or {}, run.progress
    settings = started.get("config") or {}
    training = {
        "family": (settings.get("model") or {}).get("family", "toto2"),
        "parameters": started.get("parameters"),
        "device": started.get("device"),
        "epochs": len(progress.finished_epochs),
        "best_epoch": progress.best_epoch,
        "best_validation_loss": progress.best_validation_loss,
        "tune": settings.get("tune"),
        "learning_rate": settings.get("learning_rate"),
        "batch_size": settings.get("batch_size"),
        "precision": settings.get("precision"),
        "seed": settings.get("seed"),
        "ended": f"{progress.outcome}: {progress.reason}" if progress.outcome else None,
    }
    return CardFacts(
        name=name,
        run=run.run,
        tags=tags,
        data=data,
        source=str((run.config.get("data") or {}).get("source") or ""),
        training={key: value for key, value in training.items() if value is not None},
        scores=run.scores,
        rules=() if run.decision is None else tuple((rule.passed, rule.text) for rule in run.decision.rules),
    )


def model_card(facts: CardFacts) -> str:
    """The card in Markdown."""
    title = f"# {escape(facts.name)}: the model of run {code(facts.run)}"
    parts = {
        "Intended use": bullets(_use(facts)),
        "Data": bullets(_data(facts)),
        "Training": bullets(_training(facts)),
        "Evaluation": _evaluation(facts),
        "Limits": bullets(_limits(facts)),
        "Where it came from": bullets(_lineage(facts)),
    }
    sections = [f"## {name}\n\n{text}" for name, text in parts.items() if text]
    return "\n\n".join([title, *sections]) + "\n"


def _use(facts: CardFacts) -> Iterator[str]:
    yield "Forecasts of time series as quantiles 0.1 to 0.9 of every step ahead."
    data = facts.data
    if data is not None:
        yield (
            f"Made for series at steps of {code(data.frequency)}, with a context of {data.context_length} steps and "
            f"{data.horizon} steps ahead."
        )
        yield f"Variates: {_names(data.variates)}."


def _data(facts: CardFacts) -> Iterator[str]:
    if facts.source:
        yield f"Source: {code(facts.source)}."
    data = facts.data
    if data is None:
        return
    yield f"{data.n_series} series, {data.n_steps} steps in all; {data.n_missing} values are missing."
    yield (
        f"Trained on {escape(data.train_start)} to {escape(data.validation_start)}, validated until "
        f"{escape(data.test_start)}, tested until {escape(data.end)}."
    )
    for sentence in [*data.dropped, *data.repairs][:_MOST_SENTENCES]:
        yield escape(sentence)


def _training(facts: CardFacts) -> Iterator[str]:
    parent = facts.tags.get("parent_model")
    if parent:
        yield f"Started from: {escape(parent)}."
    for name, value in facts.training.items():
        yield f"{escape(name.replace('_', ' ').capitalize())}: {_number(value)}"


def _evaluation(facts: CardFacts) -> str:
    shown = [metric for metric in _METRICS if any(metric in scores for scores in facts.scores.values())]
    rows = [
        [escape(MODEL_NAMES.get(model, model)), *(_number(scores.get(metric, math.nan)) for metric in shown)]
        for model, scores in facts.scores.items()
    ]
    head = ["Model", *(METRIC_TITLES.get(metric, metric) for metric in shown)]
    rules = bullets(f"{'passed' if passed else '**failed**'}: {escape(text)}" for passed, text in facts.rules)
    return "\n\n".join(part for part in (table(head, rows) if rows else "", rules) if part)


def _limits(facts: CardFacts) -> Iterator[str]:
    data = facts.data
    if data is not None:
        yield (
            f"Tested on these series only, on the last {data.test_windows} windows of each from "
            f"{escape(data.test_start)} on. Other series, another step between rows, or more than {data.horizon} steps "
            "ahead were not tested."
        )
        if data.n_missing:
            yield f"{data.n_missing} of the values it learned from were missing and are not filled in."
    coverage = facts.scores.get(CANDIDATE, {}).get("coverage_80", math.nan)
    if math.isfinite(coverage):
        yield f"Its 80 % intervals held {100 * coverage:.1f} % of the actual values of the test."
    failed = sum(not passed for passed, _ in facts.rules)
    if failed:
        yield f"The gate refused it: {failed} of {len(facts.rules)} rules failed."


def _lineage(facts: CardFacts) -> Iterator[str]:
    for name, value in sorted(facts.tags.items()):
        yield f"{escape(name)}: {code(value)}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(code(name) for name in names[:_MOST_NAMES]) + more


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not finite"
    return escape(value)
