import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.training.callbacks import BestTracker, Callback, EarlyStopping, EpochResult, StopOnDivergence


def _results(losses: list[float]) -> list[EpochResult]:
    return [EpochResult(epoch, epoch * 10, 1.0, loss) for epoch, loss in enumerate(losses, start=1)]


def _stops_at(policy: Callback, results: list[EpochResult]) -> int | None:
    return next((result.epoch for result in results if policy.after_epoch(result)), None)


def test_early_stopping_waits_its_patience_after_the_last_improvement() -> None:
    assert _stops_at(EarlyStopping(2), _results([3, 2, 2.5, 1.9, 2, 1.9])) == 6
    assert _stops_at(EarlyStopping(3), _results([3, 2, 2.5, 1.9, 2, 1.9])) is None


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.integers(1, 4), st.data())
def test_a_resumed_policy_decides_as_the_one_that_was_never_stopped(
    losses: list[float], patience: int, data: st.DataObject
) -> None:
    results = _results(losses)
    cut = data.draw(st.integers(0, len(results)))
    whole, first, second = EarlyStopping(patience), EarlyStopping(patience), EarlyStopping(patience)
    answers = [whole.after_epoch(result) for result in results]
    again = [first.after_epoch(result) for result in results[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    again += [second.after_epoch(result) for result in results[cut:]]
    assert again == answers


@given(st.lists(st.floats(), max_size=20))
def test_the_best_is_the_first_lowest_finite_loss(losses: list[float]) -> None:
    tracker = BestTracker()
    for result in _results(losses):
        tracker.after_epoch(result)
    usable = [loss for loss in losses if not math.isnan(loss) and loss < math.inf]
    if not usable:
        assert tracker.best is None
    else:
        assert tracker.best is not None
        assert tracker.best.epoch == losses.index(min(usable)) + 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_way_out(loss: float) -> None:
    stop = StopOnDivergence().after_epoch(EpochResult(3, 30, loss, 1.0))
    assert stop is not None
    assert "epoch 3" in stop.reason and "learning_rate" in stop.reason
    assert StopOnDivergence().after_epoch(EpochResult(3, 30, 1.0, 1.0)) is None
