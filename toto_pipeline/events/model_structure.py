"""What a model is made of, as data: enough to draw its graph without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def modules(module: torch.nn.Module) -> list[dict[str, Any]]:
    """The modules in the order in which they are registered: name (dotted), kind, parameters of its own, trained.

    `parameters` gives each one's shape by name; `trained` counts the numbers among them that are trained.
    """
    return [
        {
            "name": name,
            "kind": type(part).__name__,
            "parameters": {key: list(value.shape) for key, value in part.named_parameters(recurse=False)},
            "trained": sum(value.numel() for value in part.parameters(recurse=False) if value.requires_grad),
        }
        for name, part in module.named_modules()
        if name
    ]
