"""What a run's page says about the quality of its model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from toto_pipeline.dashboards.html.quality import chart
from toto_pipeline.dashboards.html.report import render
from toto_pipeline_tests.dashboards.test_report import HOSTILE, text_of
from toto_pipeline_tests.fixtures.recorded_run import record

LEVELS = [f"0.{n}" for n in range(1, 10)]


def share(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "confidence": 0.95}


def evaluated(folder: Path, **changes: Any) -> Path:
    """A recorded run whose report holds what an evaluation writes today."""
    run = record(folder)
    file = run / "evaluation" / "report.json"
    report = orjson.loads(file.read_bytes())
    intervals = {"80": 0.81, "60": 0.6, "40": 0.4, "20": 0.2}
    one = {
        "bias": -0.042,
        "coverage": intervals,
        "interval_width": {"80": 1.4, "60": 0.9, "40": 0.5, "20": 0.25},
        "below": {level: float(level) for level in LEVELS},
    }
    metrics = ("MASE", "SQL", "WQL", "WAPE")
    report |= {
        "quality": {"candidate": one, "zero_shot": one},
        "skill": {"candidate": {metric: share(0.503, 0.449, 0.551) for metric in metrics}},
        "fine_tuning": {metric: share(0.12, 0.08, 0.16) for metric in metrics},
        "by_step": {"candidate": {"MASE": [0.5, "nan", 0.7], "coverage_80": [0.8, 0.8, 0.8]}},
        "worst_series": [{"id": HOSTILE, "variate": "target", "MASE": {"candidate": 3.2, "seasonal_naive": 2.0}}],
        "worst_pictures": [{"file": "worst_1.png", "id": HOSTILE, "variate": "target", "mase": 3.2}],
        **changes,
    }
    (run / "evaluation" / "worst_1.png").write_bytes(b"\x89PNG")
    file.write_bytes(orjson.dumps(report))
    return run


def test_the_page_tells_skill_calibration_and_the_worst_series(tmp_path: Path) -> None:
    html = render(evaluated(tmp_path))
    text = text_of(html)
    assert "Yes. SQL is 12.0 % lower than with the starting weights." in text
    assert "New model MASE 50.3 % 44.9 % 55.1 %" in text
    assert "Each bound holds with 95 % confidence" in text
    assert "New model -0.042 81.0 % 60.0 % 40.0 % 20.0 % 1.400 0.900 0.500 0.250" in text
    assert "Starting weights" in text
    assert "3.200 2.000" in text
    assert html.count('class="chart still"') == 3
    assert '<img src="data:image/png;base64,' in html
    assert "<img src=x" not in html
    assert "alert(1)</script>" not in html


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (share(0.01, -0.02, 0.04), "Not proven: the interval holds no difference."),
        (share(-0.05, -0.08, -0.02), "No: it made the model worse."),
    ],
)
def test_fine_tuning_that_did_not_help_is_told(tmp_path: Path, gain: dict[str, float], words: str) -> None:
    run = evaluated(tmp_path, fine_tuning=dict.fromkeys(("MASE", "SQL", "WQL", "WAPE"), gain))
    assert words in text_of(render(run))


def test_a_run_from_scratch_says_why_there_is_no_zero_shot(tmp_path: Path) -> None:
    note = "The model was trained from scratch: no zero-shot comparison."
    assert note in text_of(render(evaluated(tmp_path, fine_tuning=None, notes=["another", note])))


def test_an_older_report_has_no_such_sections(tmp_path: Path) -> None:
    html = render(record(tmp_path))
    assert "Calibration" not in html
    assert "fine-tuning" not in html


def test_a_value_that_is_not_finite_breaks_the_line() -> None:
    svg = chart({"candidate": [(1, 0.5), (2, 0.6), (3, float("nan")), (4, 0.7), (5, 0.8)]}, across="step")
    lines = re.findall(r'd="M[^"]+" fill="none"', svg)
    assert len(lines) == 2
    assert "nan" not in svg
    assert "nothing to draw" in chart({"candidate": [(1, float("nan"))]}, across="step")
