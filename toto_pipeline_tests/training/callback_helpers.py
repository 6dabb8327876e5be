"""Made-up courses of a training, and a driver that shows them to a callback."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from toto_pipeline.training.callbacks import Action, Callback, EpochResult, StepResult

Course = list[StepResult | EpochResult]

NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.1, 2.0, 100.0, math.nan, math.inf, -math.inf]) | st.floats()


def step_result(step: int, *, epoch: int = 0, loss: float = 1.0, norm: float = 1.0) -> StepResult:
    skipped = not (math.isfinite(loss) and math.isfinite(norm))
    return StepResult(step=step, epoch=epoch, loss=loss, gradient_norm=norm, skipped=skipped)


def epoch_result(epoch: int, train: float = 1.0, validation: float = 1.0, **metrics: float) -> EpochResult:
    return EpochResult(epoch=epoch, step=epoch * 10, train_loss=train, validation_loss=validation, metrics=metrics)


def epochs(losses: Iterable[float], *, train: float = 1.0) -> list[EpochResult]:
    """Epochs with these validation losses."""
    return [epoch_result(epoch, train, loss) for epoch, loss in enumerate(losses, start=1)]


def training_epochs(losses: Iterable[float]) -> list[EpochResult]:
    """Epochs with these training losses."""
    return [epoch_result(epoch, loss) for epoch, loss in enumerate(losses, start=1)]


@st.composite
def _epoch_values(draw: st.DrawFn) -> list[tuple[float, float, float, float]]:
    """Training loss, validation loss, MASE and coverage of some epochs: any numbers, or a movement in one direction."""
    if draw(st.booleans()):
        return [draw(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS))]
    train, validation, turns = draw(st.tuples(*[st.sampled_from([0.5, 0.9, 1.0, 1.1, 1.5])] * 2, st.booleans()))
    powers = [n % 2 if turns else n for n in range(draw(st.integers(2, 8)))]
    return [(train**n, validation**n, validation**n, train**n) for n in powers]


@st.composite
def courses(draw: st.DrawFn) -> Course:
    """Steps and epochs with any numbers at all; steps come in stretches of equal ones."""
    stretches = st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(1, 25)), max_size=4)
    course: Course = []
    step = 0
    values = itertools.chain(*draw(st.lists(_epoch_values(), max_size=5)))
    for epoch, (train, validation, mase, coverage) in enumerate(values):
        for loss, norm, count in draw(stretches):
            course += [step_result(step + n, epoch=epoch, loss=loss, norm=norm) for n in range(1, count + 1)]
            step += count
        course.append(
            EpochResult(
                epoch=epoch + 1,
                step=step,
                train_loss=train,
                validation_loss=validation,
                metrics={"MASE": mase, "coverage_80": coverage},
                gradient_norm=draw(NUMBERS),
            )
        )
    return course


def troubled_course() -> Course:
    """One trouble after the other: steps that are skipped or explode, then epochs that go wrong in every way."""
    norms = [1.0] * 25 + [50.0, 60.0] + [1.0] * 21 + [50.0] + [math.inf] * 4 + [1.0]
    overfitting = [(0.9**n, 1.1**n) for n in range(7)]
    standing = [(0.5, 1.0)] * 5
    oscillating = [(0.5 + 0.1 * (n % 2), 1.0) for n in range(7)]
    diverging = [(2.0, 1.0), (3.0, 2.0), (math.nan, 1.0)]
    losses = [*overfitting, *standing, *oscillating, *diverging]
    return [
        *(step_result(step, norm=norm) for step, norm in enumerate(norms, start=1)),
        *(epoch_result(n, *pair, MASE=pair[1], coverage_80=0.5) for n, pair in enumerate(losses, start=1)),
    ]


def show(callback: Callback, course: Sequence[StepResult | EpochResult], groups: Iterable[int] = ()) -> list[Action]:
    """All answers to a course whose steps come in groups of these sizes, then one by one."""
    actions: list[Action] = []
    sizes = itertools.chain(groups, itertools.repeat(1))
    for are_steps, part in itertools.groupby(course, lambda item: isinstance(item, StepResult)):
        waiting = list(part)
        while waiting:
            size = next(sizes) if are_steps else 1
            group, waiting = waiting[:size], waiting[size:]
            actions += callback.after_steps(group) if are_steps else callback.after_epoch(group[0])  # type: ignore[arg-type]
    return actions
