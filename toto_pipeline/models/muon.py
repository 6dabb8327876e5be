"""Muon for the hidden matrices of a transformer, and AdamW for all else.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) steps along the nearest semi-orthogonal matrix of
the Nesterov momentum, which five Newton-Schulz iterations come close enough to:

    B <- lerp(B, G, 1 - 0.95)
    W <- (1 - lr * weight_decay) * W - lr * sqrt(max(1, out / in)) * orthogonalized(lerp(G, B, 0.95))

An orthogonalized step moves the output of a layer alike at any width, so of u-muP's scales only that of the depth is
left in its rate; `dd_unit_scaling.NorMuon` does the same.

Why not torch.optim.Muon: it iterates in bfloat16 on any device, which a CPU without matrix instructions for it computes
more than ten times slower than float32, takes the matrices one by one, and knows no flag for a step to be skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from dd_unit_scaling.optim import lr_scale_for_depth
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from toto_pipeline.models.optimizer import adamw, flagged, merge_groups

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7
LARGEST_STACK = 1 << 24
"""At most so many numbers are orthogonalized as one stack, so that large models need little memory for it."""


def muon_beside_adamw(
    module: nn.Module, learning_rate: float, weight_decay: float, muon_learning_rate: float
) -> MuonBesideAdamW:
    """Muon at `muon_learning_rate` for the `hidden_matrices` of a unit-scaled module, AdamW for all else it trains.

    Raises:
        ValueError: no hidden matrix is trained.
    """
    matrices = hidden_matrices(module)
    muon = Muon(_groups(matrices.values(), muon_learning_rate, weight_decay))
    return MuonBesideAdamW(muon, adamw(module, learning_rate, weight_decay, leave=list(matrices.values())))


def hidden_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained matrices of the transformer's layers, by name: attention and feed-forward, in and out.

    Low-rank adapters are none: their product is what is a matrix of the layer.
    """
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2
        and parameter.requires_grad
        and name.startswith("transformer.layers.")
        and ".parametrizations." not in name
    }


def _groups(matrices: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group for each matrix. As in `adamw`, the decay is what a step takes off at the peak of the rate."""
    rates = [(matrix, learning_rate * lr_scale_for_depth(matrix)) for matrix in matrices]
    return [
        {"params": [matrix], "lr": rate, "initial_lr": rate, "weight_decay": weight_decay / rate}
        for matrix, rate in rates
    ]


class Muon(Optimizer):
    """Muon over matrices (out, in), in groups with their own `lr` and `weight_decay`.

    Matrices of one shape are orthogonalized as a stack, in float32 on a CPU and in bfloat16 on a GPU. Of sharded ones
    (FSDP2) each rank gathers every matrix, orthogonalizes it and keeps its own part of the outcome: the momentum stays
    sharded, the arithmetic is not shared out.

    Like a fused optimizer it reads `found_inf`, where that is set, on the device: where it is not 0, a step changes
    nothing. So its groups are marked `fused`.
    """

    def __init__(self, params: Iterable[dict[str, Any]]) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, "fused": True})
        merge_groups(self)
        for group in self.param_groups:
            for matrix in group["params"]:
                self._momentum(matrix)  # from the start, so that a sharded checkpoint can be loaded into it

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loss is computed outside"  # noqa: S101
        for group in self.param_groups:
            for stack in _stacks(matrix for matrix in group["params"] if matrix.grad is not None):
                self._step(stack, group["lr"], group["weight_decay"])

    def _step(self, stack: list[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        gradients = [_gradient(matrix) for matrix in stack]
        momenta = [self._momentum(matrix) for matrix in stack]
        averages = [old.lerp(new, 1 - MOMENTUM) for old, new in zip(momenta, gradients, strict=True)]
        ahead = [new.lerp(average, MOMENTUM) for new, average in zip(gradients, averages, strict=True)]
        updates = orthogonalized(torch.stack([_whole(each) for each in ahead]))
        rate = learning_rate * math.sqrt(max(1.0, stack[0].shape[0] / stack[0].shape[1]))
        for matrix, momentum, average, update in zip(stack, momenta, averages, updates, strict=True):
            self._replace(momentum, average)
            kept = matrix * (1 - learning_rate * weight_decay)
            self._replace(matrix, kept - rate * _own_part(update, matrix))

    def _replace(self, old: Tensor, new: Tensor) -> None:
        found_inf = getattr(self, "found_inf", None)
        old.copy_(new if found_inf is None else torch.where(found_inf == 0, new, old))

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        state: dict[str, Tensor] = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix, memory_format=torch.preserve_format)
        return state["momentum"]


class MuonBesideAdamW(Optimizer):
    """Two optimizers as one: their groups and the state of all their parameters are its own, and they step together."""

    def __init__(self, muon: Muon, adamw: Optimizer) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.parts = (muon, adamw)
        for part in self.parts:
            self.state.update(part.state)
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loss is computed outside"  # noqa: S101
        found_inf = getattr(self, "found_inf", None)
        for part in self.parts:
            if found_inf is None:
                part.step()
            else:
                with flagged(part, found_inf):
                    part.step()


def orthogonalized(matrices_KMN: Tensor) -> Tensor:
    """U S V^T of each matrix U D V^T of a stack, with all singular values in S near 1 (0.68 to 1.21).

    Those that are below 1.4e-3 of the norm come out smaller. A matrix of zeros stays one.
    """
    tall = matrices_KMN.shape[1] > matrices_KMN.shape[2]
    x = matrices_KMN.to(torch.bfloat16 if matrices_KMN.is_cuda else torch.float32)
    if tall:  # so that the products are of the shorter side
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_KMN.dtype)


def _stacks(matrices: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Matrices of one shape and device together, at most `LARGEST_STACK` numbers of them."""
    alike: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = {}
    for matrix in matrices:
        alike.setdefault((matrix.shape, matrix.device), []).append(matrix)
    for together in alike.values():
        most = max(1, LARGEST_STACK // max(1, together[0].numel()))
        for first in range(0, len(together), most):
            yield together[first : first + most]


def _gradient(matrix: nn.Parameter) -> Tensor:
    assert matrix.grad is not None  # noqa: S101 - `step` takes no other
    return matrix.grad


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _own_part(update: Tensor, matrix: nn.Parameter) -> Tensor:
    """What this rank holds of an update that all ranks have computed alike."""
    if not isinstance(matrix, DTensor):
        return update
    return distribute_tensor(update, matrix.device_mesh, matrix.placements, src_data_rank=None)
