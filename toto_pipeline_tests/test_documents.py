"""The documents name only what is there. Their commands are executed by end_to_end/test_fresh_clone.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from toto_pipeline.config import RetrainSettings, build, setting_names

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(document: Path) -> None:
    settings = setting_names()
    names = {name.rsplit(".", depth)[0] for name in settings for depth in range(name.count(".") + 1)}
    sections = "|".join(RetrainSettings.model_fields)
    for name in re.findall(rf"[`\s]((?:{sections})\.[a-z_.]+[a-z])(?=[=`])", document.read_text(encoding="utf-8")):
        assert name in names, name


def test_the_example_settings_file_is_valid() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    settings = build(RetrainSettings, yaml.safe_load(example))
    assert settings.schedule.time_zone == "Europe/Paris"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_in_the_map_exists(document: Path) -> None:
    for name in re.findall(
        r"^\| `(toto_pipeline/[^`]+|benchmarks/)`", document.read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert (ROOT / name).exists(), name
