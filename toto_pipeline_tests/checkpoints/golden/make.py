"""Writes `schema_2/`, a tiny checkpoint of today's schema, next to this file: `python make.py [FOLDER]`.

Run it once for a new schema, into a new folder. What is there already shows what older programs wrote, and stays.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch

from toto_pipeline.checkpoints.manager import CheckpointManager, State
from toto_pipeline.settings.training import CheckpointSettings

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def golden_state() -> State:
    """The same on every machine: whole numbers and fractions of two, of every kind of tensor."""
    numbers = torch.arange(-6, 6).reshape(3, 4) / 4
    model = {f"layer.{str(dtype).removeprefix('torch.')}": numbers.abs().to(dtype) for dtype in DTYPES}
    model |= {"scalar": torch.tensor(0.1), "empty": torch.empty(0, 2)}
    optimizer = {"layer.exp_avg": numbers, "layer.step": torch.tensor(8.0)}
    tensors = {"model": model, "optimizer": optimizer, "random": {"cpu": torch.arange(16, dtype=torch.uint8)}}
    metrics = {"validation_loss": 0.1 + 0.2, "validation_mase": float("inf")}
    return State(8, 2, metrics, tensors, {"stopped": None, "rates": [0.025, 0.1], "note": "caf\u00e9"})


def make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as run:
        settings = CheckpointSettings(reserve_gib=0)
        with CheckpointManager(Path(run), settings, clock=lambda: 1_795_583_028.5) as manager:
            name = Path(manager.save(golden_state(), wait=True)).name
            shutil.copytree(manager.folder / name, folder / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "schema_2")
