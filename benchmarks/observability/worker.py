"""One training process of the benchmark: does an epoch whenever it is told to, and says what that took.

    python -m benchmarks.observability.worker LOGGER FOLDER STEPS

reads lines from standard input: `epoch`, or `end`; answers each with a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.observability.loggers import LOGGERS

TIMES_FILE = "times"
"""When each step was logged: Unix seconds as float64, in memory that outlives the process."""
_MOST_STEPS = 100_000


class Workload:
    """A two-layer transformer that learns to repeat a wave."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 128), torch.nn.TransformerEncoder(layer, 2), torch.nn.Linear(128, 8)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.x = torch.randn(16, 64, 8)
        self.y = self.x.roll(1, dims=1)

    def step(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        predicted = self.model(self.x)
        loss = torch.nn.functional.mse_loss(predicted, self.y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach(), norm, predicted.detach()


class Worker:
    def __init__(self, name: str, folder: Path, steps: int) -> None:
        torch.set_num_threads(1)
        self.work = Workload()
        self.steps = steps
        self.done = 0
        self.calls: list[float] = []
        for _ in range(10):
            self.work.step()
        self.times = np.memmap(folder / TIMES_FILE, dtype=np.float64, mode="w+", shape=(_MOST_STEPS,))
        self.process = psutil.Process()
        self.before = self.process.memory_info().rss
        self.logger = LOGGERS[name](folder)

    def epoch(self) -> dict[str, Any]:
        inside = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.steps):
            started = time.perf_counter()
            loss, norm, predicted = self.work.step()
            self.done += 1
            values = {
                "loss": loss,
                "gradient_norm": norm,
                "lr": 1e-3,
                "seconds": time.perf_counter() - started,
                "scale": 1.0,
            }
            called = time.perf_counter()
            self.logger.step(self.done, values)
            self.calls.append(time.perf_counter() - called)
            inside += self.calls[-1]
            self.times[self.done - 1] = time.time()
        called = time.perf_counter()
        weights = dict(self.work.model.named_parameters())
        self.logger.epoch(self.done, {"validation_loss": loss}, weights, predicted[0, :, 0], self.work.y[0, :, 0])
        inside += time.perf_counter() - called
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall": wall, "cpu": cpu, "inside": inside, "step": self.done, "time": time.time()}

    def end(self) -> dict[str, Any]:
        added = self.process.memory_info().rss - self.before
        self.logger.close()
        ordered = sorted(self.calls)
        return {"memory": added, "median": ordered[len(ordered) // 2], "p99": ordered[int(len(ordered) * 0.99)]}


def main() -> None:
    name, folder, steps = sys.argv[1:]
    worker = Worker(name, Path(folder), int(steps))
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a logger prints is no answer
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        word = line.strip()
        print(json.dumps(worker.epoch() if word == "epoch" else worker.end()), file=answers, flush=True)
        if word == "end":
            break


if __name__ == "__main__":
    main()
