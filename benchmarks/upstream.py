"""Windows a second beside Toto 1.0's own fine-tuning loop, and how long each of the two waits for its data.

Toto 1.0 publishes one: `toto.scripts.finetune_toto` of `toto-ts`, which is Lightning's Trainer over a data module that
cuts all its windows when it is set up. It runs here unmodified, with the settings that are published with it, except
that it shows no progress bar, validates nothing and saves nothing between the measured steps. Its model has the depth,
width, patch, heads and, to within one percent, the parameters of ours. Both read equally many steps a window of the
bundled sample in batches of the same size, on one thread, in turns within one process. They are two models, so a
ratio is what a user of each waits, not what the loops alone cost.

`toto-ts` is no dependency of the project, because it pins old versions of torch and numpy. It is looked for among the
installed packages and in the folder that TOTO_TS_PATH names.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

PATH_VARIABLE = "TOTO_TS_PATH"
INSTALL = (
    "pip install --no-deps --target FOLDER toto-ts==0.2.0 rotary-embedding-torch beartype, then set "
    f"{PATH_VARIABLE}=FOLDER"
)
WARM_UP_STEPS = 10
FEED_FORWARD = 194
"""Width of upstream's feed-forward layers that gives its model as many parameters as the preset `sample` has."""


def run(quick: bool) -> list[dict[str, Any]]:
    finetune = _upstream()
    if isinstance(finetune, str):
        return [_result(f"toto-ts' own fine-tuning loop: not measured, {finetune}. To measure it: {INSTALL}", 0, "")]
    torch.set_num_threads(1)
    rounds, steps = (2, 30) if quick else (7, 100)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _compare(finetune, Path(folder), rounds, steps)


def _upstream() -> Any:
    """Upstream's `finetune_toto`, or why there is none."""
    folder = os.environ.get(PATH_VARIABLE)
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last, so that of a package that stands in both places the project's is taken
    try:
        return importlib.import_module("toto.scripts.finetune_toto")
    except ModuleNotFoundError as error:
        return f"there is no module {error.name}"


def _compare(finetune: Any, folder: Path, rounds: int, steps: int) -> list[dict[str, Any]]:
    from benchmarks.sample_run import SampleRun

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sample = SampleRun(folder, device=device, epochs=1, steps_per_epoch=WARM_UP_STEPS + steps, validation_batches=1)
    upstream = _Upstream(finetune, sample)
    pairs = []
    for number in range(rounds):
        trainer = sample.trainer(f"run-{number}")
        trainer.fit()
        pairs.append((_our_steps(trainer.run_folder), upstream.steps()))
    ours, theirs = zip(*pairs, strict=True)
    parameters = [_count(module) for module in (trainer.forecaster.module, upstream.module())]
    batch_size = sample.settings.batch_size
    ratios = [sum(s for s, _ in their) / sum(s for s, _ in our) for our, their in pairs]
    return [
        _result("this trainer, Toto 2.0", batch_size / _median_step(ours), "windows/s"),
        _result("toto-ts' trainer, Toto 1.0", batch_size / _median_step(theirs), "windows/s"),
        _result("windows/s of this trainer / of toto-ts' trainer", statistics.median(ratios), "ratio"),
        _result("lowest such ratio of a round", min(ratios), "ratio"),
        _result("parameters of Toto 1.0 here / of Toto 2.0", parameters[1] / parameters[0], "ratio"),
        _result("this trainer: share of a step that waits for data", _wait(ours), "share"),
        _result("toto-ts' trainer: share of a step that waits for data", _wait(theirs), "share"),
        _result("toto-ts' trainer: cutting its windows before the first step", upstream.setup_seconds, "s"),
    ]


Steps = list[tuple[float, float]]
"""Of each step, its seconds and how many of them it waited for its batch."""


def _our_steps(run_folder: Path) -> Steps:
    from toto_pipeline.events.log import read_events

    steps = [event for event in read_events(run_folder) if event["type"] == "step"]
    return [(step["seconds"], step["data_seconds"]) for step in steps[WARM_UP_STEPS:]]


