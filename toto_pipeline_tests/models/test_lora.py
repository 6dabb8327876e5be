from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import dd_unit_scaling
import numpy as np
import pytest
import torch
import unit_scaling
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toto2 import Toto2Model

from toto_pipeline.models import lora, toto2
from toto_pipeline_tests.models.small_models import (
    copies,
    equal_tensors,
    history,
    mean_loss,
    tiny_forecaster,
    tiny_lora,
    train,
    trained_parameters,
    windows,
)

RANK, ALPHA = 4, 8.0


def _trained(steps: int = 10) -> toto2.Toto2Forecaster:
    forecaster = tiny_lora(rank=RANK, alpha=ALPHA)
    train(forecaster, forecaster.optimizer(0.1, 0.0), steps, windows())
    return forecaster


def _loss(forecaster: toto2.Toto2Forecaster) -> float:
    with torch.no_grad():
        return mean_loss(forecaster, *windows()).item()


def test_new_adapters_change_nothing() -> None:
    plain, adapted = tiny_forecaster(seed=3), tiny_lora(seed=3)
    assert _loss(adapted) == _loss(plain)
    np.testing.assert_array_equal(adapted.forecast(history(), 16), plain.forecast(history(), 16))


def test_adapters_teach_a_trained_model_something_new_and_the_base_weights_stay() -> None:
    base, forecaster = tiny_forecaster(), tiny_lora()
    train(base, base.optimizer(0.1, 0.0), 60, windows())
    load_base(forecaster, base)
    before = copies(forecaster.module.named_parameters())
    losses = train(forecaster, forecaster.optimizer(0.1, 0.0), 30, other_windows())
    assert losses[-1] < 0.4 * losses[0]
    moved = {name for name, p in forecaster.module.named_parameters() if (p != before[name]).any()}
    assert moved == trained_parameters(forecaster).keys()


def load_base(adapted: toto2.Toto2Forecaster, plain: toto2.Toto2Forecaster) -> None:
    state = plain.module.state_dict()
    with torch.no_grad():
        for name, parameter in adapted.module.named_parameters():
            if not parameter.requires_grad:
                parameter.copy_(state[name.replace(".parametrizations.weight.original", ".weight")])


def other_windows() -> tuple[Tensor, Tensor]:
    """Faster waves than those of `windows`."""
    wave = torch.sin(torch.arange(80) / 3).expand(8, 2, 80)
    return wave + 0.05 * torch.randn(8, 2, 80, generator=torch.Generator().manual_seed(0)), windows()[1]


def test_the_published_folder_is_the_adapted_model_without_adapters(tmp_path: Path) -> None:
    adapted = _trained()
    adapted.save(tmp_path / "model")
    module = Toto2Model.from_pretrained(str(tmp_path / "model"))
    assert not any("parametrizations" in name for name in module.state_dict())
    published = toto2.Toto2Forecaster(module)
    assert _loss(published) == pytest.approx(_loss(adapted), rel=1e-7)
    np.testing.assert_allclose(published.forecast(history(), 16), adapted.forecast(history(), 16), rtol=1e-6)
    assert _loss(published) != pytest.approx(_loss(tiny_forecaster()), rel=1e-2)


Merge = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.mark.parametrize(
    "merge",
    [
        pytest.param(lambda w, a, b: w + 0 * b @ a, id="not merged"),
        pytest.param(lambda w, a, b: w + ALPHA / RANK * b @ a, id="without the scale of B"),
        pytest.param(lambda w, a, b: w + b @ a / RANK**0.5, id="without alpha / rank"),
        pytest.param(
            lambda w, a, b: w + ALPHA / RANK * b @ a / RANK**0.5 / w.shape[1] ** 0.5, id="the layer's scale twice"
        ),
        pytest.param(lambda w, a, b: w + ALPHA / RANK * b @ a / RANK**0.5 * w.shape[1] ** 0.5, id="its scale undone"),
    ],
)
def test_a_merge_by_another_formula_is_another_model(merge: Merge, tmp_path: Path) -> None:
    """So the comparison with the published folder would notice it."""
    adapted = _trained()
    wrong = _plain_with_merged(adapted, merge)
    right = _plain_with_merged(adapted, lambda w, a, b: w + ALPHA / RANK * b @ a / RANK**0.5)
    assert _loss(right) == pytest.approx(_loss(adapted), rel=1e-6)
    assert _loss(wrong) != pytest.approx(_loss(adapted), rel=1e-3)


