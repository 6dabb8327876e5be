"""On a GPU: Toto 2.0 at the sizes 22m and 313m in bf16, eager and compiled, and the exactness of a resumed run.

windows/s and model FLOPs utilisation are taken over the last epoch, when kernels are warm. Utilisation is against the
dense bf16 peak of the card, where that is known. The head counts and widths are the released ones; how many of the
layers attend across variates is not published with the sizes, so a group of all but one here is a guess.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "22m": {"d_model": 512, "num_heads": 8, "num_layers": 6, "layer_group_size": 6},
    "313m": {"d_model": 1024, "num_heads": 16, "num_layers": 24, "layer_group_size": 6},
}
PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}


def run(quick: bool) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return [_result("GPU benchmarks: PyTorch sees no GPU here, nothing measured", 0, "")]
    results: list[dict[str, Any]] = []
    for size in ["22m"] if quick else SIZES:
        for compiled in (False, True):
            results += _speed(size, compiled, steps=30 if quick else 100)
    return [*results, _resume_is_exact()]


def _speed(size: str, compiled: bool, steps: int) -> list[dict[str, Any]]:
    from benchmarks.sample_run import SampleRun
    from toto_pipeline.events.log import read_events
    from toto_pipeline.models.flops import flops_per_window

    with tempfile.TemporaryDirectory() as folder:
        sample = SampleRun(
            Path(folder),
            device="cuda",
            model={"patch_size": 32, **SIZES[size]},
            precision="bf16",
            compile=compiled,
            batch_size=64,
            epochs=3,
            steps_per_epoch=steps,
            learning_rate=0.01,
        )
        trainer = sample.trainer("run")
        trainer.fit()
        events = list(read_events(trainer.run_folder))
    speed = [e for e in events if e["type"] == "epoch"][-1]["windows_per_second"]
    last = [e for e in events if e["type"] == "step"][-steps:]
    seconds = sum(e["seconds"] for e in last)
    blocked = [e["blocked_seconds"] for e in events if e["type"] == "checkpoint_saved"][-1]
    length = trainer.shape.length(sample.data.manifest.context_length, sample.data.manifest.horizon)
    flops = flops_per_window(trainer.forecaster.module.config, length, 1)
    name = f"{size} bf16 {'compiled' if compiled else 'eager'}"
    peak = next((p for card, p in PEAK_BF16_FLOPS.items() if card in torch.cuda.get_device_name()), None)
    results = [
        _result(f"{name}: speed", speed, "windows/s"),
        _result(f"{name}: wait for data", sum(e["data_seconds"] for e in last) / seconds, "share"),
        _result(f"{name}: training thread blocked by a save", blocked, "s"),
    ]
    return results if peak is None else [*results, _result(f"{name}: MFU", speed * flops / peak, "share")]


def _resume_is_exact() -> dict[str, Any]:
    """Stop a deterministic run in mid-epoch, go on, and compare every weight with a run that was not stopped."""
    from benchmarks.sample_run import SampleRun

    with tempfile.TemporaryDirectory() as folder:
        sample = SampleRun(
            Path(folder), device="cuda", deterministic=True, precision="bf16", epochs=2, steps_per_epoch=20
        )
        torch.use_deterministic_algorithms(True)
        whole = sample.trainer("whole")
        whole.fit()
        stopped = sample.trainer("stopped")
        stopped.told_to_stop = lambda: stopped.progress.step >= 27
        stopped.fit()
        resumed = sample.trainer("stopped")
        resumed.fit()
        torch.use_deterministic_algorithms(False)
    pairs = zip(whole.forecaster.module.parameters(), resumed.forecaster.module.parameters(), strict=True)
    largest = max((one - other).abs().max().item() for one, other in pairs)
    return {
        **_result("largest difference after a resume, deterministic", largest, ""),
        "limit": "= 0",
        "ok": largest == 0,
    }


def _result(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "limit": None, "ok": None}
