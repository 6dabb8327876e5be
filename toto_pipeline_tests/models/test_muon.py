"""Muon beside AdamW: the published update, in the same dress as the optimizer it replaces."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from toto_pipeline.errors import CheckpointError
from toto_pipeline.models import toto2
from toto_pipeline.models.muon import Muon, hidden_matrices, orthogonalized
from toto_pipeline.models.optimizer import (
    apply_unless,
    load_state_by_name,
    set_rates,
    state_by_name,
)
from toto_pipeline_tests.models.small_models import (
    backward,
    copies,
    equal_tensors,
    everything,
    learning_rates,
    mean_loss,
    sharded_forecaster,
    tiny_forecaster,
    tiny_lora,
    train,
    windows,
)

SHAPES = {"square": (16, 16), "tall": (48, 16), "wide": (16, 48)}
RATE, MUON_RATE = 0.1, 0.2


def _matrices(seed: int = 0) -> list[nn.Parameter]:
    """Two of each shape."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES.values() for _ in range(2)]


def _gradients(steps: int) -> list[list[Tensor]]:
    return [[matrix.detach() for matrix in _matrices(seed)] for seed in range(1, steps + 1)]


def _step_with(optimizer: Optimizer, matrices: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for matrix, gradient in zip(matrices, step, strict=True):
            matrix.grad = gradient.clone()
        optimizer.step()


def _muon(matrices: list[nn.Parameter], weight_decay: float = 0.0) -> Muon:
    return Muon([{"params": matrices, "lr": MUON_RATE, "weight_decay": weight_decay}])


def _newton_schulz(matrix: Tensor) -> Tensor:
    """`zeropower_via_newtonschulz5` of the publication, in float32."""
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = matrix / max(matrix.norm().item(), 1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
def test_steps_are_those_of_the_publication(weight_decay: float) -> None:
    ours, theirs, gradients = _matrices(), [m.detach().clone() for m in _matrices()], _gradients(4)
    _step_with(_muon(ours, weight_decay), ours, gradients)
    momenta = [torch.zeros_like(matrix) for matrix in theirs]
    for step in gradients:
        for matrix, momentum, gradient in zip(theirs, momenta, step, strict=True):
            momentum.mul_(0.95).add_(gradient, alpha=0.05)
            update = _newton_schulz(0.05 * gradient + 0.95 * momentum)
            matrix.mul_(1 - MUON_RATE * weight_decay)
            matrix.sub_(MUON_RATE * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5 * update)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.detach(), other, rtol=1e-4, atol=1e-4)


def test_steps_are_those_of_pytorchs_muon_within_its_bfloat16() -> None:
    ours, theirs, gradients = _matrices(), _matrices(), _gradients(3)
    _step_with(_muon(ours, 0.1), ours, gradients)
    upstream = torch.optim.Muon(theirs, lr=MUON_RATE, weight_decay=0.1, adjust_lr_fn="original")
    _step_with(upstream, theirs, gradients)
    for mine, other, start in zip(ours, theirs, _matrices(), strict=True):
        moved = (other - start).norm()
        assert (mine - other).norm() < 0.03 * moved


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_what_is_orthogonalized_keeps_its_directions_and_loses_its_size(shape: tuple[int, int], size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], 16, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], 16, generator=generator))
    matrix = left * torch.logspace(0, -2, 16) @ right.T
    (result,) = orthogonalized(size * matrix[None])
    inside = left.T @ result @ right
    assert inside.diag().min() > 0.68
    assert inside.diag().max() < 1.21
    torch.testing.assert_close(inside, inside.diag().diag(), rtol=0, atol=1e-3)
    torch.testing.assert_close(left @ inside @ right.T, result, rtol=0, atol=1e-3)


def test_a_stack_is_orthogonalized_as_one_by_one() -> None:
    for shape in SHAPES.values():
        stack = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
        stack[2] = 0.0
        one_by_one = torch.cat([orthogonalized(each[None]) for each in stack])
        torch.testing.assert_close(orthogonalized(stack), one_by_one, rtol=1e-5, atol=1e-5)
        assert not one_by_one[2].any()


def test_matrices_step_alike_alone_and_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone, gradients = _matrices(), _matrices(), _gradients(2)
    _step_with(_muon(together), together, gradients)
    monkeypatch.setattr("toto_pipeline.models.muon.LARGEST_STACK", 1)
    _step_with(_muon(alone), alone, gradients)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_matrix_without_a_gradient_stays() -> None:
    matrices, before = _matrices(), _matrices()
    optimizer = _muon(matrices)
    for matrix, gradient in zip(matrices[1:], _gradients(1)[0][1:], strict=True):
        matrix.grad = gradient
    optimizer.step()
    assert [m.equal(b) for m, b in zip(matrices, before, strict=True)] == [True] + 5 * [False]


