import math

from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.checkpoints.retention import Kept, best, to_delete

_losses = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@given(st.lists(_losses, max_size=30), st.integers(-1, 5))
def test_the_newest_and_the_best_are_never_deleted(losses: list[float | None], keep_last: int) -> None:
    alive: list[Kept] = []
    for step, loss in enumerate(losses):
        alive.append(Kept(f"step_{step}", step, loss))
        gone = set(to_delete(alive, keep_last=keep_last))
        lowest = best(alive)
        alive = [c for c in alive if c.name not in gone]
        assert alive[-1].step == step
        assert lowest is None or lowest in alive
        assert len(alive) <= max(keep_last, 1) + 1


@given(st.lists(_losses, min_size=1))
def test_the_best_is_the_lowest_finite_loss(losses: list[float | None]) -> None:
    checkpoints = [Kept(f"step_{step}", step, loss) for step, loss in enumerate(losses)]
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    chosen = best(checkpoints)
    assert (chosen is None) == (not finite)
    assert chosen is None or chosen.validation_loss == min(finite)
