"""The back-test beside what a person writes who scores the upstream library directly; and its memory on many points.

Directly: fev cuts the windows of all series in one task, `Toto2Model.forecast` is called for one series at a time with
the inputs that upstream's own documentation prepares, and fev scores the forecasts. The back-test does the same with
the same weights, from the evaluation file to fev's metrics, and the many measures of its report besides. Both run in
turns in one process on the bundled sample. Their metrics must agree, or nothing is compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIMIT_RATIO = 1.0
BATCH_SIZES = (1, 8, 64)


def run(quick: bool) -> list[dict[str, Any]]:
    from benchmarks.sample_run import SampleRun

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        sample = SampleRun(Path(folder), device=device)
        forecaster = sample.build()
        forecaster.module.to(device).eval()
        cache = Path(folder) / "cache"
        windows = len(sample.data.ids) * sample.data.manifest.test_windows
        _backtest(forecaster, sample.data, 64, cache)  # imports and first calls
        rounds = [_round(forecaster, sample.data, cache) for _ in range(1 if quick else 3)]
    results = [_result("calling upstream directly", windows / statistics.median(r["direct"] for r in rounds))]
    for size in BATCH_SIZES:
        seconds = statistics.median(each[size] for each in rounds)
        ratio = statistics.median(each["direct"] / each[size] for each in rounds)
        results.append(_result(f"back-test, batches of {size}", windows / seconds))
        results.append(_ratio(f"windows/s of the back-test / directly, batches of {size}", ratio))
    return results


def _round(forecaster: Any, data: Any, cache: Path) -> dict[Any, float]:
    """Seconds of each way."""
    started = time.perf_counter()
    expected = _directly(forecaster.module, data, cache)
    seconds: dict[Any, float] = {"direct": time.perf_counter() - started}
    for size in BATCH_SIZES:
        started = time.perf_counter()
        found = _backtest(forecaster, data, size, cache)
        seconds[size] = time.perf_counter() - started
        for metric, value in expected.items():
            assert abs(found[metric] / value - 1) < 1e-3, (metric, found[metric], value)
    return seconds


def _backtest(forecaster: Any, data: Any, batch_size: int, cache: Path) -> dict[str, float]:
    from toto_pipeline.evaluation.backtest import backtest
    from toto_pipeline.settings.promotion import EvaluationSettings

    settings = EvaluationSettings(batch_size=batch_size, pictures=0, worst_pictures=0)
    return dict(backtest({"candidate": forecaster}, data, settings, cache=cache).aggregates["candidate"])


@torch.no_grad()
def _directly(module: Any, data: Any, cache: Path) -> dict[str, float]:
    import datasets

    from toto_pipeline.evaluation.metrics import METRICS
    from toto_pipeline.evaluation.windows import open_task
    from toto_pipeline.models.forecaster import QUANTILES

    device = next(module.parameters()).device
    context = data.manifest.context_length
    predictions = []
    with open_task(data, cache) as task:
        for window in task.iter_windows(num_proc=0):
            past, _ = window.get_input_data()
            answers = []
            for row in past:
                values = torch.as_tensor(np.array(row["target"][-context:], dtype=np.float32))[None, None].to(device)
                observed = ~values.isnan()
                inputs = {
                    "target": values.nan_to_num(0.0),
                    "target_mask": observed,
                    "series_ids": torch.zeros((1, 1), dtype=torch.long, device=device),
                }
                answers.append(module.forecast(inputs, task.horizon)[:, 0, 0].float().cpu().numpy())
            levels = {str(level): [one[place] for one in answers] for place, level in enumerate(QUANTILES)}
            columns = datasets.Dataset.from_dict({"predictions": levels["0.5"], **levels})
            predictions.append(datasets.DatasetDict({"target": columns}))
        summary = task.evaluation_summary(predictions, model_name="direct")
    return {metric: float(summary[metric]) for metric in METRICS}


def _result(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "windows/s", "limit": None, "ok": None}


def _ratio(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "ratio", "limit": f">= {LIMIT_RATIO}", "ok": value >= LIMIT_RATIO}
