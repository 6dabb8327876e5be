"""What the comparison of runs finds: differences only where there are some, and words for what is not known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.dashboards.comparison import Comparison, Subject, compare, describe, read_subject
from toto_pipeline.dashboards.facts import Fact, change_written, verdict, written
from toto_pipeline.errors import PipelineError
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.monitoring.progress import progress
from toto_pipeline.runs import Decision, Rule, Run
from toto_pipeline_tests.conftest import make_training_data, write_series
from toto_pipeline_tests.fixtures.recorded_run import Recording, record

values = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4) | st.lists(st.integers(0, 3))
)
names = st.sampled_from(["a", "b", "c"])
scores = st.floats() | st.none() | st.just("nan")


@st.composite
def subjects(draw: st.DrawFn, run: str = "run") -> Subject:
    """A run that has recorded any part of what a run can record."""
    config = draw(st.dictionaries(st.sampled_from(["data", "training", "preset"]), st.dictionaries(names, values)))
    report = {"models": draw(st.dictionaries(names, st.dictionaries(names, scores)))}
    rules = draw(st.lists(st.builds(Rule, name=names, passed=st.booleans(), text=st.text(max_size=3))))
    started: Event = {"type": "run_started", "time": draw(st.floats(0, 10)), "device": draw(st.text(max_size=2))}
    epoch: Event = {"type": "epoch", "time": 20.0, "epoch": 1, "step": 3, "train_loss": 1.0, "is_best": True}
    epoch |= {"validation_loss": draw(st.floats(0, 9)), "seconds": 1.0, "windows_per_second": draw(st.floats(0, 9))}
    milestones = (started, epoch)[: draw(st.integers(0, 2))]
    return Subject(
        run=Run(
            run=run,
            folder=Path("/nowhere"),
            config=config,
            milestones=milestones,
            progress=progress(milestones),
            report=draw(st.none() | st.just(report)),
            decision=draw(st.none() | st.just(Decision(promote=False, version=None, rules=tuple(rules)))),
            outcome=None,
        ),
        state="trained",
        training_data=draw(st.dictionaries(st.sampled_from(["n_series", "snapshot"]), st.integers(0, 9))),
        snapshot=draw(st.dictionaries(st.sampled_from(["n_rows", "start", "end"]), st.integers(0, 9))),
    )


def facts_of(comparison: Comparison) -> dict[str, Fact]:
    return {f"{section.name}/{fact.name}": fact for section in comparison.sections for fact in section.facts}


@given(subjects())
def test_a_run_compared_with_itself_has_no_difference(subject: Subject) -> None:
    comparison = compare([subject, subject])
    assert [name for name, fact in facts_of(comparison).items() if fact.differs] == []
    assert {change for fact in facts_of(comparison).values() for change in fact.changes} <= {0.0, None}
    assert len({*comparison.missing}) == 1


@given(subjects("one"), subjects("two"), subjects("three"))
def test_the_order_of_runs_only_mirrors(one: Subject, two: Subject, three: Subject) -> None:
    forward, backward = facts_of(compare([one, two, three])), facts_of(compare([three, two, one]))
    assert list(forward) == list(backward)
    for name, fact in forward.items():
        mirrored = replace(backward[name], values=backward[name].values[::-1])
        assert mirrored == fact
        assert mirrored.differs == fact.differs


@given(subjects("one"), subjects("two"))
def test_whatever_is_compared_can_be_told(one: Subject, two: Subject) -> None:
    comparison = compare([one, two])
    assert json.loads(json.dumps(describe(comparison, everything=True), allow_nan=False))
    for fact in facts_of(comparison).values():
        for index, value in enumerate(fact.values):
            assert isinstance(written(fact, value) + change_written(fact, index), str)


@pytest.fixture
def trained(home: Home) -> Home:
    """A home with two runs on different settings, the second on other machines and refused."""
    record(home.runs, Recording(run="first"))
    second = Recording(run="second", settings=("training.learning_rate=0.05",), host="trainer-02", epochs=10)
    record(home.runs, second, promoted=False, champion=False)
    return home


def found(home: Home, *runs: str) -> Comparison:
    return compare([read_subject(home, run) for run in runs])


def differing(comparison: Comparison, section: str) -> dict[str, tuple[Any, ...]]:
    return {fact.name: fact.values for fact in comparison.section(section).differences}


def test_only_what_differs_is_a_difference(trained: Home) -> None:
    comparison = found(trained, "first", "second")
    assert differing(comparison, "settings") == {"training.learning_rate": (0.08, 0.05), "training.epochs": (9, 10)}
    assert differing(comparison, "code") == {"host": ("trainer-01", "trainer-02")}
    decision = differing(comparison, "decision")
    assert decision["state"] == ("promoted", "refused")
    assert "version" not in decision  # a refused model has none
    shown = comparison.section("settings").shown()
    assert len(comparison.section("settings").shown(everything=True)) > len(shown) == 2


def change_score(folder: Path, model: str, metric: str, value: Any) -> None:
    file = folder / "evaluation" / "report.json"
    report = json.loads(file.read_text())
    report["models"][model][metric] = value
    file.write_text(json.dumps(report))


def test_scores_stand_side_by_side_with_their_relative_difference(trained: Home) -> None:
    change_score(trained.run("second"), "candidate", "SQL", 0.5871 * 0.9)
    change_score(trained.run("second"), "candidate", "coverage_80", 0.9)
    change_score(trained.run("second"), "candidate", "WQL", "nan")
    scores = {fact.name: fact for fact in found(trained, "first", "second").section("scores").facts}
    sql = scores["candidate.SQL"]
    assert sql.values == pytest.approx((0.5871, 0.52839))
    assert sql.changes == pytest.approx((0.0, -0.1))
    assert (written(sql, sql.values[1]), change_written(sql, 1), verdict(sql, 1)) == ("0.5284", "-10.0 %", "better")
    assert verdict(scores["candidate.coverage_80"], 1) is None  # neither lower nor higher is simply better
    assert (scores["candidate.WQL"].values[1], scores["candidate.WQL"].changes[1]) == ("nan", None)
    assert scores["champion.SQL"].values == (0.6012, None)
    assert not scores["champion.SQL"].differs


def test_training_is_compared_by_its_numbers(trained: Home) -> None:
    facts = {fact.name: fact for fact in found(trained, "first", "second").section("training").facts}
    assert facts["epochs"].values == (9, 10)
    assert change_written(facts["epochs"], 1) == "+1"
    for name in ("best_validation_loss", "training_seconds", "windows_per_second"):
        assert all(value > 0 for value in facts[name].values)
    assert facts["windows_per_second"].better == "higher"


def test_data_is_compared_by_its_manifests(home: Home, tmp_path: Path) -> None:
    prints = []
    for name, steps in (("first", 600), ("second", 640)):
        data = make_training_data(home, write_series(tmp_path / name, steps=steps))
        prints.append(data.fingerprint)
        folder = record(home.runs, Recording(run=name))
        log = folder / "events.jsonl"
        log.write_text(log.read_text().replace("5eed" * 16, data.fingerprint))
    comparison = found(home, "first", "second")
    data_facts = {fact.name: fact for fact in comparison.section("data").facts}
    assert data_facts["training_data"].values == tuple(prints)
    assert data_facts["rows"].values == (1800, 1920)
    assert change_written(data_facts["rows"], 1) == "+120"
    assert data_facts["series"].values == (3, 3)
    assert data_facts["span"].values[1] == "2026-01-01T00:00:00 to 2026-01-27T15:00:00"
    assert {"snapshot", "span", "rows", "steps", "test_from"} <= set(differing(comparison, "data"))
    assert comparison.missing == ((), ())


def test_scores_of_other_windows_are_no_fair_comparison(trained: Home) -> None:
    assert found(trained, "first", "second").notes == ()
    for name in ("first", "second"):
        file = trained.run(name) / "evaluation" / "report.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "windows_fingerprint": name}))
    (note,) = found(trained, "first", "second").notes
    assert "different test windows" in note


def sentences(home: Home, run: str) -> str:
    return " ".join(found(home, "first", run).missing[1])


@pytest.mark.parametrize(
    ("recording", "flags", "words"),
    [
        (Recording(run="x", stops_after=130), {}, ["3 of 9 epochs are done", "No scores", "No decision"]),
        (Recording(run="x", fails_after=130), {}, ["No scores: it was not evaluated.", "No decision was made."]),
        (Recording(run="x"), {"trained": False}, ["Training has not begun", "Series, rows and span are unknown."]),
    ],
)
def test_a_run_that_came_half_way_is_compared_and_what_is_missing_is_said(
    trained: Home, recording: Recording, flags: dict[str, bool], words: Iterable[str]
) -> None:
    record(trained.runs, recording, **flags, evaluated=False, promoted=None)
    comparison = found(trained, "first", "x")
    for sentence in words:
        assert sentence in sentences(trained, "x")
    assert differing(comparison, "settings") == {}
    assert all(fact.values[1] is None for fact in comparison.section("scores").facts)


def test_settings_that_a_run_never_recorded_are_no_difference(trained: Home) -> None:
    file = trained.run("second") / "config.json"
    config = json.loads(file.read_text())
    del config["promotion"], config["training"]["seed"]
    file.write_text(json.dumps(config))
    settings = differing(found(trained, "first", "second"), "settings")
    assert settings["training.seed"] == (0, "not there")
    assert not [name for name in settings if name.startswith("promotion")]
    assert "Settings of promotion are not recorded." in sentences(trained, "second")


def test_a_damaged_file_is_named_and_the_rest_compared(trained: Home) -> None:
    (trained.run("second") / "evaluation" / "report.json").write_text("{")
    assert "evaluation/report.json: is not JSON" in sentences(trained, "second")
    assert differing(found(trained, "first", "second"), "code")


def test_a_run_that_holds_nothing_is_refused(trained: Home) -> None:
    trained.run("empty").mkdir()
    (trained.run("empty") / "config.json").write_text('{"run": "empty", "created": 1}')
    with pytest.raises(PipelineError, match=r"empty: holds nothing to compare.*toto-pipeline runs"):
        read_subject(trained, "empty")


def test_labels_are_as_long_as_it_takes_to_tell_runs_apart(trained: Home) -> None:
    subject = read_subject(trained, "first")
    runs = [replace(subject, run=replace(subject.run, run=f"aaaabbbbcccc{end}")) for end in ("1", "2")]
    assert compare(runs).labels == ("aaaabbbbcccc1", "aaaabbbbcccc2")
    assert compare([subject]).labels == ("first",)
