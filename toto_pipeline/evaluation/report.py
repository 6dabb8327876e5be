"""What stays of an evaluation: `<run>/evaluation/`.

    report.json       aggregates of every model, skill with intervals, calibration, errors by step of the horizon, the
                      worst series by name, fingerprints of windows and data, seconds
    scores.parquet    one row for each model, series, variate and window
    by_series.parquet one row for each model, series and variate: every measure
    by_step.parquet   one row for each model and step of the horizon: every measure
    forecasts.json    the pictured series with every model's quantiles, for the HTML report
    forecast_<n>.png  the same, drawn
    worst_<n>.png     the worst series, each in the window where it was worst

The folder appears whole or not at all, and replaces that of an earlier attempt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from toto_pipeline.checkpoints.store import publish_folder
from toto_pipeline.errors import EvaluationError
from toto_pipeline.evaluation.backtest import BASELINE, CANDIDATE, CHAMPION, DRIFT, ZERO_SHOT, Evaluation
from toto_pipeline.evaluation.bootstrap import Resampling
from toto_pipeline.evaluation.metrics import METRICS, encode, group_mean
from toto_pipeline.evaluation.pictures import Picture
from toto_pipeline.evaluation.skill import gain_over, skills
from toto_pipeline.events.schema import spell_out
from toto_pipeline.models.forecaster import QUANTILES

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "evaluation"
REPORT_FILE, SCORES_FILE, FORECASTS_FILE = "report.json", "scores.parquet", "forecasts.json"
SERIES_FILE, STEPS_FILE = "by_series.parquet", "by_step.parquet"
STEP_MEASURES = ("MASE", "SQL", "bias", "coverage_80")
"""What is drawn over the steps of the horizon."""
SCHEMA = 1
WORST_SERIES = 10

TITLES = {
    CANDIDATE: "New model",
    BASELINE: "Seasonal naive",
    CHAMPION: "Champion",
    ZERO_SHOT: "Starting weights",
    DRIFT: "Drift",
}
COLUMNS = {**{metric: metric for metric in METRICS}, "coverage_80": "80 % coverage", "interval_width": "Interval width"}
_COLORS = {CANDIDATE: "#0072B2", BASELINE: "#D55E00", CHAMPION: "#009E73"}
"""Okabe and Ito's palette, told apart with any colour vision."""
_STYLES = {CANDIDATE: "-", BASELINE: "--", CHAMPION: "-."}


def write_report(
    evaluation: Evaluation,
    run_folder: Path,
    *,
    identities: Mapping[str, Mapping[str, Any]] | None = None,
    how: Resampling | None = None,
) -> Path:
    """Write `<run_folder>/evaluation/` and return it.

    Args:
        identities: model key to facts that tell which model it was (registered version, folder, hash of the weights).
        how: the bootstrap of the intervals; the gate's defaults if left out.

    Raises:
        StorageError: the disk is full or cannot be written; an earlier report is as it was.
    """

    def fill(folder: Path) -> None:
        import pyarrow.parquet

        tables = {SCORES_FILE: "scores", SERIES_FILE: "by_series", STEPS_FILE: "by_step"}
        for name, table in tables.items():
            pyarrow.parquet.write_table(getattr(evaluation, table), folder / name, compression="zstd")
        _write_json(folder / FORECASTS_FILE, forecasts(evaluation.pictures))
        for number, picture in enumerate(evaluation.pictures, start=1):
            draw(picture, folder / picture_name(number))
        for number, picture in enumerate(evaluation.worst_pictures, start=1):
            draw(picture, folder / worst_name(number))
        _write_json(folder / REPORT_FILE, report(evaluation, identities or {}, how or Resampling()))

    return publish_folder(run_folder / FOLDER, fill)


def load_report(run_folder: Path) -> dict[str, Any]:
    """The report.json of a run; non-finite numbers are spelled "nan", "inf" and "-inf" (see `events.schema.number`).

    Raises:
        EvaluationError: the run has none, or it cannot be read.
    """
    file = run_folder / FOLDER / REPORT_FILE
    try:
        value = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        raise EvaluationError(
            f"{file}: is not there. Expected: the report of an evaluation. What to do: evaluate the run first "
            "(`toto-pipeline retrain`, or materialize evaluation_report)."
        ) from None
    except orjson.JSONDecodeError as error:
        raise EvaluationError(f"{file}: is not JSON ({error}). What to do: evaluate the run again.") from error
    if not isinstance(value, dict) or "models" not in value:
        raise EvaluationError(f"{file}: is not the report of an evaluation. What to do: evaluate the run again.")
    return value


