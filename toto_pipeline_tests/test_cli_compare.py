"""`toto-pipeline compare`, through its entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toto_pipeline_tests.fixtures.recorded_run import Recording, record
from toto_pipeline_tests.test_cli import run

FIRST, SECOND = "1111aaaa-0001", "2222bbbb-0002"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two runs, the second with half the learning rate and refused."""
    home = tmp_path_factory.mktemp("home")
    record(home / "runs", Recording(run=FIRST))
    record(home / "runs", Recording(run=SECOND, settings=("training.learning_rate=0.04",)), promoted=False)
    return home


def test_tells_what_differs_and_what_came_of_it(filled: Path) -> None:
    done = run("compare", "1111", "2222", home=filled)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "training.learning_rate 0.08 0.04" in lines
    assert "New model, SQL 0.5871 0.5871" in lines
    assert "Outcome promoted refused" in lines
    assert "Code and machine: nothing differs. 4 without a known difference; --all shows them." in lines
    assert not any(line.startswith("training.seed") for line in lines)
    everything = run("compare", "1111", "2222", "--all", home=filled).stdout
    assert "training.seed" in everything
    assert "--all" not in everything


def test_json_is_alone_on_standard_output(filled: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "c.html"
    done = run("compare", "1111", "2222", "--json", "--html", str(page), home=filled)
    value = json.loads(done.stdout)
    assert [each["run"] for each in value["runs"]] == [FIRST, SECOND]
    assert value["settings"] == {
        "training.learning_rate": {"values": [0.08, 0.04], "changes": [None, None], "differs": True}
    }
    assert value["page"] == str(page)
    assert "Runs 1111aaaa and 2222bbbb" in page.read_text()


def test_runs_are_named_as_for_show(filled: Path) -> None:
    value = json.loads(run("compare", "latest", FIRST, "--json", home=filled).stdout)
    assert [each["run"] for each in value["runs"]] == [SECOND, FIRST]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1111", "3333"], "'3333' fits no run"),
        (["1111"], "'1111' is one run. Expected: two different runs"),
        (["2222", "latest"], f"'latest' is run {SECOND}. Expected: two different runs"),
        (["1111", "2222", "--html", "."], "is a folder. Expected: a file for the page"),
    ],
)
def test_a_mistake_gets_a_message_and_an_exit_code(filled: Path, words: list[str], message: str) -> None:
    done = run("compare", *words, home=filled)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_page_that_cannot_be_written_is_a_storage_error(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("compare", "1111", "2222", "--html", str(tmp_path / "file" / "c.html"), home=filled)
    assert done.returncode == 6
    assert f"{tmp_path / 'file'}" in done.stderr


def test_words_of_a_run_are_no_markup_of_the_terminal(tmp_path: Path) -> None:
    for name in ("[bold]one", "[bold]two"):
        record(tmp_path / "runs", Recording(run=name, settings=(), host=f"[red]{name}[/nonsense]"))
    done = run("compare", "[bold]one", "[bold]two", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[red][bold]one[/nonsense]" in done.stdout


def test_without_a_page_nothing_heavy_is_imported(filled: Path) -> None:
    script = (
        "import sys; from toto_pipeline.cli import main\n"
        f"sys.argv = ['toto-pipeline', '--home', {str(filled)!r}, 'compare', '1111', '2222']\n"
        "main.__globals__['app'](standalone_mode=False)\n"
        "print([name for name in ('torch', 'mlflow', 'pandas', 'numpy', 'dagster') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
