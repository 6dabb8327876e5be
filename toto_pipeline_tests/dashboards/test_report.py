"""The report as bytes: what it says, that it is escaped, and that it depends on its input alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.dashboards.html.markup import script_json
from toto_pipeline.dashboards.html.report import render, write_report
from toto_pipeline.dashboards.html.series import BUCKETS, thinned
from toto_pipeline.events.log import EventWriter
from toto_pipeline.runs import Outcome, Stage, write_outcome
from toto_pipeline_tests.fixtures.recorded_run import RUN, Recording, record

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def text_of(html: str) -> str:
    """The page without its script, style and tags, on one line."""
    bare = re.sub(r"<(script|style).*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare)).replace("&#x27;", "'").replace("\u00a0", " ")


def test_says_what_was_decided_and_why(tmp_path: Path) -> None:
    text = text_of(render(record(tmp_path)))
    assert "Promoted as version 4" in text
    assert (
        "SQL on the test windows is 0.5871: 50.3 % lower than the seasonal naive's, 2.3 % lower than the champion's."
        in text
    )
    assert "Passed SQL 0.5871 is 50.3 % lower than the seasonal naive's 1.1824" in text


def test_a_refusal_names_the_rule_that_was_not_met(tmp_path: Path) -> None:
    text = text_of(render(record(tmp_path, promoted=False)))
    assert "Refused" in text
    assert "Failed SQL may be up to 4.1 % higher than the champion's 0.6012." in text


def test_the_first_model_has_no_champion_to_beat(tmp_path: Path) -> None:
    assert "Champion" not in text_of(render(record(tmp_path, champion=False)))


@pytest.mark.parametrize(
    ("recording", "flags", "sentences"),
    [
        (
            {},
            {"trained": False, "evaluated": False, "promoted": None},
            [
                "Preparing",
                "0 of 9 epochs",
                "Training has not started",
                "training has not started yet",
                "No scores yet",
                "No decision yet",
            ],
        ),
        (
            {"stops_after": 130},
            {"evaluated": False, "promoted": None},
            ["No end recorded", "3 of 9 epochs are recorded", "still going, or its process was killed"],
        ),
        (
            {"fails_after": 130},
            {"evaluated": False, "promoted": None},
            [
                "Failed",
                "the loss was nan for 3 steps in a row",
                "No scores: the run failed",
                "failed before a decision",
            ],
        ),
        ({}, {"evaluated": False, "promoted": None}, ["Trained, not decided", "No forecasts yet", "No decision yet"]),
    ],
)
def test_what_is_missing_is_said_with_its_reason(
    tmp_path: Path, recording: dict[str, Any], flags: dict[str, Any], sentences: list[str]
) -> None:
    text = text_of(render(record(tmp_path, Recording(**recording), **flags)))
    for sentence in sentences:
        assert sentence in text


def test_a_failed_stage_is_named_with_its_message(tmp_path: Path) -> None:
    folder = record(tmp_path, trained=False, evaluated=False, promoted=None)
    stage = Stage(stage="series_snapshot", state="failed", seconds=0.4, message="prices.csv, row 3: found 'x'")
    write_outcome(folder, Outcome(outcome="failed", message=stage.message, exit_code=3, stages=(stage,)))
    assert "Read and check the data failed prices.csv, row 3: found 'x' 0.4 s" in text_of(render(folder))


def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = record(tmp_path)
    (folder / "evaluation" / "report.json").write_text('{"models": {"cand')
    (folder / "evaluation" / "forecasts.json").write_text('{"series": []}')
    (folder / "decision.json").write_text('{"promote": true}')
    text = text_of(render(folder))
    assert "evaluation/report.json: is not JSON" in text
    assert "evaluation/forecasts.json does not have the fields it should (KeyError" in text
    assert "decision.json: does not have the fields it should (KeyError" in text
    assert "9 of 9 epochs" in text


def test_restarts_and_warnings_are_told(tmp_path: Path) -> None:
    html = render(record(tmp_path, Recording(dies_after=130, warnings=("validation loss has risen for 3 epochs",))))
    assert "2, resumed from step 120" in text_of(html)
    assert text_of(html).count("validation loss has risen for 3 epochs") == 1
    assert embedded(html)["restarts"] == [120]


def test_a_restart_is_drawn_by_its_later_attempt(tmp_path: Path) -> None:
    folder = record(tmp_path, trained=False, evaluated=False, promoted=None)
    for attempt, first, loss in ((1, 1, 5.0), (2, 3, 1.0)):
        with EventWriter(folder, attempt=attempt) as log:
            for step in range(first, 5):
                log.append("step", step=step, epoch=0, loss=loss)
    assert embedded(render(folder))["curves"]["step_loss"] == {"x": [1, 2, 3, 4], "y": [5, 5, 1, 1]}


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    first = write_report(record(tmp_path / "a"))
    moved = tmp_path / "elsewhere" / RUN
    shutil.copytree(first.parent, moved)
    before = first.read_bytes()
    assert write_report(first.parent).read_bytes() == before
    assert write_report(moved).read_bytes() == before


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    html = render(record(tmp_path))
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", html)
    assert [address for address in addresses if not address.startswith(("data:,", "#"))] == []
    assert "default-src 'none'" in html
    assert "unsafe" not in html


def test_what_comes_from_outside_is_escaped_everywhere(tmp_path: Path) -> None:
    html = render(hostile_run(tmp_path))
    assert "<img" not in html
    assert "<script>alert" not in html
    assert html.count("</script>") == 2
    assert html.count("<b>") == 0
    assert embedded(html)["forecasts"]["series"][0]["id"] == HOSTILE


def test_a_long_run_stays_a_small_page_and_keeps_its_spike(tmp_path: Path) -> None:
    folder = record(tmp_path, trained=False, evaluated=False, promoted=None)
    with EventWriter(folder, clock=lambda: 0.0, monotonic=lambda: 0.0) as log:
        for step in range(1, 30_001):
            loss = 99.5 if step == 20_011 else 1.0 + step * 1e-7
            log.append("step", step=step, epoch=0, loss=loss, learning_rate=0.1, gradient_norm=1.0, seconds=0.01)
    html = render(folder)
    assert len(html) < 150_000
    assert max(embedded(html)["curves"]["step_loss"]["y"]) == 99.5


def test_a_loss_that_is_not_a_number_is_a_gap(tmp_path: Path) -> None:
    folder = record(tmp_path, Recording(diverges=True), evaluated=False, promoted=None)
    html = render(folder)
    assert embedded(html)["curves"]["step_loss"]["y"][-1] is None
    assert embedded(html)["curves"]["step_loss"]["y"][0] is not None


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=300), st.integers(1, 40))
def test_thinning_keeps_ends_extremes_and_order(values: list[float], buckets: int) -> None:
    y = np.array(values, dtype=np.float64)
    kept = thinned(y, buckets)
    assert len(kept) <= max(3 * buckets + 2, 2 * buckets)
    assert kept[0] == 0
    assert kept[-1] == len(y) - 1
    assert (np.diff(kept) > 0).all()
    finite = y[np.isfinite(y)]
    if finite.size:
        assert {finite.min(), finite.max()} <= set(y[kept])
    assert np.isfinite(y[kept]).all() == np.isfinite(y).all()


def test_a_curve_is_at_most_twice_its_buckets_where_all_is_finite() -> None:
    assert len(thinned(np.sin(np.arange(1_000_000.0)))) <= 2 * BUCKETS + 2


@given(
    st.recursive(st.text() | st.none() | st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=6)
)
def test_json_in_a_script_reads_back_and_cannot_end_the_script(value: object) -> None:
    written = script_json({"value": value})
    assert not re.search("[<>&\u2028\u2029]", written)
    assert json.loads(written) == {"value": value}


def embedded(html: str) -> Any:
    """The JSON that the charts are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def hostile_run(runs: Path) -> Path:
    """A run where everything that comes from outside tries to be markup."""
    recording = Recording(
        run="<b>run",
        series=(HOSTILE, "second"),
        host=HOSTILE,
        code_version=HOSTILE,
        warnings=(HOSTILE,),
        fails_after=100,
        failure=HOSTILE,
    )
    folder = record(runs, recording, promoted=None)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["source"] = config["preset"] = config[HOSTILE] = HOSTILE
    (folder / "config.json").write_text(json.dumps(config))
    rules = [{"name": HOSTILE, "passed": False, "text": HOSTILE}]
    (folder / "decision.json").write_text(json.dumps({"promote": False, "version": HOSTILE, "rules": rules}))
    report = json.loads((folder / "evaluation" / "report.json").read_text())
    report["models"][HOSTILE] = {HOSTILE: 1.0}
    (folder / "evaluation" / "report.json").write_text(json.dumps(report))
    stage = Stage(stage=HOSTILE, state=HOSTILE, seconds=1.0, message=HOSTILE)
    write_outcome(folder, Outcome(outcome="failed", message=HOSTILE, exit_code=1, stages=(stage,)))
    return folder
