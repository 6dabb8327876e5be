"""The page that compares runs: its bytes, and the page in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from toto_pipeline.dashboards.comparison import Subject, read_subject
from toto_pipeline.dashboards.html.comparison import render, write_comparison
from toto_pipeline.home import Home
from toto_pipeline_tests.browser import chromium, needs_chromium
from toto_pipeline_tests.dashboards.test_report import HOSTILE, embedded, hostile_run, text_of
from toto_pipeline_tests.dashboards.test_report_in_browser import Opener, colours, contrast
from toto_pipeline_tests.fixtures.recorded_run import Recording, record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def two_runs(home: Home) -> list[Subject]:
    record(home.runs, Recording(run="first"))
    second = Recording(run="second", settings=("training.learning_rate=0.04",), epochs=6)
    folder = record(home.runs, second, promoted=False)
    report = json.loads((folder / "evaluation" / "report.json").read_text())
    report["models"]["candidate"]["SQL"] = 0.5871 * 1.1
    (folder / "evaluation" / "report.json").write_text(json.dumps(report))
    return [read_subject(home, name) for name in ("first", "second")]


def hostile_runs(home: Home) -> list[Subject]:
    hostile = hostile_run(home.runs)
    other = Recording(run=HOSTILE.replace("/", "|"), settings=(), host="other")
    return [read_subject(home, hostile.name), read_subject(home, record(home.runs, other).name)]


def test_says_what_differs_and_what_came_of_it(home: Home) -> None:
    text = text_of(render(two_runs(home)))
    assert "Runs first and second" in text
    assert "SQL of second is 0.6458: 10.0\u00a0% higher than the first run's.".replace("\u00a0", " ") in text
    assert "training.learning_rate 0.08 0.04" in text
    assert "New model, SQL 0.5871 0.6458 +10.0 %" in text
    assert "Outcome promoted refused" in text


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(home: Home, tmp_path: Path) -> None:
    page = render(two_runs(home))
    moved = Home(tmp_path / "elsewhere")
    shutil.copytree(home.root, moved.root)
    assert render([read_subject(moved, name) for name in ("first", "second")]) == page


def test_nothing_is_loaded_from_elsewhere(home: Home) -> None:
    html = render(two_runs(home))
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", html)
    assert [address for address in addresses if not address.startswith(("data:,", "#"))] == []
    assert "default-src 'none'" in html
    assert "unsafe" not in html


def test_what_comes_from_outside_is_escaped_everywhere(home: Home) -> None:
    html = render(hostile_runs(home))
    assert "<img" not in html
    assert "<script>alert" not in html
    assert html.count("</script>") == 2
    assert html.count("<b>") == 0


def test_every_curve_is_that_of_its_run(home: Home) -> None:
    first, second = embedded(render(two_runs(home)))["overlays"]
    assert (first["name"], second["name"]) == ("first", "second")
    assert first["validation_loss"]["x"] == [40.0 * epoch for epoch in range(1, 10)]
    assert len(second["train_loss"]["x"]) == 6
    assert first["color"] != second["color"]
    assert first["dash"] != second["dash"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Browser) -> Iterator[Pages]:
    pages = Pages(browser)
    yield pages
    assert pages.complaints == []
    pages.close()


class Pages(Opener):
    """Opens comparisons, and collects what the browser complains about."""

    def compare(self, subjects: list[Subject], file: Path, width: int = 1440, scheme: str = "light") -> Page:
        return self.visit(write_comparison(subjects, file), width, scheme)


@needs_chromium
def test_losses_of_the_runs_are_drawn_over_each_other(opened: Pages, home: Home, tmp_path: Path) -> None:
    page = opened.compare(two_runs(home), tmp_path / "c.html")
    assert page.locator("#overlay-validation_loss circle").count() == 9 + 6
    assert page.locator("#overlay-train_loss path").count() == 4
    for path in page.locator(".overlay path").all():
        assert "NaN" not in (path.get_attribute("d") or "NaN")
    chart = page.locator("#overlay-validation_loss svg")
    chart.press("ArrowRight")
    assert page.locator("#tip").inner_text().splitlines()[0] == "step 40"
    assert {line.split(":")[0] for line in page.locator("#tip").inner_text().splitlines()[1:]} == {"first", "second"}


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(opened: Pages, home: Home, tmp_path: Path, scheme: str) -> None:
    subjects = two_runs(home)
    for name, flags in (("third", {"evaluated": False}), ("fourth", {"trained": False, "evaluated": False})):
        record(home.runs, Recording(run=name), **flags, promoted=None)
        subjects.append(read_subject(home, name))
    page = opened.compare(subjects, tmp_path / "c.html", width=390, scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#overlay-validation_loss circle").count() == 9 + 6 + 9


@needs_chromium
def test_runs_without_a_loss_have_a_sentence_instead_of_a_chart(opened: Pages, home: Home, tmp_path: Path) -> None:
    for name in ("one", "two"):
        record(home.runs, Recording(run=name), trained=False, evaluated=False, promoted=None)
    page = opened.compare([read_subject(home, name) for name in ("one", "two")], tmp_path / "c.html")
    assert "None of these runs has recorded a loss." in page.locator("#losses").inner_text()


@needs_chromium
def test_hostile_words_are_shown_as_text_and_run_nothing(opened: Pages, home: Home, tmp_path: Path) -> None:
    page = opened.compare(hostile_runs(home), tmp_path / "c.html", width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert HOSTILE in page.locator("#facts-settings").inner_text()
    assert page.locator("img").count() == 0


@needs_chromium
def test_each_run_has_a_colour_that_can_be_seen(opened: Pages, home: Home, tmp_path: Path) -> None:
    """WCAG: at least 3 to 1 for what is drawn."""
    subjects = two_runs(home)
    for scheme in ("light", "dark"):
        page = opened.compare(subjects, tmp_path / "c.html", scheme=scheme)
        for index in range(6):
            assert contrast(*colours(page, f"--run-{index}", "--card")) >= 3, (scheme, index)
