"""The bundled sample as training data, and trainers on it: what several benchmarks train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from toto_pipeline.data.snapshot import take_snapshot
from toto_pipeline.data.training_data import prepare_training_data
from toto_pipeline.events.log import EventWriter, read_events
from toto_pipeline.home import Home
from toto_pipeline.models import toto2
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline.settings.training import TrainingSettings
from toto_pipeline.training.trainer import Trainer
from toto_pipeline.training.windows import Batch, TrainingWindows, training_batches


class SampleRun:
    """Training data prepared once below `folder`; `settings` are the preset's with `changes`."""

    def __init__(self, folder: Path, *, device: str = "cpu", **changes: Any) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.settings = TrainingSettings(**changes)
        self._home = Home(folder / "home").prepare()
        snapshot = take_snapshot(DataSettings(), self._home)
        self.data = prepare_training_data(snapshot, PreparationSettings(), self._home)
        self._runs: list[Path] = []

    def build(self) -> toto2.Toto2Forecaster:
        torch.manual_seed(self.settings.seed)
        return toto2.build_for_training(self.settings, None)

    def trainer(self, name: str) -> Trainer:
        run_folder = self._home.run(name)
        self._runs.append(run_folder)
        trainer = Trainer(
            run_folder, self.settings, self.data, self.build, log=EventWriter(run_folder), device=self.device
        )
        trainer.resume()
        return trainer

    def batches(self) -> Iterator[Batch]:
        settings = self.settings
        windows = TrainingWindows(
            self.data,
            self.build().windows,
            batch_size=settings.batch_size,
            steps_per_epoch=settings.steps_per_epoch,
            epochs=settings.epochs,
            seed=settings.seed,
        )
        return training_batches(windows, first_step=0, workers=settings.loader_workers)

    def data_wait_shares(self) -> list[float]:
        """Of each finished run, the share of its steps' time that went into waiting for batches."""
        shares = []
        for run_folder in self._runs:
            steps = [event for event in read_events(run_folder) if event["type"] == "step"]
            shares.append(sum(s["data_seconds"] for s in steps) / sum(s["seconds"] for s in steps))
        return shares