def _optimizer(forecaster: toto2.Toto2Forecaster, weight_decay: float = 0.0) -> Optimizer:
    return forecaster.optimizer(RATE, weight_decay, MUON_RATE)


def test_hidden_matrices_are_those_of_attention_and_feed_forward() -> None:
    names = set(hidden_matrices(tiny_forecaster().module))
    parts = ("attn.in_proj", "attn.out_proj", "ffn.fc1", "ffn.fc2")
    assert names == {f"transformer.layers.{layer}.{part}.weight" for layer in range(4) for part in parts}


def test_adapters_and_what_is_frozen_are_no_hidden_matrices() -> None:
    for forecaster in (tiny_lora(), tiny_forecaster(tune="head")):
        assert hidden_matrices(forecaster.module) == {}


def test_a_hidden_matrix_has_muons_rate_by_depth_alone_and_the_rest_that_of_adamw() -> None:
    forecaster = tiny_forecaster()
    module, optimizer = forecaster.module, _optimizer(forecaster, 1e-4)
    hidden = hidden_matrices(module)
    plain = tiny_forecaster()
    rest = learning_rates(plain.module, plain.optimizer(RATE, 1e-4))
    expected = {name: MUON_RATE / math.sqrt(4) if name in hidden else rate for name, rate in rest.items()}
    for key in ("lr", "initial_lr"):
        assert learning_rates(module, optimizer, key) == pytest.approx(expected)
    for factor in (0.5, 0.0, 1.0):
        set_rates(optimizer, factor)
        assert learning_rates(module, optimizer) == pytest.approx(
            {name: factor * rate for name, rate in expected.items()}
        )
    assert len(optimizer.param_groups) < 9


def test_a_step_is_muons_on_the_hidden_matrices_and_adamws_on_the_rest() -> None:
    forecaster, plain = tiny_forecaster(), tiny_forecaster()
    train(forecaster, _optimizer(forecaster), 1, windows())
    train(plain, plain.optimizer(RATE, 0.0), 1, windows())
    hidden = hidden_matrices(forecaster.module)
    for name, parameter in forecaster.module.named_parameters():
        assert parameter.equal(plain.module.get_parameter(name)) == (name not in hidden), name


def test_weight_decay_takes_its_share_off_the_weights_whatever_their_rate() -> None:
    forecaster = tiny_forecaster()
    optimizer = _optimizer(forecaster, 1e-4)
    before = copies(forecaster.module.named_parameters())
    for parameter in forecaster.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in forecaster.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 1e-4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_skipped_step_changes_nothing(steps_before: int) -> None:
    forecaster = tiny_forecaster()
    optimizer = _optimizer(forecaster, 1e-4)
    train(forecaster, optimizer, steps_before, windows())
    before = everything(forecaster.module, optimizer)
    backward(forecaster)
    for parameter in forecaster.module.parameters():
        parameter.grad[...] = float("nan")
    apply_unless(optimizer, torch.tensor(True))
    assert equal_tensors(everything(forecaster.module, optimizer), before)


def test_a_step_that_is_not_skipped_is_a_plain_step_also_after_a_skipped_one() -> None:
    skipping, plain = tiny_forecaster(), tiny_forecaster()
    optimizers = [_optimizer(f, 1e-4) for f in (skipping, plain)]
    for skip in (False, True, False, True):
        backward(skipping)
        apply_unless(optimizers[0], torch.tensor(skip))
        optimizers[0].zero_grad()
    train(plain, optimizers[1], 2, windows())
    assert equal_tensors(everything(skipping.module, optimizers[0]), everything(plain.module, optimizers[1]))
    train(skipping, optimizers[0], 1, windows())  # nothing of the skipped step is left behind
    train(plain, optimizers[1], 1, windows())
    assert equal_tensors(everything(skipping.module, optimizers[0]), everything(plain.module, optimizers[1]))


def test_the_flag_is_not_read_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = tiny_forecaster()
    optimizer = _optimizer(forecaster)
    backward(forecaster)

    def read(self: Tensor) -> Any:
        raise AssertionError("the device is waited for")

    for name in ("item", "__bool__", "__float__", "tolist", "cpu"):
        monkeypatch.setattr(Tensor, name, read)
    for skip in (torch.tensor(True), torch.tensor(False)):
        apply_unless(optimizer, skip)


