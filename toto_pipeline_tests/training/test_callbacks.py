"""What every callback must keep to, which ones a run has, and callbacks of a user's own."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.errors import ConfigError
from toto_pipeline.settings.training import TrainingSettings
from toto_pipeline.training.callbacks import (
    Action,
    BestTracker,
    Callback,
    EpochResult,
    Record,
    StepResult,
    Stop,
    Warn,
    build_callbacks,
)
from toto_pipeline_tests.training.callback_helpers import (
    Course,
    courses,
    epoch_result,
    epochs,
    show,
    step_result,
    troubled_course,
)


class StepCounter(Callback):
    """A callback as a user writes one: it overrides what it needs."""

    def __init__(self, warn_at: int, *, name: str = "counted") -> None:
        self.warn_at = warn_at
        self.name = name
        self.count = 0

    def after_steps(self, steps: Sequence[StepResult]) -> Iterable[Action]:
        for step in steps:
            self.count += 1
            if self.count == self.warn_at:
                yield Warn(self.name, f"step {step.step}")

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class NoCallback:
    pass


class Broken(Callback):
    def __init__(self, share: float) -> None:
        raise ValueError(f"a share of {share}")


HERE = __name__
COUNTER = f"{HERE}:StepCounter"

LOW_IS_GOOD = TrainingSettings.model_validate(
    {
        "max_skipped_steps": 3,
        "early_stopping": {"patience": 2, "min_delta": 0.1, "baseline": 1.0, "warmup_epochs": 1},
        "plateau": {"patience": 1, "cooldown": 1, "floor": 0.2},
        "trends": {"window": 3, "overfitting_epochs": 2, "plateau_epochs": 2, "oscillation_epochs": 3},
        "callbacks": {COUNTER: {"warn_at": 5}},
    }
)
HIGH_IS_GOOD = TrainingSettings.model_validate(
    {
        "early_stopping": {"patience": 1, "metric": "MASE", "mode": "max"},
        "plateau": {"patience": 0, "metric": "coverage_80", "mode": "max", "threshold_mode": "abs"},
        "checkpoints": {"metric": "coverage_80", "mode": "max"},
    }
)

EVERY_CALLBACK = [
    pytest.param(lambda settings=settings, name=name: build_callbacks(settings)[name], id=f"{direction}-{name}")
    for direction, settings in (("low", LOW_IS_GOOD), ("high", HIGH_IS_GOOD))
    for name in build_callbacks(settings)
]
Make = Callable[[], Callback]


def _through_json(state: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(state, allow_nan=False))
    return loaded


@pytest.mark.parametrize("make", EVERY_CALLBACK)
@settings(max_examples=60, deadline=None)
@given(course=courses(), data=st.data())
def test_a_resumed_callback_answers_as_one_that_was_never_stopped(
    make: Make, course: Course, data: st.DataObject
) -> None:
    whole, before, after = make(), make(), make()
    cut = data.draw(st.integers(0, len(course)))
    answers = show(before, course[:cut])
    state = before.state_dict()
    written = json.dumps(state, allow_nan=False)
    after.load_state_dict(json.loads(written))
    answers += show(after, course[cut:])
    assert answers == show(whole, course)
    assert after.state_dict() == whole.state_dict()
    show(before, course[cut:])
    assert json.dumps(state, allow_nan=False) == written, "the state changed after it was handed out"


@pytest.mark.parametrize("make", EVERY_CALLBACK)
def test_a_callback_resumes_exactly_amid_any_trouble(make: Make) -> None:
    course = troubled_course()
    answers = show(make(), course)
    for cut in range(len(course) + 1):
        before, after = make(), make()
        first = show(before, course[:cut])
        after.load_state_dict(_through_json(before.state_dict()))
        assert first + show(after, course[cut:]) == answers, f"cut before {course[cut:][:1]}"


def test_the_troubled_course_makes_every_callback_speak() -> None:
    silent = {name for name, callback in build_callbacks(LOW_IS_GOOD).items() if not show(callback, troubled_course())}
    assert silent == {"best"}


@pytest.mark.parametrize("make", EVERY_CALLBACK)
@settings(max_examples=40, deadline=None)
@given(course=courses(), groups=st.lists(st.integers(1, 40), max_size=20))
def test_how_many_steps_come_at_once_does_not_matter(make: Make, course: Course, groups: list[int]) -> None:
    def decisions(actions: Iterable[Action]) -> list[Action]:
        """Without the one warning that tells of a group of steps."""
        return [action for action in actions if getattr(action, "name", "") != "steps_skipped"]

    together, alone = make(), make()
    assert decisions(show(together, course, groups)) == decisions(show(alone, course))
    assert together.state_dict() == alone.state_dict()


@pytest.mark.parametrize("make", EVERY_CALLBACK)
@settings(max_examples=20, deadline=None)
@given(course=courses(), more=courses())
def test_the_state_of_a_new_callback_makes_a_used_one_new(make: Make, course: Course, more: Course) -> None:
    used = make()
    show(used, course)
    used.load_state_dict(_through_json(make().state_dict()))
    assert show(used, more) == show(make(), more)


@pytest.mark.parametrize("make", EVERY_CALLBACK)
@settings(max_examples=20, deadline=None)
@given(course=courses())
def test_answers_are_actions_and_the_same_every_time(make: Make, course: Course) -> None:
    answers = show(make(), course)
    assert all(isinstance(answer, get_args(Action)) for answer in answers)
    assert answers == show(make(), course)
    json.dumps([answer.values for answer in answers if isinstance(answer, Record)], allow_nan=False)


def test_a_callback_that_overrides_nothing_does_nothing() -> None:
    callback = Callback()
    assert show(callback, [step_result(1), epoch_result(1)]) == []
    assert callback.state_dict() == {}
    callback.load_state_dict({})


def test_a_value_of_an_epoch_is_a_loss_or_a_metric() -> None:
    result = epoch_result(3, 1.0, 2.0, MASE=0.9)
    assert [result.value(name) for name in ("train_loss", "validation_loss", "MASE")] == [1.0, 2.0, 0.9]
    with pytest.raises(ConfigError, match=r"no metric 'mase'.* train_loss, validation_loss, MASE\."):
        result.value("mase")


@pytest.mark.parametrize("setting", ["early_stopping", "plateau", "checkpoints"])
def test_a_misspelt_metric_is_named_after_the_first_epoch(setting: str) -> None:
    patience = {} if setting == "checkpoints" else {"patience": 3}
    callbacks = build_callbacks(TrainingSettings.model_validate({setting: {"metric": "mse", **patience}}))
    with pytest.raises(ConfigError, match="'mse'"):
        for callback in callbacks.values():
            callback.after_epoch(epoch_result(1))


@settings(deadline=None)
@given(st.lists(st.floats(), max_size=20), st.sampled_from(["min", "max"]))
def test_the_best_is_the_first_best_finite_value(values: list[float], mode: Any) -> None:
    tracker = BestTracker("MASE", mode)
    best_so_far = []
    for epoch, value in enumerate(values, start=1):
        result = epoch_result(epoch, MASE=value)
        tracker.after_epoch(result)
        if tracker.is_best(result):
            best_so_far.append(value)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        assert tracker.best is None
    else:
        assert tracker.best is not None
        assert tracker.best.epoch == values.index(min(finite) if mode == "min" else max(finite)) + 1
    assert best_so_far == sorted(set(best_so_far), reverse=mode == "min")


@pytest.mark.parametrize("train, validation", [(math.nan, 1.0), (1.0, math.inf), (1.0, -math.inf)])
def test_an_epoch_of_which_no_checkpoint_is_kept_is_not_the_best(train: float, validation: float) -> None:
    tracker = BestTracker("MASE")
    tracker.after_epoch(epoch_result(1, train, validation, MASE=0.1))
    assert tracker.best is None


def test_the_best_of_an_older_checkpoint_is_understood() -> None:
    tracker = BestTracker()
    tracker.load_state_dict({"best": {"epoch": 2, "step": 20, "train_loss": 1.5, "validation_loss": 0.5}})
    assert tracker.best is not None
    assert (tracker.best.epoch, tracker.best.value("validation_loss")) == (2, 0.5)
    assert math.isnan(tracker.best.learning_rate)


def test_the_best_keeps_all_its_numbers_over_a_checkpoint() -> None:
    tracker, resumed = BestTracker(), BestTracker()
    tracker.after_epoch(epoch_result(1, MASE=math.nan, WQL=math.inf))
    resumed.load_state_dict(_through_json(tracker.state_dict()))
    assert resumed.best is not None
    assert str(resumed.best) == str(tracker.best)


def test_a_run_has_the_callbacks_its_settings_ask_for() -> None:
    always = {
        "best",
        "non_finite",
        "statistics",
        "overfitting",
        "loss_plateau",
        "divergence",
        "oscillation",
        "gradient_explosion",
    }
    assert build_callbacks(TrainingSettings()).keys() == always
    assert build_callbacks(LOW_IS_GOOD).keys() == {*always, "early_stopping", "plateau", COUNTER}


def test_the_best_is_known_before_anything_else_is_decided() -> None:
    assert next(iter(build_callbacks(LOW_IS_GOOD))) == "best"
    assert list(build_callbacks(LOW_IS_GOOD))[-1] == COUNTER


def test_the_best_is_that_of_the_checkpoints() -> None:
    tracker = build_callbacks(HIGH_IS_GOOD)["best"]
    assert isinstance(tracker, BestTracker)
    for epoch, coverage in enumerate([0.5, 0.7, 0.6], start=1):
        tracker.after_epoch(epoch_result(epoch, coverage_80=coverage, MASE=1.0))
    assert tracker.best is not None
    assert tracker.best.epoch == 2


def test_a_user_names_a_class_and_its_arguments() -> None:
    chosen = TrainingSettings(callbacks={COUNTER: {"warn_at": 2, "name": "second"}})
    counter = build_callbacks(chosen)[COUNTER]
    assert isinstance(counter, StepCounter)
    assert show(counter, [step_result(n) for n in range(1, 4)], groups=[3]) == [Warn("second", "step 2")]
    assert show(counter, epochs([1.0])) == []


def test_a_module_in_the_folder_of_the_start_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        from toto_pipeline.training.callbacks import Callback, Stop

        class StopAtLoss(Callback):
            def __init__(self, loss):
                self.loss = loss

            def after_epoch(self, result):
                return [Stop("low enough")] if result.validation_loss <= self.loss else []
    """
    (tmp_path / "callbacks_of_mine.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        callbacks = build_callbacks(TrainingSettings(callbacks={"callbacks_of_mine:StopAtLoss": {"loss": 0.25}}))
        assert show(callbacks["callbacks_of_mine:StopAtLoss"], epochs([0.5, 0.2])) == [Stop("low enough")]
    finally:
        sys.modules.pop("callbacks_of_mine", None)


def _refusal(name: str, arguments: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_callbacks(TrainingSettings(callbacks={name: arguments}))
    message = str(caught.value)
    assert message.startswith(f"training.callbacks: {name}: ")
    assert "Expected" in message
    return message


@pytest.mark.parametrize(
    "name, arguments, found",
    [
        ("no_such_package.module:Class", {}, "No module named 'no_such_package'"),
        (f"{HERE}:Missing", {}, "has no Missing"),
        (f"{HERE}:NoCallback", {}, "NoCallback is <class"),
        (f"{HERE}:step_result", {}, "step_result is <function"),
        (COUNTER, {}, "missing a required argument: 'warn_at'"),
        (COUNTER, {"warn_at": 1, "colour": 2}, "unexpected keyword argument 'colour'"),
        (f"{HERE}:Broken", {"share": 3}, "ValueError: a share of 3"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_with_what_was_expected(
    name: str, arguments: dict[str, Any], found: str
) -> None:
    assert found in _refusal(name, arguments)


def test_arguments_that_do_not_fit_are_refused_with_the_ones_that_do() -> None:
    assert "(warn_at: 'int', *, name: 'str' = 'counted')" in _refusal(COUNTER, {"warnat": 1})


def test_a_module_that_cannot_be_imported_is_refused_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "callbacks_with_a_fault.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "ZeroDivisionError: division by zero" in _refusal("callbacks_with_a_fault:Mine", {})


def test_an_epoch_result_says_what_it_is_for_a_plain_loop() -> None:
    result = EpochResult(epoch=1, step=10, train_loss=1.0, validation_loss=2.0)
    assert result.metrics == {}
    assert math.isnan(result.learning_rate) and math.isnan(result.gradient_norm)
