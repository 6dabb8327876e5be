"""Toto 2.0: building it, its training objective, its forecasts and its public format.

The released package publishes inference. What training needs beside it is here: the loss, in the model's own output
space. Toto 2.0 is a patched decoder whose output at patch i describes patch i + 1 as nine quantiles of
asinh((x - loc) / scale), with loc and scale the causal mean and deviation of what has been seen up to patch i.

Unit scaling divides the gradient of a weight by the square root of the positions that the whole step sees, so it must
be told into how many parts a step is split (`set_scale`). Gradients of the parts then add up to those of the whole.

Shapes: B batch, V variates, T steps, N patches, P steps in a patch, Q quantile levels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dd_unit_scaling
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from toto2 import Toto2Model, Toto2ModelConfig

from toto_pipeline.errors import WeightsError
from toto_pipeline.models import tuning
from toto_pipeline.models.filling import forward_fill
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.models.lora import is_adapted, merged_state
from toto_pipeline.models.muon import muon_beside_adamw
from toto_pipeline.models.optimizer import adamw
from toto_pipeline.models.patches import PatchedWindows
from toto_pipeline.models.plain import AUTOCAST_DTYPES
from toto_pipeline.settings.training import ModelSettings, TrainingSettings

LEAST_OBSERVATIONS = 8
"""Steps a position must have seen before its loc and scale mean anything; also upstream's fallback for forecasts."""
LARGEST_DEVIATION = 1e4
"""Forecasts are kept within so many scales of what the history held, as upstream's own predictor does."""


