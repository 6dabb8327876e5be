"""Early stopping against Lightning's and Keras's own rules, and the end of a run that has lost its numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from toto_pipeline.settings.training import EarlyStoppingSettings, Mode
from toto_pipeline.training.callbacks import EpochResult, Stop, Warn
from toto_pipeline.training.stopping import EarlyStopping, NonFiniteGuard
from toto_pipeline_tests.training.callback_helpers import epoch_result, epochs, show, step_result

MODES = st.sampled_from(["min", "max"])
VALUES = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0, -1.0]) | st.floats(-10, 10)
DELTAS = st.sampled_from([0.0, 0.1, 0.2]) | st.floats(0, 2)
PATIENCES = st.integers(1, 4)


def _stops(chosen: EarlyStoppingSettings, values: list[float]) -> list[bool]:
    """After which epochs the policy wants to stop."""
    policy = EarlyStopping(chosen)
    results = [epoch_result(epoch, MASE=value) for epoch, value in enumerate(values, start=1)]
    return [policy.after_epoch(result) != [] for result in results]


def _settings(**values: Any) -> EarlyStoppingSettings:
    return EarlyStoppingSettings.model_validate({"metric": "MASE", **values})


@pytest.fixture(scope="module", autouse=True)
def _lightning() -> None:
    """Import it before the first example is timed."""
    import lightning.pytorch.callbacks  # noqa: F401


def _lightning_stops(values: list[float], mode: str, patience: int, min_delta: float) -> list[bool]:
    import torch
    from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

    callback = LightningEarlyStopping("MASE", min_delta, patience, mode=mode, check_finite=False)
    stops: list[bool] = []
    for value in values:
        trainer = SimpleNamespace(
            callback_metrics={"MASE": torch.tensor(value, dtype=torch.float64)},
            fast_dev_run=False,
            should_stop=False,
            current_epoch=len(stops),
            strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision),
        )
        callback._run_early_stopping_check(trainer)  # type: ignore[arg-type]
        stops.append(trainer.should_stop)
    return stops


@settings(deadline=None)
@given(st.lists(VALUES | st.just(math.nan), max_size=30), MODES, PATIENCES, DELTAS)
@example([1.0, 0.9, 0.8, 0.7], "min", 2, 0.1)
@example([1.0, 1.1, 1.2, 1.3], "max", 2, 0.1)
def test_it_stops_when_lightning_does(values: list[float], mode: str, patience: int, min_delta: float) -> None:
    ours = _stops(_settings(mode=mode, patience=patience, min_delta=min_delta), values)
    assert ours == _lightning_stops(values, mode, patience, min_delta)


@settings(deadline=None)
@given(st.lists(VALUES | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=30), MODES, PATIENCES)
def test_a_value_that_is_not_finite_is_no_improvement(values: list[float], mode: str, patience: int) -> None:
    as_nan = [value if math.isfinite(value) else math.nan for value in values]
    assert _stops(_settings(mode=mode, patience=patience), values) == _lightning_stops(as_nan, mode, patience, 0.0)


def _keras_stops(
    values: list[float], mode: Mode, patience: int, min_delta: float, baseline: float | None, start_from_epoch: int
) -> list[bool]:
    """The rules of keras.callbacks.EarlyStopping, for finite values, as its documentation and code state them."""

    def is_improvement(value: float, reference: float) -> bool:
        return value + min_delta < reference if mode == "min" else value - min_delta > reference

    best = math.inf if mode == "min" else -math.inf
    wait, stops = 0, []
    for epoch, value in enumerate(values):
        stop = False
        if epoch >= start_from_epoch:
            wait += 1
            if is_improvement(value, best):
                best = value
                if baseline is None or is_improvement(value, baseline):
                    wait = 0
            else:
                stop = wait >= patience
        stops.append(stop)
    return stops


@settings(deadline=None)
@given(st.lists(VALUES, max_size=30), MODES, PATIENCES, DELTAS, VALUES | st.none(), st.integers(0, 4))
@example([3.0, 2.5, 2.4, 2.4], "min", 3, 0.0, 1.0, 0)
@example([0.1, 3.0, 2.0, 1.0, 1.0, 1.0], "min", 2, 0.0, None, 1)
def test_baseline_and_warm_up_are_those_of_keras(
    values: list[float], mode: Mode, patience: int, min_delta: float, baseline: float | None, warmup: int
) -> None:
    chosen = _settings(mode=mode, patience=patience, min_delta=min_delta, baseline=baseline, warmup_epochs=warmup)
    assert _stops(chosen, values) == _keras_stops(values, mode, patience, min_delta, baseline, warmup)


def test_it_waits_its_patience_after_the_last_improvement() -> None:
    losses = [3, 2, 2.5, 1.9, 2, 1.9]
    assert _stops(_settings(patience=2), losses) == [False] * 5 + [True]
    assert not any(_stops(_settings(patience=3), losses))


def test_without_a_patience_it_never_stops() -> None:
    assert not any(_stops(_settings(), [1.0] * 50))


def _reason(values: list[float], **chosen: Any) -> str:
    policy = EarlyStopping(EarlyStoppingSettings.model_validate({"patience": 2, **chosen}))
    actions = show(policy, epochs(values))
    assert len(actions) == 1 and isinstance(actions[0], Stop) and not actions[0].failed
    return actions[0].reason


def test_the_reason_says_what_was_waited_for() -> None:
    assert _reason([0.5, 0.25, 0.3, 0.25]) == "validation_loss has not been lower than 0.25 (epoch 2) for 2 epochs"
    assert _reason([0.5, 0.49, 0.48], min_delta=0.1) == (
        "validation_loss has not been lower than 0.5 (epoch 1) by more than 0.1 for 2 epochs"
    )
    assert _reason([0.5, 0.4], mode="max", patience=1).startswith("validation_loss has not been higher than 0.5")
    assert _reason([0.5, 0.4, 0.4], baseline=0.1) == (
        "validation_loss has not been lower than the baseline 0.1 for 3 epochs; the best was 0.4 (epoch 2)"
    )
    assert _reason([math.nan, math.inf]) == "validation_loss was not a finite number for 2 epochs"


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1.0, math.nan, math.inf]), max_size=40),
    st.lists(st.integers(1, 10), max_size=20),
    st.integers(1, 6),
)
def test_the_run_ends_at_the_step_that_is_one_too_many_however_steps_are_grouped(
    losses: list[float], groups: list[int], most: int
) -> None:
    steps = [step_result(number, loss=loss) for number, loss in enumerate(losses, start=1)]
    actions = show(NonFiniteGuard(most), steps, groups)
    stops = [action for action in actions if isinstance(action, Stop)]
    fatal = [
        n
        for n in range(most, len(losses) + 1)
        if not any(map(math.isfinite, losses[n - most : n])) and (n == most or math.isfinite(losses[n - most - 1]))
    ]
    assert len(stops) == len(fatal)
    for stop, step in zip(stops, fatal, strict=True):
        assert stop.failed
        assert f"step {step} " in stop.reason


def test_the_reason_says_what_was_not_finite_and_the_way_out() -> None:
    steps = [step_result(7, norm=math.inf), step_result(8, loss=math.nan, norm=math.nan)]
    assert show(NonFiniteGuard(2), steps)[-1] == Stop(
        "2 steps in a row were skipped, at last step 8 with loss nan and gradient norm nan; "
        "a lower training.learning_rate usually helps",
        failed=True,
    )


def test_skipped_steps_are_warned_about_once_for_each_group() -> None:
    guard = NonFiniteGuard(25)
    first = [step_result(n, norm=math.inf if n in {3, 5} else 1.0) for n in range(1, 11)]
    second = [step_result(n) for n in range(11, 21)]
    third = [step_result(n, loss=math.nan if n == 24 else 1.0) for n in range(21, 31)]
    messages = [action.message for action in show(guard, [*first, *second, *third], [10, 10, 10])]  # type: ignore[union-attr]
    assert messages == [
        "2 of the steps 3 to 5 were skipped, at last with gradient norm inf; skipped so far: 2. "
        "After 25 in a row the run ends.",
        "step 24 was skipped, at last with loss nan; skipped so far: 3. After 25 in a row the run ends.",
    ]
    assert all(isinstance(a, Warn) and a.name == "steps_skipped" for a in show(NonFiniteGuard(25), first, [10]))


@pytest.mark.parametrize(
    "result", [epoch_result(3, math.nan, 1.0), epoch_result(3, 1.0, math.inf), epoch_result(3, -math.inf, math.nan)]
)
def test_a_loss_that_is_not_finite_fails_the_run_with_the_way_out(result: EpochResult) -> None:
    (stop,) = NonFiniteGuard(25).after_epoch(result)
    assert isinstance(stop, Stop) and stop.failed
    assert "epoch 3" in stop.reason and "learning_rate" in stop.reason
    assert NonFiniteGuard(25).after_epoch(epoch_result(3, MASE=math.nan)) == []
