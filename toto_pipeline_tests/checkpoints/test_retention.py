import itertools
import math

from hypothesis import example, given
from hypothesis import strategies as st

from toto_pipeline.checkpoints.retention import Kept, best, to_delete
from toto_pipeline.settings.training import CheckpointSettings, Mode

METRIC = "validation_mase"

_scores = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([1.0, 2.0])  # the latter, so that some tie
_metrics = st.dictionaries(st.sampled_from([METRIC, "validation_loss"]), _scores)
_saves = st.tuples(_metrics, st.booleans(), st.booleans())
_settings = st.builds(
    CheckpointSettings,
    keep_last=st.integers(1, 4),
    keep_best=st.integers(1, 3),
    keep_every=st.none() | st.integers(1, 7),
    metric=st.just(METRIC),
    mode=st.sampled_from(["min", "max"]),
)


def _finite(checkpoint: Kept) -> bool:
    return METRIC in checkpoint.metrics and math.isfinite(checkpoint.metrics[METRIC])


def _is_worth_keeping(checkpoint: Kept, all_: list[Kept], settings: CheckpointSettings) -> bool:
    """The rules, one by one, as the settings' descriptions say them."""
    newer = [c for c in all_ if c.step > checkpoint.step]
    sign = 1 if settings.mode == "min" else -1
    better = [
        c
        for c in all_
        if _finite(c)
        and _finite(checkpoint)
        and (sign * c.metrics[METRIC], c.step) < (sign * checkpoint.metrics[METRIC], checkpoint.step)
    ]
    return (
        len(newer) < settings.keep_last
        or (_finite(checkpoint) and len(better) < settings.keep_best)
        or (settings.keep_every is not None and checkpoint.step % settings.keep_every == 0)
        or (checkpoint.verified and not any(c.verified for c in newer))
        or checkpoint.pinned
    )


@given(st.lists(_saves, max_size=25), _settings)
@example([({METRIC: 1.0}, True, False), ({}, False, False), ({}, False, False)], CheckpointSettings(keep_last=1))
def test_after_every_save_exactly_what_a_rule_keeps_is_kept(saves: list, settings: CheckpointSettings) -> None:  # type: ignore[type-arg]
    alive: list[Kept] = []
    for step, (metrics, verified, pinned) in enumerate(saves, start=1):
        alive.append(Kept(f"step_{step}", step, metrics, verified, pinned))
        gone = to_delete(alive, settings)
        assert gone == [c.name for c in alive if not _is_worth_keeping(c, alive, settings)]
        before, alive = alive, [c for c in alive if c.name not in gone]
        assert alive[-1].step == step
        assert [c for c in before if c.verified][-1:] == [c for c in alive if c.verified][-1:]
        assert all(c in alive for c in before if c.pinned)
        assert best(alive, metric=METRIC, mode=settings.mode) == best(before, metric=METRIC, mode=settings.mode)


@given(st.lists(_saves, max_size=10), _settings, st.randoms())
def test_the_order_in_which_the_disk_lists_them_does_not_matter(
    saves: list,  # type: ignore[type-arg]
    settings: CheckpointSettings,
    random: object,
) -> None:
    checkpoints = [Kept(f"step_{step}", step, *save) for step, save in enumerate(saves)]
    shuffled = list(checkpoints)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert to_delete(shuffled, settings) == to_delete(checkpoints, settings)


@given(st.lists(_metrics), st.sampled_from(["min", "max"]), st.integers(1, 4))
def test_the_best_are_finite_and_best_first_and_the_earlier_of_equals(
    metrics: list[dict[str, float]], mode: Mode, count: int
) -> None:
    checkpoints = [Kept(f"step_{step}", step, each) for step, each in enumerate(metrics)]
    finite = [each[METRIC] for each in metrics if math.isfinite(each.get(METRIC, math.nan))]
    chosen = best(checkpoints, metric=METRIC, mode=mode, count=count)
    assert [c.metrics[METRIC] for c in chosen] == sorted(finite, reverse=mode == "max")[:count]
    for one, other in itertools.pairwise(chosen):
        assert one.metrics[METRIC] != other.metrics[METRIC] or one.step < other.step