def test_a_loss_scale_is_taken_off_all_gradients() -> None:
    forecaster, plain = tiny_forecaster(), tiny_forecaster()
    optimizer = _optimizer(forecaster)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(mean_loss(forecaster, *windows())).backward()
    scaler.unscale_(optimizer)
    backward(plain)
    for name, parameter in forecaster.module.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.module.get_parameter(name).grad, msg=name)


def test_a_restored_optimizer_goes_on_bit_for_bit() -> None:
    forecaster, restored = tiny_forecaster(), tiny_forecaster(seed=1)
    optimizer, other = _optimizer(forecaster, 1e-4), _optimizer(restored, 1e-4)
    train(forecaster, optimizer, 3, windows())
    train(restored, other, 1, windows())
    kept = everything(forecaster.module, optimizer)
    restored.module.load_state_dict({name: kept[name] for name in restored.module.state_dict()})
    load_state_by_name(restored.module, other, {name: kept[name] for name in state_by_name(restored.module, other)})
    assert train(restored, other, 3, windows()) == train(forecaster, optimizer, 3, windows())
    assert equal_tensors(everything(restored.module, other), everything(forecaster.module, optimizer))


def test_the_state_at_the_start_is_what_the_first_step_would_begin_with() -> None:
    ours, theirs = tiny_forecaster(), tiny_forecaster()
    optimizer, emptied = _optimizer(ours), _optimizer(theirs)
    hidden = hidden_matrices(ours.module)
    keys: dict[bool, set[str]] = {True: set(), False: set()}
    for full_name in state_by_name(ours.module, optimizer):
        name, _, key = full_name.rpartition(".")
        keys[name in hidden].add(key)
    assert keys == {True: {"momentum"}, False: {"step", "exp_avg", "exp_avg_sq"}}
    load_state_by_name(theirs.module, emptied, {})
    assert state_by_name(theirs.module, emptied) == {}
    train(ours, optimizer, 1, windows())
    train(theirs, emptied, 1, windows())
    assert equal_tensors(everything(ours.module, optimizer), everything(theirs.module, emptied))


def test_a_state_of_the_other_optimizer_is_refused_and_nothing_is_changed() -> None:
    muon, plain = tiny_forecaster(), tiny_forecaster()
    optimizers = _optimizer(muon), plain.optimizer(RATE, 0.0)
    before = everything(muon.module, optimizers[0])
    with pytest.raises(CheckpointError, match=r"holds exp_avg, exp_avg_sq, step of .* keeps momentum"):
        load_state_by_name(muon.module, optimizers[0], state_by_name(plain.module, optimizers[1]))
    with pytest.raises(CheckpointError, match="holds momentum of"):
        load_state_by_name(plain.module, optimizers[1], state_by_name(muon.module, optimizers[0]))
    assert equal_tensors(everything(muon.module, optimizers[0]), before)


def test_sharded_matrices_step_as_whole_ones_do(one_rank: None) -> None:
    whole, sharded = tiny_forecaster(), sharded_forecaster()
    optimizers = _optimizer(whole, 1e-4), _optimizer(sharded, 1e-4)
    assert learning_rates(sharded.module, optimizers[1]) == learning_rates(whole.module, optimizers[0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, parameter in whole.module.named_parameters():
            own = sharded.module.get_parameter(name)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            own.grad = dist.tensor.distribute_tensor(parameter.grad, own.device_mesh, own.placements)
        for optimizer in optimizers:
            apply_unless(optimizer, torch.tensor(False))
    expected = everything(whole.module, optimizers[0])
    found = everything(sharded.module, optimizers[1])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        mine = found[name]
        torch.testing.assert_close(mine.full_tensor() if isinstance(mine, DTensor) else mine, value, msg=name)


def test_a_sharded_optimizer_skips_and_is_restored(one_rank: None) -> None:
    forecaster, restored = sharded_forecaster(), sharded_forecaster(seed=1)
    optimizer, other = _optimizer(forecaster), _optimizer(restored)
    train(forecaster, optimizer, 2, windows())
    before = everything(forecaster.module, optimizer)
    backward(forecaster)
    apply_unless(optimizer, torch.tensor(True))
    optimizer.zero_grad()
    assert equal_tensors(everything(forecaster.module, optimizer), before)

    restored.module.load_state_dict(forecaster.module.state_dict())
    load_state_by_name(restored.module, other, state_by_name(forecaster.module, optimizer))
    for trained, its_optimizer in ((forecaster, optimizer), (restored, other)):
        backward(trained)
        apply_unless(its_optimizer, torch.tensor(False))
    after = everything(forecaster.module, optimizer)
    assert equal_tensors(everything(restored.module, other), after)
    assert not equal_tensors(after, before)
