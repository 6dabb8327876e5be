"""The report in headless Chromium: numbers equal the log's, no console error, nothing wider than a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from toto_pipeline.dashboards.html.report import write_report
from toto_pipeline.events.log import EventWriter, epochs, latest_attempt, read_events
from toto_pipeline_tests.browser import chromium, needs_chromium
from toto_pipeline_tests.dashboards.test_report import HOSTILE, hostile_run
from toto_pipeline_tests.fixtures.recorded_run import Recording, record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    opener = Opener(browser)
    yield opener
    assert opener.complaints == []
    opener.close()


class Opener:
    """Opens reports and collects what the browser complains about."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._pages: list[Page] = []
        self.complaints: list[str] = []

    def __call__(self, folder: Path, width: int = 1440, scheme: str = "light") -> Page:
        return self.visit(write_report(folder), width, scheme)

    def visit(self, file: Path, width: int = 1440, scheme: str = "light") -> Page:
        page = self._browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self._pages.append(page)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._no_network(request.url))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.goto(file.as_uri())
        return page

    def close(self) -> None:
        for page in self._pages:
            page.close()

    def _no_network(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.complaints.append(f"request: {url}")


def test_the_numbers_are_those_of_the_log(opened: Opener, tmp_path: Path) -> None:
    folder = record(tmp_path, Recording(dies_after=130))
    page = opened(folder)
    expected = [
        [f"{event['train_loss']:.4f}", f"{event['validation_loss']:.4f}"] for event in epochs(read_events(folder))
    ]
    rows = page.locator("#epochs tbody tr")
    shown = [rows.nth(k).locator("td").all_inner_texts()[1:3] for k in range(rows.count())]
    assert shown == expected
    assert page.locator("#scores td.number strong").first.inner_text() == "0.7362"


def test_pointing_at_a_curve_reads_the_log(opened: Opener, tmp_path: Path) -> None:
    folder = record(tmp_path)
    page = opened(folder)
    chart = page.locator("#chart-gradient_norm svg")
    chart.press("ArrowRight")
    chart.press("ArrowRight")
    second = [event for event in latest_attempt(read_events(folder)) if event["type"] == "step"][1]
    name, value = page.locator("#tip").inner_text().splitlines()[1].split(": ")
    assert name == "gradient norm"
    assert float(value) == pytest.approx(second["gradient_norm"], rel=1e-3)
    page.locator("#chart-loss svg").hover(position={"x": 300, "y": 100})
    assert page.locator("#tip").inner_text().startswith("step ")


def test_every_curve_has_its_points(opened: Opener, tmp_path: Path) -> None:
    page = opened(record(tmp_path))
    assert page.locator("#chart-loss circle").count() == 2 * 9
    for name in ("loss", "learning_rate", "gradient_norm", "windows_per_second"):
        path = page.locator(f"#chart-{name} path").first.get_attribute("d")
        assert path is not None
        assert path.count("L") == 9 * 40 - 1
        assert "NaN" not in path


def test_very_small_and_very_large_numbers_have_short_labels(opened: Opener, tmp_path: Path) -> None:
    folder = record(tmp_path, trained=False, evaluated=False, promoted=None)
    with EventWriter(folder) as log:
        for step in range(1, 50):
            log.append("step", step=step, epoch=0, loss=step * 1e9, learning_rate=step * 1e-7, seconds=0.1)
    page = opened(folder, width=390)
    assert "4.00e-6" in page.locator("#chart-learning_rate").inner_text()
    assert "4.00e10" in page.locator("#chart-loss").inner_text()
    assert page.locator("#chart-gradient_norm svg").count() == 1


def test_the_scale_can_be_logarithmic(opened: Opener, tmp_path: Path) -> None:
    page = opened(record(tmp_path))
    before = page.locator("#chart-loss path").first.get_attribute("d")
    page.locator("#log-scale").check()
    assert page.locator("#chart-loss path").first.get_attribute("d") != before


def test_series_and_models_can_be_chosen(opened: Opener, tmp_path: Path) -> None:
    page = opened(record(tmp_path))
    before = page.locator("#forecast polygon").first.get_attribute("points")
    assert page.locator("#forecast polygon").count() == 4
    page.locator("#series").select_option(label="RH_1 (MASE 0.830)")
    assert page.locator("#forecast polygon").first.get_attribute("points") != before
    page.get_by_label("Champion").check()
    assert page.locator("#forecast polygon").count() == 8
    assert "Champion, median" in page.locator("#forecasts .legend").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"promoted": False, "champion": False},
        {"evaluated": False, "promoted": None},
        {"trained": False, "evaluated": False, "promoted": None},
    ],
)
def test_nothing_is_wider_than_a_phone(opened: Opener, tmp_path: Path, scheme: str, flags: dict[str, bool]) -> None:
    page = opened(record(tmp_path, **flags), width=390, scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_hostile_names_are_shown_as_text_and_run_nothing(opened: Opener, tmp_path: Path) -> None:
    page = opened(hostile_run(tmp_path), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert HOSTILE in page.locator("#lineage").inner_text()
    assert page.locator("#series option").first.inner_text().startswith(HOSTILE)
    assert page.locator("img").count() == 0
    page.locator("#forecast svg").press("ArrowRight")


def test_words_can_be_read_against_their_background(opened: Opener, tmp_path: Path) -> None:
    """WCAG AA: at least 4.5 to 1 for the colours that text is written in."""
    for scheme in ("light", "dark"):
        page = opened(record(tmp_path / scheme), scheme=scheme)
        for name in ("--ink", "--soft", "--good", "--bad", "--warn"):
            assert contrast(*colours(page, name, "--card")) >= 4.5, (scheme, name)


def colours(page: Page, *names: str) -> list[str]:
    return [
        page.evaluate("n => getComputedStyle(document.documentElement).getPropertyValue(n)", name) for name in names
    ]


def contrast(one: str, other: str) -> float:
    dark, light = sorted([_luminance(one), _luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.strip().lstrip("#")
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
