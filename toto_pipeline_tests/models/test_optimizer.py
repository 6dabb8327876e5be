from __future__ import annotations

from typing import Any

import dd_unit_scaling
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from toto_pipeline.errors import CheckpointError
from toto_pipeline.models import toto2
from toto_pipeline.models.optimizer import (
    apply_unless,
    from_indexes,
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
    sharded_forecaster,
    tiny_forecaster,
    tiny_lora,
    train,
    trained_parameters,
    windows,
)


def test_groups_are_few_and_every_parameter_has_its_own_rate() -> None:
    forecaster = tiny_forecaster()
    optimizer = forecaster.optimizer(0.1, 1e-4)
    upstream = dd_unit_scaling.AdamW(forecaster.module.parameters(), lr=0.1, weight_decay=1e-4)
    assert len(optimizer.param_groups) < 8 < len(upstream.param_groups)
    for key in ("lr", "weight_decay"):
        assert learning_rates(forecaster.module, optimizer, key) == learning_rates(forecaster.module, upstream, key)
    assert len(set(learning_rates(forecaster.module, optimizer).values())) > 3


def test_steps_are_those_of_upstreams_optimizer() -> None:
    ours, theirs = tiny_forecaster(), tiny_forecaster()
    optimizer = ours.optimizer(0.1, 1e-4)
    upstream = dd_unit_scaling.AdamW(theirs.module.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=1e-4)
    for _ in range(3):
        _same_gradients(ours, theirs)
        optimizer.step()
        upstream.step()
    _assert_close(ours, theirs)


def _same_gradients(*forecasters: toto2.Toto2Forecaster) -> None:
    """Drawn, because AdamW turns rounding errors of a gradient that is nearly zero into steps of full size."""
    for parameters in zip(*(f.module.parameters() for f in forecasters), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


def _assert_close(ours: toto2.Toto2Forecaster, theirs: toto2.Toto2Forecaster) -> None:
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(ours.module.get_parameter(name), parameter)


def test_rates_are_multiples_of_the_ones_at_the_start() -> None:
    forecaster = tiny_forecaster()
    optimizer = forecaster.optimizer(0.1, 0.0)
    start = learning_rates(forecaster.module, optimizer)
    assert learning_rates(forecaster.module, optimizer, "initial_lr") == start
    for factor in (0.5, 0.0, 1.0):
        set_rates(optimizer, factor)
        assert learning_rates(forecaster.module, optimizer) == {name: factor * rate for name, rate in start.items()}


def test_weight_decay_takes_its_share_off_the_weights_whatever_their_rate() -> None:
    forecaster = tiny_forecaster()
    optimizer = forecaster.optimizer(0.1, 1e-4)
    before = copies(forecaster.module.named_parameters())
    for parameter in forecaster.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in forecaster.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 1e-4), rtol=1e-6, atol=0)


def _plain_adamw(forecaster: toto2.Toto2Forecaster) -> Optimizer:
    optimizer: Optimizer = dd_unit_scaling.AdamW(forecaster.module.parameters(), lr=0.1)
    return optimizer


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_skipped_step_changes_nothing(fused: bool, steps_before: int) -> None:
    forecaster = tiny_forecaster()
    optimizer = forecaster.optimizer(0.1, 1e-4) if fused else _plain_adamw(forecaster)
    train(forecaster, optimizer, steps_before, windows())
    before = everything(forecaster.module, optimizer)
    backward(forecaster)
    for parameter in forecaster.module.parameters():
        parameter.grad[...] = float("nan")
    apply_unless(optimizer, torch.tensor(True))
    assert equal_tensors(everything(forecaster.module, optimizer), before)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_skipped_is_a_plain_step_also_after_a_skipped_one(fused: bool) -> None:
    skipping, plain = tiny_forecaster(), tiny_forecaster()
    optimizers = [f.optimizer(0.1, 1e-4) if fused else _plain_adamw(f) for f in (skipping, plain)]
    for skip in (False, True, False, True):
        backward(skipping)
        apply_unless(optimizers[0], torch.tensor(skip))
        optimizers[0].zero_grad()
    train(plain, optimizers[1], 2, windows())
    assert equal_tensors(everything(skipping.module, optimizers[0]), everything(plain.module, optimizers[1]))
    backward(skipping)
    optimizers[0].step()  # nothing of the skipped step is left behind
    train(plain, optimizers[1], 1, windows())
    assert equal_tensors(everything(skipping.module, optimizers[0]), everything(plain.module, optimizers[1]))


def test_a_fused_optimizer_does_not_read_the_flag_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = tiny_forecaster()
    optimizer = forecaster.optimizer(0.1, 0.0)
    backward(forecaster)

    def read(self: Tensor) -> Any:
        raise AssertionError("the device is waited for")

    for name in ("item", "__bool__", "__float__", "tolist", "cpu"):
        monkeypatch.setattr(Tensor, name, read)
    for skip in (torch.tensor(True), torch.tensor(False)):
        apply_unless(optimizer, skip)


@pytest.mark.parametrize("build", [tiny_forecaster, tiny_lora])
def test_a_restored_optimizer_goes_on_bit_for_bit(build: Any) -> None:
    forecaster = build()
    optimizer = forecaster.optimizer(0.1, 1e-4)
    train(forecaster, optimizer, 3, windows())
    kept = everything(forecaster.module, optimizer)

    restored = build(seed=1)
    other = restored.optimizer(0.1, 1e-4)
    train(restored, other, 1, windows())
    restored.module.load_state_dict({name: kept[name] for name in restored.module.state_dict()})
    load_state_by_name(restored.module, other, {name: kept[name] for name in state_by_name(restored.module, other)})
    assert train(restored, other, 3, windows()) == train(forecaster, optimizer, 3, windows())
    assert equal_tensors(everything(restored.module, other), everything(forecaster.module, optimizer))


