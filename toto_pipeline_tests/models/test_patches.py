import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.models.patches import PatchedWindows


@given(st.sampled_from([1, 4, 16, 32]), st.integers(8, 600), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_masks_are_whole_patches_and_the_first_is_always_seen(
    patch_size: int, context: int, horizon: int, seed: int
) -> None:
    windows = PatchedWindows(patch_size)
    length = windows.length(context, horizon)
    assert length % patch_size == 0
    assert length >= context + horizon
    for mask in (
        windows.training_mask(length, horizon, np.random.default_rng(seed)),
        windows.forecast_mask(length, horizon),
    ):
        assert mask.shape == (length,)
        patches = mask.reshape(-1, patch_size)
        assert (patches.all(axis=1) | (~patches).all(axis=1)).all()
        assert patches[0].all()


def test_the_forecast_mask_hides_the_horizon_and_no_patch_more() -> None:
    windows = PatchedWindows(16)
    mask = windows.forecast_mask(windows.length(64, 20), 20)
    assert mask.tolist() == [True] * 64 + [False] * 32


def test_both_kinds_of_mask_occur_and_repeat_with_their_seed() -> None:
    windows = PatchedWindows(16)
    masks = [windows.training_mask(608, 96, np.random.default_rng(seed)) for seed in range(200)]
    tails = sum(not mask[-1] for mask in masks)
    assert 80 < tails < 180
    assert any(mask[-1] and not mask.all() for mask in masks)
    again = windows.training_mask(608, 96, np.random.default_rng(7))
    assert (again == masks[7]).all()