class Toto2Forecaster:
    """A `Toto2Model` as the pipeline's `TrainableForecaster`."""

    def __init__(self, module: Toto2Model, *, precision: str = "fp32") -> None:
        self.module = module
        self.windows = PatchedWindows(module.config.patch_size)
        self._parallel: nn.Module = module
        self._autocast_dtype = AUTOCAST_DTYPES[precision]

    @property
    def name(self) -> str:
        return "toto2"

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.module.parameters()).device
        return device

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.transformer.layers)

    def targets(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        observed_BVT = ~values_BVT.isnan()
        kept_BVT = kept_BT[:, None, :].expand_as(observed_BVT)
        return counted_positions(observed_BVT, kept_BVT, self.windows.patch_size).sum()

    def loss(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        observed_BVT = ~values_BVT.isnan()
        target_BVT = values_BVT.nan_to_num(0.0)
        kept_BVT = kept_BT[:, None, :].expand_as(observed_BVT)
        with self._autocast(values_BVT.device):
            output = self._parallel(target_BVT, observed_BVT, kept_BVT, _series_ids(values_BVT))
        return next_patch_loss(
            quantiles_QBVNP=output.quantiles.float(),
            loc_BVT=output.loc,
            scale_BVT=output.scale,
            target_BVT=target_BVT,
            observed_BVT=observed_BVT,
            kept_BVT=kept_BVT,
        )

    @torch.no_grad()
    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        """As `Forecaster.forecast`, through upstream's own `Toto2Model.forecast`."""
        was_training = self.module.training
        if was_training:  # walking through all modules costs a third of a small model's forecast
            self.module.eval()
        history = torch.from_numpy(self._whole_patches(history_BVT)).to(self.device)
        observed = ~history.isnan()
        inputs = {
            "target": forward_fill(history, observed),
            "target_mask": observed,
            "series_ids": _series_ids(history),
        }
        with self._autocast(self.device):
            quantiles_QBVT = self.module.forecast(
                inputs,
                horizon,
                scaler_fallback_min_obs=LEAST_OBSERVATIONS,
                quantile_real_cap_k=LARGEST_DEVIATION,
            )
        if was_training:
            self.module.train()
        forecast: NDArray[np.float32] = quantiles_QBVT.float().permute(1, 2, 3, 0).cpu().numpy()
        return forecast

    def optimizer(
        self, learning_rate: float, weight_decay: float, muon_learning_rate: float | None = None
    ) -> torch.optim.Optimizer:
        if muon_learning_rate is None:
            return adamw(self.module, learning_rate, weight_decay)
        return muon_beside_adamw(self.module, learning_rate, weight_decay, muon_learning_rate)

    def wrap(self, parallel: Callable[[nn.Module], nn.Module]) -> None:
        # What an earlier forecast by blocks left in its cache is no part of the model, and differs between processes.
        self.module._kv_cache = self.module._kv_cache_key = None
        self._parallel = parallel(self.module)

    def set_scale(self, *, processes: int, accumulation: int) -> None:
        """As `TrainableForecaster.set_scale`; unit scaling keeps it for the whole process. Before `compile`."""
        dd_unit_scaling.init_world_size_cache(processes)
        dd_unit_scaling.set_grad_accumulation_steps(accumulation)

    def compile(self) -> None:
        self.module.compile()

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, which `Toto2Model.from_pretrained(folder)` opens."""
        module = _without_adapters(self.module) if is_adapted(self.module) else self.module
        module.save_pretrained(folder)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None)

    def _whole_patches(self, history_BVT: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pad left to a multiple of the patch: the model treats the last context patch as observed."""
        steps = history_BVT.shape[-1]
        missing = self.windows.patches(max(steps, 1)) * self.windows.patch_size - steps
        padded: NDArray[np.float32] = np.pad(
            history_BVT, ((0, 0), (0, 0), (missing, 0)), constant_values=np.float32(np.nan)
        )
        return padded


def next_patch_loss(
    *,
    quantiles_QBVNP: Tensor,
    loc_BVT: Tensor,
    scale_BVT: Tensor,
    target_BVT: Tensor,
    observed_BVT: Tensor,
    kept_BVT: Tensor,
) -> Tensor:
    """Pinball loss of each patch's prediction of the next, in the model's scaled space, summed.

    Patch i predicts y = asinh((x[i+1] - loc[i]) / scale[i]); loc and scale of patch i+1 would leak what is to be
    predicted. The mean over the quantile levels, summed over the `counted_positions`.
    """
    patch_size = quantiles_QBVNP.shape[-1]
    loc, scale = _patched(loc_BVT, patch_size)[..., :-1, :], _patched(scale_BVT, patch_size)[..., :-1, :]
    target = torch.asinh((_patched(target_BVT, patch_size)[..., 1:, :] - loc) / scale)
    levels = torch.tensor(QUANTILES, device=target.device).view(-1, 1, 1, 1, 1)
    error = target - quantiles_QBVNP[..., :-1, :]
    pinball = torch.maximum(levels * error, (levels - 1) * error).mean(dim=0)
    return torch.where(counted_positions(observed_BVT, kept_BVT, patch_size), pinball, 0.0).sum()


def counted_positions(observed_BVT: Tensor, kept_BVT: Tensor, patch_size: int) -> Tensor:
    """(B, V, N-1, P) bool: steps of the second and later patches that are observed and predicted from enough.

    Enough is at least `LEAST_OBSERVATIONS` steps, observed and kept, up to the end of the patch before.
    """
    seen = _patched((observed_BVT & kept_BVT).cumsum(dim=-1), patch_size)[..., :-1, -1:]
    return _patched(observed_BVT, patch_size)[..., 1:, :] & (seen >= LEAST_OBSERVATIONS)


def window_shape(settings: ModelSettings, weights: Path | None) -> PatchedWindows:
    """How training windows are cut, from the settings or from the weights' own configuration."""
    return PatchedWindows(settings.patch_size if weights is None else read_config(weights).patch_size)


def build(settings: ModelSettings, weights: Path | None, *, precision: str = "fp32") -> Toto2Forecaster:
    """A model from scratch (with torch's global seed) or from a weights folder, in training mode.

    Raises:
        WeightsError: the folder holds no readable Toto 2.0 weights.
    """
    module = Toto2Model(configuration(settings)) if weights is None else load_module(weights)
    return Toto2Forecaster(module.train(), precision=precision)


def build_for_training(settings: TrainingSettings, weights: Path | None) -> Toto2Forecaster:
    """The model that `settings` train, with what is not trained frozen.

    Raises:
        WeightsError: the folder holds no readable Toto 2.0 weights.
        ConfigError: a target of `settings.lora` names no linear layer.
    """
    forecaster = build(settings.model, weights, precision=settings.precision)
    module = forecaster.module
    tuning.prepare(
        module,
        settings.tune,
        settings.lora,
        # The weights of the last norm, where there are any, are factors of what the head's first layers read.
        head=[module.output_head, module.transformer.out_norm],
        transformer=module.transformer,
    )
    return forecaster


def load_forecaster(folder: Path, *, device: str = "cpu", precision: str = "fp32") -> Toto2Forecaster:
    """The forecaster of a folder with config.json and model.safetensors."""
    return Toto2Forecaster(load_module(folder).to(device).eval(), precision=precision)


def configuration(settings: ModelSettings) -> Toto2ModelConfig:
    """The released 4m configuration at the size that the settings name."""
    return Toto2ModelConfig(
        patch_size=settings.patch_size,
        d_model=settings.d_model,
        num_heads=settings.num_heads,
        num_layers=settings.num_layers,
        d_ff=settings.d_ff,
        layer_group_size=settings.layer_group_size,
        num_variate_layers_per_group=1,
        variate_layer_first=False,
        norm_eps=1e-4,
        attn_bias=True,
        mlp_bias=False,
        qk_norm=False,
        per_dim_scale=True,
        use_xpos=True,
        residual_mult=0.75,
        residual_attn_ratio=Toto2ModelConfig.compute_residual_attn_ratio(4096, 32),
    )


def read_config(folder: Path) -> Toto2ModelConfig:
    """The architecture that a weights folder describes.

    Raises:
        WeightsError: config.json is missing, not JSON, or not Toto 2.0's.
    """
    file = folder / "config.json"
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = Toto2ModelConfig.__dataclass_fields__
        return Toto2ModelConfig(**{name: value for name, value in values.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise WeightsError(
            f"{file}: does not describe a Toto 2.0 model ({error}). Expected: the config.json that is published beside "
            "the weights. What to do: point training.model.weights at a folder with config.json and model.safetensors."
        ) from error


def load_module(folder: Path) -> Toto2Model:
    """`Toto2Model.from_pretrained` for a local folder of safetensors; nothing pickled is ever opened.

    Raises:
        WeightsError: no safetensors there, or they do not fit the architecture of config.json.
    """
    read_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{folder}: holds no model.safetensors. Expected: weights in the safetensors format (pickled weights are "
            "never loaded). What to do: download the released safetensors, or convert the file."
        )
    try:
        return Toto2Model.from_pretrained(str(folder))
    except (RuntimeError, SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{folder}: the weights do not fit the architecture of their config.json: {_first_lines(error)}. Expected: "
            "tensors named and shaped as Toto 2.0 of that size. What to do: use the config.json that came with them."
        ) from error


def _without_adapters(module: Toto2Model) -> Toto2Model:
    """A plain model with the adapters merged into its weights; only what is merged takes new memory."""
    with torch.device("meta"):
        plain = Toto2Model(module.config)
    plain.load_state_dict(merged_state(module), assign=True)
    return plain


def _patched(x_BVT: Tensor, patch_size: int) -> Tensor:
    """(B, V, N, P)"""
    return x_BVT.reshape(*x_BVT.shape[:-1], -1, patch_size)


def _first_lines(error: Exception, count: int = 3) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:count])


def _series_ids(values_BVT: Tensor) -> Tensor:
    """All variates of a row belong together: (B, V) of zeros."""
    return torch.zeros(values_BVT.shape[:2], dtype=torch.long, device=values_BVT.device)
