"""The reductions of the learning rate against PyTorch's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_pipeline.settings.training import PlateauSettings
from toto_pipeline.training.callbacks import ReduceLearningRate
from toto_pipeline.training.plateau import ReduceOnPlateau
from toto_pipeline_tests.training.callback_helpers import epoch_result, epochs, show

VALUES = st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.0, -1.0, math.nan]) | st.floats(-10, 10)
SETTINGS = st.fixed_dictionaries(
    {
        "patience": st.integers(0, 3),
        "mode": st.sampled_from(["min", "max"]),
        "factor": st.floats(0.05, 0.95),
        "threshold": st.sampled_from([0.0, 1e-4, 0.01, 0.1]) | st.floats(0, 0.9),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 3),
        "floor": st.sampled_from([0.0, 0.01, 0.3]) | st.floats(0, 0.9),
    }
)


def _rates(chosen: dict[str, Any], values: list[float]) -> list[float]:
    """The rate after each epoch, from 1 on, of a trainer that multiplies by what the policy asks for."""
    policy = ReduceOnPlateau(PlateauSettings.model_validate({"metric": "MASE", **chosen}))
    rates, rate = [], 1.0
    for epoch, value in enumerate(values, start=1):
        for action in policy.after_epoch(epoch_result(epoch, MASE=value)):
            assert isinstance(action, ReduceLearningRate) and 0 <= action.factor < 1
            rate *= action.factor
        rates.append(rate)
    return rates


def _torch_rates(chosen: dict[str, Any], values: list[float]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    others = {name: value for name, value in chosen.items() if name != "floor"}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=chosen["floor"], eps=0.0, **others)
    rates = []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@settings(deadline=None)
@given(SETTINGS, st.lists(VALUES, max_size=30))
def test_the_rate_is_that_of_pytorch_after_every_epoch(chosen: dict[str, Any], values: list[float]) -> None:
    assert _rates(chosen, values) == pytest.approx(_torch_rates(chosen, values), rel=1e-12)


@settings(deadline=None)
@given(SETTINGS, st.lists(VALUES | st.sampled_from([math.inf, -math.inf]), max_size=30))
def test_a_value_that_is_not_finite_is_no_improvement(chosen: dict[str, Any], values: list[float]) -> None:
    as_nan = [value if math.isfinite(value) else math.nan for value in values]
    assert _rates(chosen, values) == _rates(chosen, as_nan)


@settings(deadline=None)
@given(SETTINGS, st.lists(VALUES, max_size=30))
def test_all_reductions_together_never_go_below_the_floor(chosen: dict[str, Any], values: list[float]) -> None:
    assert all(rate >= chosen["floor"] * (1 - 1e-12) for rate in _rates(chosen, values))


def test_at_the_floor_nothing_more_is_asked_for() -> None:
    policy = ReduceOnPlateau(PlateauSettings(patience=0, factor=0.5, floor=0.3))
    assert [action.factor for action in show(policy, epochs([1.0] * 6))] == [0.5, 0.6]  # type: ignore[union-attr]


def test_a_floor_that_was_raised_does_not_raise_the_rate() -> None:
    low, high = (ReduceOnPlateau(PlateauSettings(patience=0, factor=0.1, floor=floor)) for floor in (0.01, 0.5))
    show(low, epochs([1.0, 1.0]))
    high.load_state_dict(low.state_dict())
    assert show(high, epochs([1.0])) == []
    assert high.state_dict()["reduction"] == 0.1


def test_without_a_patience_nothing_is_asked_for() -> None:
    assert show(ReduceOnPlateau(PlateauSettings()), epochs([1.0] * 50)) == []


def test_the_reason_says_what_was_waited_for() -> None:
    (action,) = show(ReduceOnPlateau(PlateauSettings(patience=1)), epochs([0.25, 0.5, 0.5]))
    assert isinstance(action, ReduceLearningRate)
    assert action.reason == (
        "validation_loss has not been better than 0.25 for 2 epochs; "
        "the learning rate falls from 1 to 0.5 of its schedule"
    )
    (action,) = show(ReduceOnPlateau(PlateauSettings(patience=0)), epochs([math.nan]))
    assert isinstance(action, ReduceLearningRate)
    assert "has not been finite for 1 epoch;" in action.reason
