"""Chronos-2 (Ansari et al., 2025): building it, its training objective, its forecasts and its public format.

Amazon's package `chronos-forecasting` brings the model, its loss and its pipeline; this is the way from windows to
them and back. Chronos-2 is a patched encoder that reads a history and, in one pass, describes the patches behind it
as quantiles of asinh((x - loc) / scale), with loc and scale the mean and deviation of the history. The variates of a
window are a group whose members attend to each other.

Chronos-Bolt and the first Chronos are other models; their weights are refused with a message.

Shapes: B batch, V variates, T steps, C steps of the history, H hidden steps, Q quantile levels.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chronos import Chronos2Pipeline
from chronos.chronos2 import Chronos2CoreConfig, Chronos2Model
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from toto_pipeline.errors import WeightsError
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.models.patches import patches_of, tail_mask
from toto_pipeline.models.plain import PlainForecaster, prepare_plain
from toto_pipeline.settings.training import ModelSettings, TrainingSettings

CONTEXT_LENGTH = 2048
"""Steps of history that a model from scratch reads; of a longer one the last so many."""
MOST_PATCHES = 64
"""Patches that a model from scratch describes in one pass, as the released ones; beyond, its pipeline unrolls."""

INITIALIZER_FACTOR = 0.3
"""How large the weights of a model from scratch are. At the released 0.05 the preset `sample` learns next to nothing in
its first 300 steps; at 1 it begins with a loss twenty times as high."""


@dataclass(frozen=True)
class TailWindows:
    """A history and the horizon behind it, whole patches each; what is hidden is always the horizon.

    Args:
        most_patches: the longest horizon that the model describes in one pass.
    """

    patch_size: int
    most_patches: int

    def length(self, context_length: int, horizon: int) -> int:
        return patches_of(context_length, self.patch_size) * self.patch_size + self._hidden(horizon)

    def training_mask(self, length: int, horizon: int, random: np.random.Generator) -> NDArray[np.bool_]:  # noqa: ARG002 - nothing is drawn
        return self.forecast_mask(length, horizon)

    def forecast_mask(self, length: int, horizon: int) -> NDArray[np.bool_]:
        return tail_mask(length, self._hidden(horizon))

    def _hidden(self, horizon: int) -> int:
        return min(patches_of(horizon, self.patch_size), self.most_patches) * self.patch_size


class ChronosForecaster(PlainForecaster[Chronos2Model]):
    """A `Chronos2Model` as the pipeline's `TrainableForecaster`."""

    def __init__(self, module: Chronos2Model, *, precision: str = "fp32") -> None:
        super().__init__(module, precision=precision)
        config = module.chronos_config
        self.windows = TailWindows(config.output_patch_size, config.max_output_patches)

    @property
    def name(self) -> str:
        return "chronos"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.encoder.block)

    def targets(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        hidden = hidden_steps(kept_BT)
        return (~values_BVT[..., values_BVT.shape[-1] - hidden :].isnan()).sum()

    def loss(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        """Upstream's own loss: twice the pinball loss, here as the mean over the model's quantile levels."""
        hidden = hidden_steps(kept_BT)
        series = values_BVT.flatten(0, 1)
        context, future = series[:, : series.shape[1] - hidden], series[:, series.shape[1] - hidden :]
        kept = kept_BT[:, : context.shape[1]].repeat_interleave(values_BVT.shape[1], dim=0)
        with self._autocast(series.device):
            output = self._parallel(
                context=context.masked_fill(~kept, torch.nan),
                group_ids=_groups(values_BVT),
                future_target=future,
                num_output_patches=hidden // self.windows.patch_size,
            )
        # Upstream takes the mean over series and steps, missing ones too, and the sum over quantile levels.
        loss: Tensor = output.loss.float() * future.numel() / self.module.num_quantiles
        return loss

    @torch.no_grad()
    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        """As `Forecaster.forecast`, through upstream's own `Chronos2Pipeline.predict_quantiles`."""
        was_training = self.module.training
        self.module.eval()
        # The pipeline reads its input through a DataLoader, which draws a seed.
        with self._own_random_numbers(), self._autocast(self.device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "We recommend keeping prediction length")
            quantiles, _ = Chronos2Pipeline(self.module).predict_quantiles(
                torch.from_numpy(np.ascontiguousarray(history_BVT)),
                horizon,
                quantile_levels=list(QUANTILES),
                batch_size=history_BVT.shape[0] * history_BVT.shape[1],  # one pass: sharded, all processes take as many
            )
        self.module.train(was_training)
        # Quantiles are outputs of their own, and may cross.
        forecast: NDArray[np.float32] = torch.stack(quantiles).float().sort(dim=-1).values.cpu().numpy()
        return forecast

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, which `Chronos2Pipeline.from_pretrained(folder)` opens."""
        with _quiet():
            self.module.save_pretrained(folder)


def hidden_steps(kept_BT: Tensor) -> int:
    """How many steps at the end of the windows are hidden, which is the same for all of `TailWindows`.

    This is read on the host, and so waits for the device: the model takes its horizon as a number.
    """
    tails = (~kept_BT).flip(-1).cumprod(-1).sum(-1).tolist()
    assert len(set(tails)) == 1, f"windows with horizons of {sorted(set(tails))} steps in one batch"  # noqa: S101
    return int(tails[0])


def build_for_training(settings: TrainingSettings, weights: Path | None) -> ChronosForecaster:
    """The model that `settings` train, with what is not trained frozen.

    Raises:
        WeightsError: the folder holds no readable Chronos-2 weights.
        ConfigError: `settings.tune` is lora.
    """
    module = Chronos2Model(configuration(settings.model)) if weights is None else load_module(weights)
    prepare_plain(module, settings, head=[module.output_patch_embedding])
    return ChronosForecaster(module.train(), precision=settings.precision)


def load_forecaster(folder: Path, *, device: str = "cpu") -> ChronosForecaster:
    """The forecaster of a folder with config.json and model.safetensors."""
    return ChronosForecaster(load_module(folder).to(device).eval())


def configuration(settings: ModelSettings) -> Chronos2CoreConfig:
    """The released configuration at the size that the settings name, with the nine levels that are forecast."""
    return Chronos2CoreConfig(
        d_model=settings.d_model,
        d_kv=settings.d_model // settings.num_heads,
        d_ff=settings.d_ff or 4 * settings.d_model,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        dropout_rate=0.0,
        initializer_factor=INITIALIZER_FACTOR,
        architectures=["Chronos2Model"],
        chronos_pipeline_class="Chronos2Pipeline",
        chronos_config={
            "context_length": CONTEXT_LENGTH,
            "input_patch_size": settings.patch_size,
            "input_patch_stride": settings.patch_size,
            "output_patch_size": settings.patch_size,
            "max_output_patches": MOST_PATCHES,
            "quantiles": list(QUANTILES),
            "use_reg_token": True,
            "use_arcsinh": True,
        },
    )


def load_module(folder: Path) -> Chronos2Model:
    """`Chronos2Pipeline.from_pretrained` for a local folder of safetensors; nothing pickled is ever opened.

    Raises:
        WeightsError: it is not Chronos-2's, or the weights do not fit the architecture of config.json.
    """
    _check_config(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{folder}: holds no model.safetensors. Expected: weights in the safetensors format (pickled weights are "
            "never loaded). What to do: download the released safetensors, or convert the file."
        )
    try:
        with _quiet():
            module, report = Chronos2Model.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (RuntimeError, SafetensorError, OSError, ValueError, TypeError) as error:
        raise _misfit(folder, str(error)) from error
    wrong = {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(name)}
    if wrong:  # transformers fills what is missing with random numbers
        raise _misfit(folder, "; ".join(f"{name}: {sorted(map(str, keys))[0]}" for name, keys in wrong.items()))
    loaded: Chronos2Model = module
    return loaded


def _check_config(file: Path) -> None:
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        made_for = config["chronos_pipeline_class"]
        quantiles = set(config["chronos_config"].get("quantiles", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{file}: does not describe a Chronos model ({error!r}). Expected: the config.json that is published "
            "beside the weights. What to do: point training.model.weights at a folder with config.json and "
            "model.safetensors."
        ) from error
    if made_for != "Chronos2Pipeline":
        raise WeightsError(
            f"{file}: describes a model for {made_for}. Expected: Chronos-2, for Chronos2Pipeline. What to do: use "
            "weights of Chronos-2, such as amazon/chronos-2."
        )
    if not set(QUANTILES) <= quantiles:
        raise WeightsError(
            f"{file}: its model describes the quantiles {sorted(quantiles)}. Expected: at least 0.1, 0.2 .. 0.9. "
            "What to do: use released weights of Chronos-2."
        )


def _misfit(folder: Path, reason: str) -> WeightsError:
    shown = " ".join(line.strip() for line in reason.splitlines()[:3])
    return WeightsError(
        f"{folder}: the weights do not fit the architecture of their config.json: {shown}. Expected: tensors named "
        "and shaped as Chronos-2 of that size. What to do: use the config.json that came with them."
    )


def _groups(values_BVT: Tensor) -> Tensor:
    """The variates of a row belong together: (B * V,) of row numbers."""
    rows, variates = values_BVT.shape[:2]
    return torch.arange(rows, device=values_BVT.device).repeat_interleave(variates)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars that transformers draws for each file."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