def load_scores(run_folder: Path) -> pa.Table:
    """The score table of a run.

    Raises:
        EvaluationError: the run has none, or it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    file = run_folder / FOLDER / SCORES_FILE
    try:
        return pyarrow.parquet.read_table(file, partitioning=None)
    except (FileNotFoundError, pyarrow.ArrowInvalid) as error:
        raise EvaluationError(
            f"{file}: cannot be read ({error}). Expected: the scores of an evaluation. "
            "What to do: evaluate the run again."
        ) from error


def report(evaluation: Evaluation, identities: Mapping[str, Mapping[str, Any]], how: Resampling) -> dict[str, Any]:
    """The content of report.json."""
    has_baseline = BASELINE in evaluation.aggregates
    return {
        "schema": SCHEMA,
        "models": {key: dict(values) for key, values in evaluation.aggregates.items()},
        "identities": {key: {"name": name, **identities.get(key, {})} for key, name in evaluation.names.items()},
        "quality": {key: dict(values) for key, values in evaluation.quality.items()},
        "skill": skills(evaluation.scores, BASELINE, how) if has_baseline else {},
        "fine_tuning": gain_over(evaluation.scores, CANDIDATE, ZERO_SHOT, how),
        "by_step": by_step(evaluation.by_step),
        "seconds": dict(evaluation.seconds),
        "windows_fingerprint": evaluation.windows_fingerprint,
        "data_fingerprint": evaluation.data_fingerprint,
        "horizon": evaluation.horizon,
        "season": evaluation.season,
        "cutoffs": list(evaluation.cutoffs),
        "series": len(evaluation.scores.column("series").unique()),
        "windows_scored": evaluation.scores.num_rows // len(evaluation.aggregates),
        "worst_series": worst_series(evaluation.scores, WORST_SERIES),
        "pictures": [
            {"file": picture_name(number), "id": picture.series, "variate": picture.variate, "mase": picture.mase}
            for number, picture in enumerate(evaluation.pictures, start=1)
        ],
        "worst_pictures": [
            {"file": worst_name(number), "id": picture.series, "variate": picture.variate, "mase": picture.mase}
            for number, picture in enumerate(evaluation.worst_pictures, start=1)
        ],
        "notes": list(evaluation.notes),
    }


def by_step(table: pa.Table) -> dict[str, dict[str, list[float]]]:
    """Model key to measure to a list over the steps of the horizon, for pictures."""
    models, model = encode(table, "model")
    return {
        name: {measure: table.column(measure).to_numpy()[model == code].tolist() for measure in STEP_MEASURES}
        for code, name in enumerate(models)
    }


def worst_series(scores: pa.Table, count: int) -> list[dict[str, Any]]:
    """The series and variates with the highest MASE of the first model, worst first, with every model's MASE."""
    (models, model), (series, of_series), (variates, of_variate) = (
        encode(scores, name) for name in ("model", "series", "variate")
    )
    pairs, pair = np.unique(of_series * len(variates) + of_variate, return_inverse=True)
    mase, steps = (scores.column(name).to_numpy() for name in ("MASE", "steps"))
    means = [
        group_mean(mase[model == code], pair[model == code], len(pairs), steps[model == code])
        for code in range(len(models))
    ]
    order = [i for i in np.argsort(-means[0], kind="stable") if not math.isnan(means[0][i])]
    return [
        {
            "id": series[pairs[i] // len(variates)],
            "variate": variates[pairs[i] % len(variates)],
            "MASE": {name: float(values[i]) for name, values in zip(models, means, strict=True)},
        }
        for i in order[:count]
    ]


def forecasts(pictures: Sequence[Picture]) -> dict[str, Any]:
    """The content of forecasts.json."""
    return {
        "quantiles": list(QUANTILES),
        "series": [
            {
                "id": picture.series,
                "variate": picture.variate,
                "mase": picture.mase,
                "timestamps_history": list(picture.history_times),
                "history": _short(picture.history_T),
                "timestamps": list(picture.times),
                "actual": _short(picture.actual_H),
                "forecasts": {key: [_short(row) for row in values] for key, values in picture.forecasts_HQ.items()},
            }
            for picture in pictures
        ],
    }


def markdown_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores as a Markdown table: `Evaluation.aggregates`, or `models` of report.json."""
    lines = ["| Model | " + " | ".join(COLUMNS.values()) + " |", "|:--|" + "--:|" * len(COLUMNS)]
    for key, values in models.items():
        cells = [_cell(name, values.get(name)) for name in COLUMNS]
        lines.append(f"| {TITLES.get(key, key)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture_name(number: int) -> str:
    return f"forecast_{number}.png"


def worst_name(number: int) -> str:
    return f"worst_{number}.png"


def draw(picture: Picture, file: Path) -> None:
    """History, actual values, the first model's median and 10-90 % band, the others' medians."""
    import pandas as pd
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    before, after = pd.DatetimeIndex(picture.history_times), pd.DatetimeIndex(picture.times)
    axes.plot(before, picture.history_T, color="#777777", linewidth=1, label="History")
    axes.plot(after, picture.actual_H, color="black", linewidth=1.4, label="Actual")
    for place, (key, values) in enumerate(picture.forecasts_HQ.items()):
        color, title = _COLORS.get(key, "#CC79A7"), TITLES.get(key, key)
        if place == 0:
            axes.fill_between(
                after, values[:, 0], values[:, -1], color=color, alpha=0.2, linewidth=0, label=f"{title}, 10-90 %"
            )
        width = 1.8 if place == 0 else 0.9
        axes.plot(
            after, values[:, QUANTILES.index(0.5)], _STYLES.get(key, ":"), color=color, linewidth=width, label=title
        )
    axes.axvline(before[-1], color="#bbbbbb", linewidth=0.8)
    named = picture.series if picture.variate == "target" else f"{picture.series}, {picture.variate}"
    mase = "undefined" if math.isnan(picture.mase) else f"{picture.mase:.3f}"
    axes.set_title(f"{named} (MASE {mase} over all windows)".replace("$", r"\$"), fontsize=10, loc="left")
    axes.margins(x=0.01)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(file, dpi=110, format="png")


def _short(values: NDArray[np.floating[Any]]) -> list[float]:
    """Six digits, which is what a picture shows and a third of the file."""
    return [float(f"{value:.6g}") for value in values]


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "undefined"
    return f"{100 * value:.1f} %" if name == "coverage_80" else f"{value:.3f}"


def _write_json(file: Path, value: Any) -> None:
    file.write_bytes(orjson.dumps(spell_out(value), option=orjson.OPT_INDENT_2))