def test_loading_copies_so_that_the_source_stays() -> None:
    forecaster, other = tiny_forecaster(), tiny_forecaster()
    optimizer, loaded = forecaster.optimizer(0.1, 0.0), other.optimizer(0.1, 0.0)
    train(forecaster, optimizer, 2, windows())
    before = everything(forecaster.module, optimizer)
    load_state_by_name(other.module, loaded, state_by_name(forecaster.module, optimizer))
    train(other, loaded, 2, windows())
    assert equal_tensors(everything(forecaster.module, optimizer), before)


def test_the_names_are_those_of_the_trained_parameters() -> None:
    forecaster = tiny_forecaster(tune="head")
    state = state_by_name(forecaster.module, forecaster.optimizer(0.1, 0.0))
    assert {name.rpartition(".")[0] for name in state} == trained_parameters(forecaster).keys()
    assert {name.rpartition(".")[2] for name in state} == {"step", "exp_avg", "exp_avg_sq"}


def test_the_state_at_the_start_is_what_the_first_step_would_begin_with() -> None:
    ours, theirs = tiny_forecaster(), tiny_forecaster()
    optimizer = ours.optimizer(0.1, 0.0)
    emptied = theirs.optimizer(0.1, 0.0)
    load_state_by_name(theirs.module, emptied, {})
    assert state_by_name(theirs.module, emptied) == {}
    train(ours, optimizer, 1, windows())
    train(theirs, emptied, 1, windows())
    assert equal_tensors(everything(ours.module, optimizer), everything(theirs.module, emptied))


def test_a_state_of_other_parameters_is_refused_and_nothing_is_changed() -> None:
    full, head = tiny_forecaster(), tiny_forecaster(tune="head")
    optimizers = full.optimizer(0.1, 0.0), head.optimizer(0.1, 0.0)
    before = everything(head.module, optimizers[1])
    with pytest.raises(CheckpointError, match="are not trained here, such as patch_proj"):
        load_state_by_name(head.module, optimizers[1], state_by_name(full.module, optimizers[0]))
    with pytest.raises(CheckpointError, match="it lacks, such as patch_proj"):
        load_state_by_name(full.module, optimizers[0], state_by_name(head.module, optimizers[1]))
    assert equal_tensors(everything(head.module, optimizers[1]), before)


def test_a_state_by_index_goes_on_by_name() -> None:
    old, new = tiny_forecaster(), tiny_forecaster()
    upstream = dd_unit_scaling.AdamW(old.module.parameters(), lr=0.1, betas=(0.9, 0.95))
    train(old, upstream, 2, windows())
    by_index = {
        f"{index}.{key}": value
        for index, state in upstream.state_dict()["state"].items()
        for key, value in state.items()
    }
    new.module.load_state_dict(old.module.state_dict())
    optimizer = new.optimizer(0.1, 0.0)
    load_state_by_name(new.module, optimizer, from_indexes(new.module, by_index))
    assert equal_tensors(state_by_name(new.module, optimizer), state_by_name(old.module, upstream))
    _same_gradients(old, new)
    upstream.step()
    optimizer.step()
    _assert_close(new, old)


@pytest.mark.parametrize("name", ["999.exp_avg", "-1.exp_avg", "transformer.exp_avg"])
def test_an_index_without_a_parameter_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="belongs to none of the model's"):
        from_indexes(tiny_forecaster().module, {name: torch.zeros(())})


def test_sharded_parameters_keep_their_rates(one_rank: None) -> None:
    whole, sharded = tiny_forecaster(), sharded_forecaster()
    rates = [learning_rates(f.module, f.optimizer(0.1, 0.0)) for f in (whole, sharded)]
    assert rates[0] == rates[1]


def test_a_sharded_optimizer_skips_and_is_restored(one_rank: None) -> None:
    forecaster, restored = sharded_forecaster(), sharded_forecaster(seed=1)
    optimizer, other = forecaster.optimizer(0.1, 0.0), restored.optimizer(0.1, 0.0)
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


def test_a_state_of_whole_tensors_is_sharded_where_the_parameters_are(one_rank: None) -> None:
    whole, sharded = tiny_forecaster(), sharded_forecaster()
    optimizer, its_optimizer = whole.optimizer(0.1, 0.0), sharded.optimizer(0.1, 0.0)
    train(whole, optimizer, 2, windows())
    sharded.module.load_state_dict(_sharded_like(whole.module.state_dict(), sharded.module))
    load_state_by_name(sharded.module, its_optimizer, state_by_name(whole.module, optimizer))
    train(whole, optimizer, 1, windows())
    train(sharded, its_optimizer, 1, windows())
    state = state_by_name(sharded.module, its_optimizer)
    for name, value in state_by_name(whole.module, optimizer).items():
        found = state[name].full_tensor() if isinstance(state[name], dist.tensor.DTensor) else state[name]
        torch.testing.assert_close(found, value)


def _sharded_like(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    from torch.distributed.tensor import DTensor, distribute_tensor

    own = module.state_dict()
    return {
        name: distribute_tensor(value, own[name].device_mesh, own[name].placements)
        if isinstance(own[name], DTensor)
        else value
        for name, value in state.items()
    }