class _Upstream:
    """Upstream's loop on the data of a sample run; each `steps` is a new training of a new model."""

    def __init__(self, finetune: Any, sample: Any) -> None:
        self._finetune = finetune
        self._settings = sample.settings
        self._folder = sample.folder
        manifest = sample.data.manifest
        window = sample.build().windows.length(manifest.context_length, manifest.horizon)
        data = {
            "max_context_length": window,
            "prediction_horizon": manifest.horizon,
            "train_batch_size": self._settings.batch_size,
            "num_train_samples": 100,
            "num_workers": 0,
        }
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        rows = _rows(sample.data)
        started = time.perf_counter()
        patch_size = self._settings.model.patch_size
        self._data = finetune.get_datamodule({"data": data}, patch_size, rows, setup=True)
        self.setup_seconds = time.perf_counter() - started

    def steps(self) -> Steps:
        loader = _TimedLoader(self._data.train_dataloader())
        untimed, self._data.train_dataloader = self._data.train_dataloader, lambda: loader
        config = {
            "trainer": {
                "max_steps": self._settings.steps_per_epoch + 1,  # a step ends when the next one asks for its batch
                "val_check_interval": self._settings.steps_per_epoch + 2,
                "log_every_n_steps": 10,
                "refresh_rate": 0,
            },
            "logging": {"save_dir": str(self._folder / "upstream")},
        }
        with contextlib.redirect_stdout(io.StringIO()):  # Lightning prints what it trains
            self._finetune.train(self.module(), self._data, config)
        self._data.train_dataloader = untimed
        return loader.steps()[WARM_UP_STEPS:]

    def module(self) -> Any:
        """Toto 1.0 as released, but for its size."""
        model = self._settings.model
        toto = self._finetune.Toto(
            patch_size=model.patch_size,
            stride=model.patch_size,
            embed_dim=model.d_model,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            mlp_hidden_dim=FEED_FORWARD,
            dropout=0.0,
            spacewise_every_n_layers=model.layer_group_size,
            spacewise_first=False,
            scaler_cls="<class 'model.scaler.CausalPatchStdMeanScaler'>",
            output_distribution_classes=["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
            output_distribution_kwargs={"k_components": 24},
            use_memory_efficient_attention=False,  # that is xFormers' attention; this is PyTorch's
        )
        return self._finetune.TotoForFinetuning(pretrained_backbone=toto.model)


class _TimedLoader:
    """A data loader that notes when each batch was asked for and when it came."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._asked: list[float] = []
        self._came: list[float] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._asked.append(asked)
            self._came.append(time.perf_counter())
            yield batch

    def steps(self) -> Steps:
        waits = [came - asked for asked, came in zip(self._asked, self._came, strict=True)]
        seconds = [later - earlier for earlier, later in zip(self._asked, self._asked[1:], strict=False)]
        return list(zip(seconds, waits, strict=False))


def _rows(data: Any) -> dict[str, Any]:
    """The series as upstream takes them: a Hugging Face data set and the names of its columns."""
    import datasets
    import numpy as np

    datasets.disable_progress_bars()
    count = range(len(data.ids))
    columns = {
        "timestamp": [data.timestamps(series) for series in count],
        "target": [np.asarray(data.values(series)[0]) for series in count],
        "feat_dynamic_real": [np.zeros(int(data.lengths[series]), dtype=np.float32) for series in count],
    }
    return {
        "dataset": datasets.Dataset.from_dict(columns).with_format("numpy"),
        "target_fields": ["target"],
        "target_transform_fns": None,
        "ev_fields": ["feat_dynamic_real"],  # it needs one, and leaves it out of the windows
        "ev_transform_fns": None,
    }


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _median_step(runs: tuple[Steps, ...]) -> float:
    return statistics.median(statistics.fmean(seconds for seconds, _ in run) for run in runs)


def _wait(runs: tuple[Steps, ...]) -> float:
    return statistics.median(sum(waits for _, waits in run) / sum(seconds for seconds, _ in run) for run in runs)


def _result(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "limit": None, "ok": None}
