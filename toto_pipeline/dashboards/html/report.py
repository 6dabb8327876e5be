"""The page of a run: one self-contained file that opens offline and on a phone.

    config.json, events.jsonl, evaluation/*.json, decision.json  ->  report.html

Words, numbers and tables are written here and can be read without a script; `report.js` draws the curves and
forecasts from JSON in the page, which `page` makes self-contained. The same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.dashboards.html import sections
from toto_pipeline.dashboards.html.page import page
from toto_pipeline.dashboards.html.quality import quality
from toto_pipeline.dashboards.html.series import Steps, forecast_pictures, steps, training_curves
from toto_pipeline.events.log import epochs, read_events
from toto_pipeline.runs import FORECASTS_FILE, HTML_FILE, MODEL_NAMES, Run, read_json, read_run


def write_report(run_folder: Path) -> Path:
    """Write `<run>/report.html` from what the run's files hold, however far it came.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    file = run_folder / HTML_FILE
    write_file(file, render(run_folder).encode())
    return file


def render(run_folder: Path) -> str:
    run = read_run(run_folder)
    recorded = steps(read_events(run_folder))
    forecasts, problem = _forecasts(run_folder)
    return page(
        f"{run.state.capitalize()}: run {run.run[:8]}",
        _body(run, recorded, forecasts, problem),
        _data(run, recorded, forecasts),
    )


def _body(run: Run, recorded: Steps, forecasts: Mapping[str, Any] | None, problem: str | None) -> str:
    return "\n".join(
        [
            sections.header(run),
            sections.tiles(run),
            sections.problems(run),
            sections.decision(run),
            sections.scores(run),
            quality(run),
            sections.forecasts(run, forecasts, problem),
            sections.curves(run, len(recorded)),
            sections.epochs(run),
            sections.stages(run),
            sections.lineage(run),
            sections.settings(run),
        ]
    )


def _data(run: Run, recorded: Steps, forecasts: Mapping[str, Any] | None) -> dict[str, Any]:
    batch_size = int(((run.config.get("training") or {}).get("batch_size")) or 0)
    return {
        "models": MODEL_NAMES,
        "curves": training_curves(recorded, epochs(run.milestones), batch_size) if len(recorded) else None,
        "restarts": [event["resumed_from"] for event in run.milestones if event.get("resumed_from") is not None],
        "forecasts": forecasts,
    }


def _forecasts(run_folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """What is to be drawn, or None and what is wrong with the file."""
    value, problem = read_json(run_folder / FORECASTS_FILE)
    if value is None:
        return None, problem
    try:
        return forecast_pictures(value), None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return None, f"does not have the fields it should ({type(error).__name__}: {error})"