def _plain_with_merged(adapted: toto2.Toto2Forecaster, merge: Merge) -> toto2.Toto2Forecaster:
    state = adapted.module.state_dict()
    plain = tiny_forecaster()
    merged = {}
    for name in plain.module.state_dict():
        inside = name.replace(".weight", ".parametrizations.weight")
        if f"{inside}.original" in state:
            merged[name] = merge(state[f"{inside}.original"], state[f"{inside}.0.A"], state[f"{inside}.0.B"])
        else:
            merged[name] = state[name]
    plain.module.load_state_dict(merged)
    return plain


def test_saving_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    saved, unsaved = tiny_lora(), tiny_lora()
    optimizers = saved.optimizer(0.1, 0.0), unsaved.optimizer(0.1, 0.0)
    train(saved, optimizers[0], 2, windows())
    train(unsaved, optimizers[1], 2, windows())
    random_state = torch.get_rng_state()
    saved.save(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert saved.module.training
    assert trained_parameters(saved).keys() == trained_parameters(unsaved).keys()
    assert train(saved, optimizers[0], 2, windows()) == train(unsaved, optimizers[1], 2, windows())
    assert equal_tensors(saved.module.state_dict(), unsaved.module.state_dict())


def test_the_merged_state_has_the_names_and_shapes_of_the_plain_model() -> None:
    plain, merged = tiny_forecaster().module.state_dict(), lora.merged_state(_trained().module)
    assert {name: t.shape for name, t in merged.items()} == {name: t.shape for name, t in plain.items()}
    assert not any(tensor.requires_grad for tensor in merged.values())


def test_the_merged_state_of_a_plain_model_is_its_own() -> None:
    module = tiny_forecaster().module
    assert equal_tensors(lora.merged_state(module), module.state_dict())


def test_an_adapted_model_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    adapted, other = _trained(), tiny_lora(seed=5, rank=RANK, alpha=ALPHA)
    save_file(adapted.module.state_dict(), tmp_path / "state.safetensors")
    assert _loss(other) != _loss(adapted)
    other.module.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert _loss(other) == _loss(adapted)


def test_adapters_have_the_learning_rates_of_unit_scaled_layers() -> None:
    """lr / sqrt(in) for A and lr / sqrt(rank) for B, both over the root of the depth, which is 4 layers."""
    forecaster = tiny_lora(rank=9)
    optimizer = forecaster.optimizer(0.1, 0.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trained_parameters(forecaster).items():
        fan_in = parameter.shape[1] if name.endswith(".A") else 9
        assert rates[id(parameter)] == pytest.approx(0.1 / fan_in**0.5 / 4**0.5)


class _OneLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = dd_unit_scaling.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x)
        return output


def _step_of_the_output(layer: nn.Module, x: Tensor, learning_rate: float) -> float:
    """How far the first step of AdamW moves the layer's output, in root mean square."""
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimizer = dd_unit_scaling.AdamW(trained, lr=learning_rate)
    before = layer(x)
    (before * torch.randn_like(before)).sum().backward()
    optimizer.step()
    return float((layer(x) - before).detach().square().mean().sqrt())


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize(("rank", "alpha"), [(32, 32.0), (32, 64.0), (128, 64.0)])
def test_a_step_of_adapters_is_alpha_over_rank_of_a_full_step(width: int, rank: int, alpha: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, width)
    full, adapted = _OneLayer(width), _OneLayer(width)
    lora.add_adapters(adapted, ["fc"], rank=rank, alpha=alpha)
    learning_rate = 0.01
    full_step = _step_of_the_output(full, x, learning_rate)
    assert full_step == pytest.approx(learning_rate, rel=0.4)
    assert _step_of_the_output(adapted, x, learning_rate) == pytest.approx(alpha / rank * full_step, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_effective_weight_keeps_its_precision_under_autocast(dtype: torch.dtype) -> None:
    """So that what was trained in a short format is what is merged in float32."""
    layer = _trained().module.transformer.layers[0].attn.in_proj
    exact = layer.weight
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer.weight, exact)


def test_the_product_of_an_adapter_is_unit_scalings_matmul() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(6, 3, generator=generator), torch.randn(3, 10, generator=generator)
    results = []
    for matmul in (lora.unit_scaled_matmul, functools.partial(unit_scaling.functional.matmul, constraint=None)):
        left, right = (factor.clone().requires_grad_() for factor in factors)
        product = matmul(left, right)
        product.square().sum().backward()
        results.append((product, left.grad, right.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
