"""Takes the pictures of the README from the real UI: `make screenshots`.

Starts `dagster dev` on a home of its own, retrains on the bundled sample twice, and photographs the lineage, an epoch's
plots, the promoted checkpoint and the run report in headless Chromium. Pictures go to docs/images.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from toto_pipeline.automation.jobs import run_config  # noqa: E402
from toto_pipeline.config import load_settings  # noqa: E402
from toto_pipeline.home import Home  # noqa: E402
from toto_pipeline_tests.browser import open_page  # noqa: E402
from toto_pipeline_tests.end_to_end.dev_server import DevServer  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SETTLE_MILLISECONDS = 2500


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).prepare()
        with DevServer(home) as dev:
            for seed in (0, 1):
                print(f"retraining, seed {seed} ...", flush=True)
                run = dev.launch(run_config(load_settings(assignments=[f"training.seed={seed}"])))
                print(run, dev.wait_until_ended(run), flush=True)
            with open_page(1600, 900) as page:
                _dagster(page, dev.url)
        with open_page(1280, 1500) as page:
            page.goto((home.run(run) / "report.html").as_uri())
            page.wait_for_timeout(SETTLE_MILLISECONDS)
            _save(page, "report")


def _dagster(page: Any, url: str) -> None:
    page.goto(f"{url}/asset-groups")
    page.get_by_text("dashboards").first.wait_for()
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    page.keyboard.press("Alt+e")
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    _save(page, "lineage")

    page.goto(f"{url}/assets/training_epoch")
    page.get_by_text("Plots", exact=True).click()
    page.locator("canvas").first.wait_for()
    page.get_by_text("Metadata", exact=True).first.scroll_into_view_if_needed()
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    page.mouse.move(700, 700)
    page.mouse.wheel(0, 1100)
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    _save(page, "epochs")

    page.goto(f"{url}/assets/promoted_checkpoint")
    page.get_by_text("series_snapshot", exact=True).first.wait_for()
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    _save(page, "promoted")


def _save(page: Any, name: str) -> None:
    page.screenshot(path=str(IMAGES / f"{name}.png"))
    print(IMAGES / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
