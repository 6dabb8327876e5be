"""The optimizers: u-muP's learning rates for unit-scaled models, fused steps, and a state that is kept by name.

u-muP gives every parameter a learning rate of its own, a multiple of the base rate that follows from its shape and
depth. So a schedule multiplies: each group keeps its rate as `initial_lr`, and what a step uses is that times a factor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dd_unit_scaling
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from toto_pipeline.errors import CheckpointError

BETAS = (0.9, 0.95)


def adamw(
    module: nn.Module, learning_rate: float, weight_decay: float, *, leave: Sequence[nn.Parameter] = ()
) -> Optimizer:
    """AdamW over the trainable parameters of a unit-scaled module, but for those to `leave`.

    `weight_decay` is what a step takes off the weights at the peak of the learning rate, whatever the rate is.
    """
    left = {id(parameter) for parameter in leave}
    trained = [each for each in module.parameters() if each.requires_grad and id(each) not in left]
    optimizer: Optimizer = dd_unit_scaling.AdamW(
        trained, lr=learning_rate, betas=BETAS, weight_decay=weight_decay, fused=True
    )
    merge_groups(optimizer)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    _begin(optimizer)
    return optimizer


def plain_adamw(
    module: nn.Module, learning_rate: float, weight_decay: float, *, betas: tuple[float, float], eps: float = 1e-8
) -> Optimizer:
    """AdamW over the trainable parameters of a module without unit scaling, all at one learning rate.

    `weight_decay` means what it means in `adamw`; PyTorch multiplies its own by the rate.
    """
    optimizer = torch.optim.AdamW(
        [each for each in module.parameters() if each.requires_grad],
        lr=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay / learning_rate,
        fused=True,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    _begin(optimizer)
    return optimizer


def merge_groups(optimizer: Optimizer) -> None:
    """Put parameters with the same options into one group: what a group has in common is computed at once."""
    merged: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for group in optimizer.param_groups:
        options = tuple(sorted((name, value) for name, value in group.items() if name != "params"))
        if options in merged:
            merged[options]["params"].extend(group["params"])
        else:
            merged[options] = group
    optimizer.param_groups[:] = merged.values()


def _begin(optimizer: Optimizer) -> None:
    """Give each parameter the state that fused AdamW's first step would give it.

    So the state has all its tensors from the start, and a sharded checkpoint can be loaded into them.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Give each group `factor` times the learning rate it started with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def apply_unless(optimizer: Optimizer, skip: Tensor) -> None:
    """Take the step, unless `skip` (a bool of no dimension) is true; then nothing changes, not even the step count.

    A fused optimizer reads `skip` where it is computed, so the device is not waited for. Others, and those of sharded
    parameters, whose kernels take no flag beside them, are asked on the host.
    """
    if _takes_flag(optimizer):
        with flagged(optimizer, skip):
            optimizer.step()
    elif not skip.item():
        optimizer.step()


def _takes_flag(optimizer: Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups) and not any(
        isinstance(parameter, DTensor) for group in optimizer.param_groups for parameter in group["params"]
    )


@contextlib.contextmanager
def flagged(optimizer: Optimizer, skip: Tensor) -> Iterator[None]:
    """The attributes by which torch.amp.GradScaler tells a fused optimizer that gradients are not finite."""
    optimizer.grad_scale, optimizer.found_inf = None, skip.float()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def state_by_name(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's own tensors as `<parameter name>.<state name>`."""
    return {
        f"{name}.{key}": value
        for name, parameter in _optimized(module, optimizer).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_by_name(module: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put copies of what `state_by_name` gave into the optimizer, on the devices and in the shards of its parameters.

    Without any tensors the optimizer begins anew.

    Raises:
        CheckpointError: the tensors are those of other parameters than this optimizer trains, or of another optimizer.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        states.setdefault(name, {})[key] = value
    parameters = _optimized(module, optimizer)
    if states and states.keys() != parameters.keys():
        raise CheckpointError(_mismatch(set(states), set(parameters)))
    for name, state in states.items():
        begun = optimizer.state.get(parameters[name], {})
        if begun and begun.keys() != state.keys():
            raise CheckpointError(_other_optimizer(name, sorted(state), sorted(begun)))
    fused = all(group.get("fused") for group in optimizer.param_groups)
    optimizer.state.clear()
    for name, state in states.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.detach().clone() if key == "step" and not fused else _placed(value, parameter)
            for key, value in state.items()
        }


def from_indexes(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an optimizer by name, from `<index of the parameter in module.parameters()>.<state name>`.

    Raises:
        CheckpointError: there is no parameter with such an index.
    """
    names = [name for name, _ in module.named_parameters()]
    by_name = {}
    for full_name, value in tensors.items():
        index, _, key = full_name.partition(".")
        if not (index.isdecimal() and int(index) < len(names)):
            raise CheckpointError(
                f"The optimizer state {full_name!r} belongs to none of the model's {len(names)} parameters. Expected: "
                "a checkpoint of this model. What to do: start a new run."
            )
        by_name[f"{names[int(index)]}.{key}"] = value
    return by_name


@dataclass(frozen=True)
class Scale:
    """What u-muP has to know of a parameter to give it its learning rate."""

    mup_type: str
    mup_scaling_depth: int | None
    fan_in: int


def remember_scales(module: nn.Module) -> dict[str, Scale]:
    """The scale of each unit-scaled parameter by name, to be put back when sharding has replaced the parameters."""
    dd_unit_scaling.cache_fan_values(module.named_parameters())
    kept = {name: dd_unit_scaling.get_cached_metadata(name) for name, _ in module.named_parameters()}
    return {
        name: Scale(values["mup_type"], values["mup_scaling_depth"], values["fan_in"])
        for name, values in kept.items()
        if values
    }


def restore_scales(module: nn.Module, scales: Mapping[str, Scale]) -> None:
    """Mark the parameters with what `remember_scales` gave; the optimizer reads it there."""
    parameters = dict(module.named_parameters())
    for name, scale in scales.items():
        marked: Any = parameters[name]
        marked.mup_type = scale.mup_type
        marked.mup_scaling_depth = scale.mup_scaling_depth
        marked._original_fan_in = scale.fan_in  # a shard's own shape says nothing about the whole


def _optimized(module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer trains, by their names in the module and in the module's order."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in module.named_parameters() if id(parameter) in trained}


def _placed(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy of a state tensor on the device of its parameter, sharded as that is."""
    if isinstance(value, DTensor) or not isinstance(parameter, DTensor) or value.dim() == 0:
        return value.detach().to(parameter.device, copy=True)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _mismatch(found: set[str], expected: set[str]) -> str:
    unknown, missing = sorted(found - expected), sorted(expected - found)
    differences = [
        f"it has {len(names)} that {what}, such as {names[0]}"
        for names, what in ((unknown, "are not trained here"), (missing, "it lacks"))
        if names
    ]
    return (
        f"The optimizer state does not fit the parameters that are trained: {'; '.join(differences)}. Expected: a "
        "checkpoint of the same model, tuned in the same way. What to do: start a new run."
    )


def _other_optimizer(name: str, found: list[str], expected: list[str]) -> str:
    return (
        f"The optimizer state holds {', '.join(found)} of {name}, where the optimizer keeps {', '.join(expected)}. "
        "Expected: a checkpoint that was trained with the same training.optimizer. What to do: start a new run."
    )
