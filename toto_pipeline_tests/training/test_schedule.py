from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.training.schedule import factor


@given(st.integers(1, 5000), st.floats(0, 0.9), st.floats(0, 1))
def test_the_factor_stays_between_zero_and_one_and_training_starts_and_ends_gently(
    total: int, warmup: float, decay: float
) -> None:
    values = [factor(s, total_steps=total, warmup_fraction=warmup, decay_fraction=decay) for s in range(total)]
    assert all(0 < value <= 1 for value in values)
    if round(total * warmup) > 1:
        assert values[0] < values[1]
    if round(total * decay) > 1:
        assert values[-1] < 1


def test_warm_up_level_and_decay() -> None:
    values = [factor(s, total_steps=10, warmup_fraction=0.2, decay_fraction=0.4) for s in range(11)]
    assert values == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
