"""Low-rank adapters (Hu et al., LoRA, 2021) for unit-scaled linear layers.

The effective weight of an adapted layer is

    W + (alpha / rank) * B @ A / sqrt(rank)        B: (out, rank), zero at first    A: (rank, in), normal

and is what the layer's own scaled forward multiplies by. It is a parametrization of `weight`, so nothing of the layer
is written again here, and the merged weight is by construction the one that was trained. An adapter beside the layer
would have to repeat the layer's scale in its forward and undo it in the merge.

Why these scales. A unit-scaled layer computes W x / sqrt(in) with W ~ N(0, 1), and u-muP moves W by
lr / sqrt(in) a step, which moves the output by about lr. The adapter is two such layers in a row, x -> A -> B: the
1 / sqrt(in) of the first is the factor that the layer multiplies by anyway, the 1 / sqrt(rank) of the second is
written out. With A ~ N(0, 1) what comes between them has unit scale, and B, which u-muP moves by lr / sqrt(rank) a
step, moves the output by about (alpha / rank) * lr. So `alpha / rank` is how far the adapters go in a step compared
with full tuning at the same learning rate, at any width and any rank. The rates of A and B, lr / sqrt(in) and
lr / sqrt(rank), also stand to each other as LoRA+ (Hayou et al., 2024) says they must.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import dd_unit_scaling
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from toto_pipeline.errors import ConfigError


class LowRank(nn.Module):
    """A weight of shape (out, in) with a low-rank update: the parametrization of an adapted layer."""

    def __init__(self, weight: Tensor, *, rank: int, alpha: float) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        depth = getattr(weight, "mup_scaling_depth", None)
        self.A = dd_unit_scaling.Parameter(weight.new_empty(rank, in_features).normal_(), "weight", depth)
        self.B = dd_unit_scaling.Parameter(weight.new_zeros(out_features, rank), "weight", depth)
        self.factor = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        # In full precision also under autocast, so that what is trained is what is merged.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.factor * unit_scaled_matmul(self.B, self.A)


def unit_scaled_matmul(left: Tensor, right: Tensor) -> Tensor:
    """(m, k) times (k, n), with the scales of unit scaling: k**-0.5 on the product, n**-0.5 and m**-0.5 on gradients.

    As `unit_scaling.functional.matmul` without a constraint, in operations that torch.compile can trace.
    """
    left_grad_scale, right_grad_scale = right.shape[1] ** -0.5, left.shape[0] ** -0.5
    product = dd_unit_scaling.scale_bwd(left, left_grad_scale) @ dd_unit_scaling.scale_bwd(right, right_grad_scale)
    scaled: Tensor = dd_unit_scaling.scale_fwd(product, left.shape[1] ** -0.5)
    return scaled


def add_adapters(module: nn.Module, targets: Sequence[str], *, rank: int, alpha: float) -> None:
    """Give every linear layer of `module` whose last name is in `targets` an adapter. Its weight is no longer trained.

    Raises:
        ConfigError: a target names no linear layer.
    """
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    known = {_last_part(name) for name in linear}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise ConfigError(
            f"training.lora.targets: no linear layer is called {', '.join(map(repr, unknown))}. "
            f"Expected: some of {', '.join(sorted(known))}. What to do: correct the names."
        )
    for name, layer in linear.items():
        if _last_part(name) in targets:
            layer.weight.requires_grad_(False)
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank=rank, alpha=alpha))


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of the module without adapters that computes the same; the module's own where it has none."""
    state: dict[str, Tensor] = {
        name: value for name, value in module.state_dict().items() if ".parametrizations.weight." not in name
    }
    for name, layer in _adapted(module):
        state[f"{name}.weight"] = layer.weight.detach()
    return state


def is_adapted(module: nn.Module) -> bool:
    """Whether any layer of the module has an adapter."""
    return any(True for _ in _adapted(module))


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
            yield name, layer


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
