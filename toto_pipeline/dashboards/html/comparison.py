"""The page that compares runs: one self-contained file with their differences side by side and their losses overlaid.

It says what `compare` has found; what is equal in all runs is there too, folded away. Each run has a colour, and a dash
of its line for those who cannot tell colours apart. The same runs give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.dashboards.comparison import Comparison, Subject, compare
from toto_pipeline.dashboards.facts import Fact, Section, change_written, verdict, written
from toto_pipeline.dashboards.html.markup import section, sentence, table, tag, text, utc
from toto_pipeline.dashboards.html.page import page
from toto_pipeline.dashboards.html.sections import HEADLINES, compared
from toto_pipeline.dashboards.html.series import steps, training_curves
from toto_pipeline.events.log import epochs, read_events
from toto_pipeline.home import storage_errors
from toto_pipeline.runs import CANDIDATE

COLOURS = 6
"""Colours `run-0` to `run-5` of report.css; with more runs they come again, with other dashes."""
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
NUMBERS = frozenset({"scores", "training"})
"""Sections whose values are numbers, and are written to the right."""
_CURVES = ("step_loss", "train_loss", "validation_loss")


def write_comparison(subjects: Sequence[Subject], file: Path) -> Path:
    """Write the page that compares runs; a file that is there is replaced.

    Raises:
        StorageError: the file cannot be written.
    """
    content = render(subjects).encode()
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, content)
    return file


def render(subjects: Sequence[Subject]) -> str:
    comparison = compare(subjects)
    curves = [_curves(subject, index, label) for index, (subject, label) in _labelled(subjects, comparison)]
    begun = [each for each in curves if each["step_loss"]["x"] or each["validation_loss"]["x"]]
    body = [
        _header(comparison, subjects),
        _runs(comparison),
        _notes(comparison),
        _charts(begun),
        *(_section(each, comparison) for each in comparison.sections),
    ]
    return page(f"Comparison of {_and(comparison.labels)}", "\n".join(body), {"overlays": begun})


def _labelled(subjects: Sequence[Subject], comparison: Comparison) -> list[tuple[int, tuple[Subject, str]]]:
    return list(enumerate(zip(subjects, comparison.labels, strict=True)))


def _curves(subject: Subject, index: int, label: str) -> dict[str, Any]:
    recorded = steps(read_events(subject.run.folder))
    curves = training_curves(recorded, epochs(subject.run.milestones), batch_size=0)
    style = {"color": f"run-{index % COLOURS}", "dash": DASHES[index % len(DASHES)]}
    return {"name": label, **style, **{name: curves[name] for name in _CURVES}}


def _header(comparison: Comparison, subjects: Sequence[Subject]) -> str:
    lines = "".join(tag("p", text(line), class_="verdict") for line in _verdicts(comparison, subjects))
    return tag(
        "header",
        tag("p", "toto_pipeline / comparison", class_="over")
        + tag("h1", text(f"Runs {_and(comparison.labels)}"))
        + lines,
    )


def _verdicts(comparison: Comparison, subjects: Sequence[Subject]) -> list[str]:
    """What the deciding metric says of each run against the first, where both have it."""
    metric = subjects[0].run.metric
    scores = [subject.run.scores.get(CANDIDATE, {}).get(metric, math.nan) for subject in subjects]
    return [
        f"{metric} of {label} is {score:.4f}: {compared(1 - score / scores[0], 'first run')}."
        for label, score in list(zip(comparison.labels, scores, strict=True))[1:]
        if scores[0] and math.isfinite(score / scores[0])
    ]


def _runs(comparison: Comparison) -> str:
    rows = [
        [
            _key(index) + tag("code", text(run)),
            text(HEADLINES[state]),
            text(utc(created)),
            text("\n".join(missing) or "nothing"),
        ]
        for index, (run, state, created, missing) in enumerate(
            zip(comparison.runs, comparison.states, comparison.created, comparison.missing, strict=True)
        )
    ]
    words = table(["Run", "Outcome", "Began", "What it does not tell"], rows, words=4, label="Runs")
    note = tag("p", "Changes are against the first run.", class_="note")
    return tag("div", section("Runs", "runs", words, note), class_="compared")


def _notes(comparison: Comparison) -> str:
    if not comparison.notes:
        return ""
    lines = "".join(tag("li", text(note)) for note in comparison.notes)
    return section("Keep in mind", "notes", tag("ul", lines, class_="warnings"))


def _charts(curves: Sequence[dict[str, Any]]) -> str:
    if not curves:
        return section("Losses", "losses", sentence("None of these runs has recorded a loss."))
    validated = any(each["validation_loss"]["x"] for each in curves)
    validation = tag("div", "", id="overlay-validation_loss", class_="chart")
    cells = _figure(
        "Validation loss", "of each epoch", validation if validated else sentence("No epoch has ended in any run.")
    )
    cells += _figure(
        "Training loss",
        "of each step, thin, and of each epoch",
        tag("div", "", id="overlay-train_loss", class_="chart"),
    )
    return section("Losses by step", "losses", tag("div", cells, class_="charts"))


def _figure(name: str, note: str, content: str) -> str:
    caption = tag("figcaption", tag("strong", text(name)) + tag("span", text(note)))
    return tag("figure", caption + content, class_="wide overlay")


def _section(each: Section, comparison: Comparison) -> str:
    content = [_table(each, each.shown(), comparison) if each.shown() else sentence(_nothing(each))]
    rest = [] if each.equal_matter else [fact for fact in each.facts if not fact.differs and _is_known(fact)]
    if rest:
        summary = tag("summary", text(f"{len(rest)} more, in which no difference is known"))
        content.append(tag("details", summary + _table(each, rest, comparison)))
    return tag("div", section(each.title, f"facts-{each.name}", *content), class_="compared")


def _nothing(each: Section) -> str:
    return "Nothing differs." if any(map(_is_known, each.facts)) else "Nothing is known."


def _is_known(fact: Fact) -> bool:
    return any(value is not None for value in fact.values)


def _table(each: Section, facts: Sequence[Fact], comparison: Comparison) -> str:
    rows = [[text(fact.title), *(_cell(fact, index) for index in range(len(comparison.runs)))] for fact in facts]
    words = 1 if each.name in NUMBERS else 1 + len(comparison.runs)
    return table(["", *comparison.labels], rows, words=words, label=each.title)


def _cell(fact: Fact, index: int) -> str:
    change = change_written(fact, index)
    small = tag("small", text(change), class_=verdict(fact, index) or "neither") if change else ""
    return text(written(fact, fact.values[index])) + small


def _key(index: int) -> str:
    return tag("span", "", class_=f"key run-{index % COLOURS}")


def _and(labels: Sequence[str]) -> str:
    return f"{', '.join(labels[:-1])} and {labels[-1]}" if len(labels) > 1 else labels[0]
