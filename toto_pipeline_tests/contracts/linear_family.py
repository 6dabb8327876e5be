"""A small model family as another package would offer it: a few linear layers over the scaled history.

`module` and `folder` are all that the pipeline knows of it, by the entry point that `make_package` writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toto_pipeline.errors import WeightsError
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.models.plain import PlainForecaster, prepare_plain
from toto_pipeline.settings.training import TrainingSettings

OPTIONS = {"context": 64, "most_steps": 48, "d_model": 16}
"""What `training.model.options` may hold, and the defaults."""


class Windows:
    """A history of any length and the horizon behind it."""

    def length(self, context_length: int, horizon: int) -> int:
        return context_length + horizon

    def training_mask(self, length: int, horizon: int, random: np.random.Generator) -> NDArray[np.bool_]:  # noqa: ARG002
        return self.forecast_mask(length, horizon)

    def forecast_mask(self, length: int, horizon: int) -> NDArray[np.bool_]:
        return np.arange(length) < length - horizon


class LinearModel(nn.Module):
    """(series, context) scaled values, 0 where missing -> (series, most_steps, 9)"""

    def __init__(self, context: int, most_steps: int, d_model: int) -> None:
        super().__init__()
        self.context, self.most_steps = context, most_steps
        self.read = nn.Linear(context, d_model)
        self.layers = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(4))
        self.head = nn.Linear(d_model, most_steps * len(QUANTILES))

    def forward(self, scaled: Tensor) -> Tensor:
        hidden = self.read(scaled)
        for layer in self.layers:
            hidden = hidden + torch.relu(layer(hidden))
        answer: Tensor = self.head(hidden)
        return answer.unflatten(-1, (self.most_steps, len(QUANTILES)))


class LinearForecaster(PlainForecaster[LinearModel]):
    windows = Windows()

    @property
    def name(self) -> str:
        return "linear"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.layers)

    def targets(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        return (~values_BVT.isnan() & ~kept_BT[:, None]).sum()

    def loss(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        hidden = int((~kept_BT[0]).sum())
        scaled, loc, scale = self._scaled(values_BVT[..., : values_BVT.shape[-1] - hidden])
        with self._autocast(values_BVT.device):
            quantiles = self._parallel(scaled)[..., :hidden, :].float()
        target = (values_BVT[..., values_BVT.shape[-1] - hidden :] - loc) / scale
        error = target.nan_to_num(0.0)[..., None] - quantiles
        levels = torch.tensor(QUANTILES, device=error.device)
        pinball = torch.maximum(levels * error, (levels - 1) * error).mean(-1)
        return torch.where(target.isnan(), 0.0, pinball).sum()

    @torch.no_grad()
    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        scaled, loc, scale = self._scaled(torch.from_numpy(history_BVT.copy()).to(self.device))
        quantiles = self.module(scaled)[..., :horizon, :] * scale[..., None] + loc[..., None]
        forecast: NDArray[np.float32] = quantiles.sort(dim=-1).values.cpu().numpy()
        return forecast

    def save(self, folder: Path) -> None:
        sizes = {"context": self.module.context, "most_steps": self.module.most_steps}
        config = {**sizes, "d_model": self.module.read.out_features}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(self.module.state_dict(), folder / "model.safetensors")

    def _scaled(self, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        history = history[..., -self.module.context :]
        loc = history.nanmean(-1, keepdim=True).nan_to_num(0.0)
        scale = (history - loc).square().nanmean(-1, keepdim=True).sqrt().nan_to_num(1.0).clamp(min=1e-3)
        scaled = ((history - loc) / scale).nan_to_num(0.0)
        return nn.functional.pad(scaled, (self.module.context - scaled.shape[-1], 0)), loc, scale


def build_for_training(settings: TrainingSettings, weights: Path | None) -> LinearForecaster:
    module = LinearModel(**{**OPTIONS, **settings.model.options}) if weights is None else load_module(weights)
    prepare_plain(module, settings, head=[module.head])
    return LinearForecaster(module.train(), precision=settings.precision)


def load_forecaster(folder: Path, *, device: str = "cpu") -> LinearForecaster:
    return LinearForecaster(load_module(folder).to(device).eval())


def load_module(folder: Path) -> LinearModel:
    if not (folder / "model.safetensors").is_file():
        raise WeightsError(f"{folder}: holds no model.safetensors; anything else is never opened.")
    try:
        module = LinearModel(**json.loads((folder / "config.json").read_text()))
    except TypeError as error:
        raise WeightsError(f"{folder}/config.json: {error}") from error
    try:
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: the weights do not fit: {error}") from error
    return module


def make_package(folder: Path, families: dict[str, str] | None = None) -> Path:
    """A folder for the path of modules, with an installed package that offers this family, or `families`."""
    info = folder / "linear_models-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-models\nVersion: 0.3\n")
    offered = families or {"linear": __name__}
    lines = [f"{name} = {value}" for name, value in offered.items()]
    (info / "entry_points.txt").write_text("\n".join(["[toto_pipeline.models]", *lines, ""]))
    return folder
