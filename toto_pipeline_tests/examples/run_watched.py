"""Runs a script and tells what it computed: `python -m ... SCRIPT OUTPUT`.

The losses are those that gradients are computed of, whatever framework asks for them.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch


def main(script: str, output: str) -> None:
    losses: list[float] = []
    backward = torch.Tensor.backward

    def watched(self: torch.Tensor, *arguments: Any, **options: Any) -> None:
        losses.append(float(self))
        backward(self, *arguments, **options)

    torch.Tensor.backward = watched  # type: ignore[method-assign, assignment]
    found = runpy.run_path(script, run_name="__main__")
    Path(output).write_text(json.dumps({"losses": losses, "validation": _validation(found)}))


def _validation(found: dict[str, Any]) -> float:
    """The last validation loss, where each of the scripts has it."""
    if "validation_loss" in found:
        return float(found["validation_loss"])
    trainer = found["trainer"]
    if hasattr(trainer, "callback_metrics"):
        return float(trainer.callback_metrics["val_loss"])
    return float([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
