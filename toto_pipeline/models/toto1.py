"""Toto 1.0 (Cohen et al., 2025): building it, its training objective, its forecasts and its public format.

Datadog's package `toto-ts` brings the model, the loss that it was trained with and its forecaster; this is the way
from windows to them and back. Toto 1.0 is a patched causal decoder whose output at patch i describes patch i + 1 as a
mixture of Student's t distributions of (x - loc) / scale, with loc and scale the causal mean and deviation of what has
been seen up to patch i.

It forecasts by drawing trajectories, one patch after the other. Each row draws from the same seed, so its forecast
does not depend on what else is in the batch, and is the same at every call.

Shapes: B batch, V variates, T steps, N patches, P steps in a patch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto.model.backbone import TotoBackbone
from toto.model.losses import CombinedLoss
from toto.model.toto import Toto

from toto_pipeline.errors import WeightsError
from toto_pipeline.models.filling import forward_fill
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.models.patches import PatchedWindows
from toto_pipeline.models.plain import PlainForecaster, prepare_plain
from toto_pipeline.settings.training import ModelSettings, TrainingSettings

SAMPLES = 128
"""Trajectories of a forecast: upstream's own least number for reliable quantiles."""
SAMPLING_SEED = 0
LEAST_OBSERVATIONS = 8
"""Steps a position must have seen before its loc and scale mean anything."""
_EPSILON = torch.finfo(torch.float32).eps
"""What upstream adds to the scale."""


class CausalWindows(PatchedWindows):
    """Windows of a causal decoder: it sees all of a training window, each patch from those before."""

    def training_mask(self, length: int, horizon: int, random: np.random.Generator) -> NDArray[np.bool_]:  # noqa: ARG002 - nothing is drawn
        return np.ones(length, dtype=bool)


class Toto1Forecaster(PlainForecaster[TotoBackbone]):
    """A `TotoBackbone` as the pipeline's `TrainableForecaster`.

    Args:
        config: what config.json holds: the arguments of `Toto`.
    """

    betas = (0.9, 0.999)
    eps = 1e-7

    def __init__(self, module: TotoBackbone, config: Mapping[str, Any], *, precision: str = "fp32") -> None:
        super().__init__(module, precision=precision)
        self.config = dict(config)
        self.windows = CausalWindows(module.patch_embed.patch_size)
        self._loss = CombinedLoss()

    @property
    def name(self) -> str:
        return "toto1"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.transformer.layers)

    def targets(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        return counted_positions(~values_BVT.isnan(), kept_BT, self.windows.patch_size).sum()

    def loss(self, values_BVT: Tensor, kept_BT: Tensor) -> Tensor:
        """Upstream's own loss of each patch as predicted from those before, over the `counted_positions`."""
        patch = self.windows.patch_size
        observed_BVT = ~values_BVT.isnan()
        seen_BVT = observed_BVT & kept_BT[:, None, :]
        with self._autocast(values_BVT.device):
            output = self._parallel(
                forward_fill(values_BVT, seen_BVT)[..., :-patch], seen_BVT[..., :-patch], _ids(values_BVT)[..., :-patch]
            )
        target = (values_BVT.nan_to_num(0.0)[..., patch:] - output.loc) / (output.scale + _EPSILON)
        losses: Tensor = self._loss(output.distribution, target).float()
        return torch.where(counted_positions(observed_BVT, kept_BT, patch), losses, 0.0).sum()

    @torch.no_grad()
    def forecast(self, history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
        """As `Forecaster.forecast`: quantiles of `SAMPLES` trajectories of upstream's own `TotoForecaster`.

        In float32 at every `precision`, because PyTorch draws no gamma variates in a shorter format.
        """
        was_training = self.module.training
        forecaster = TotoForecaster(self.module)
        history = torch.from_numpy(np.ascontiguousarray(history_BVT)).to(self.device)
        rows = [self._samples(forecaster, row[None], horizon) for row in history]
        self.module.train(was_training)
        levels = torch.tensor(QUANTILES, device=self.device)
        quantiles_QBVH = torch.cat(rows).quantile(levels, dim=-1)
        forecast: NDArray[np.float32] = quantiles_QBVH.permute(1, 2, 3, 0).cpu().numpy()
        return forecast

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, which `Toto.load_from_checkpoint(folder)` opens."""
        text = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        state = {f"model.{name}": tensor.contiguous() for name, tensor in self.module.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    def _samples(self, forecaster: TotoForecaster, history_BVT: Tensor, horizon: int) -> Tensor:
        """(1, V, horizon, SAMPLES)"""
        observed = ~history_BVT.isnan()
        ids = _ids(history_BVT)
        inputs = MaskedTimeseries(
            series=forward_fill(history_BVT, observed),
            padding_mask=observed,
            id_mask=ids,
            timestamp_seconds=ids,  # the model does not read the times
            time_interval_seconds=torch.ones_like(ids[..., 0]),
        )
        with self._own_random_numbers():
            torch.manual_seed(SAMPLING_SEED)
            forecast = forecaster.forecast(inputs, horizon, num_samples=SAMPLES, samples_per_batch=SAMPLES)
        samples: Tensor = forecast.samples
        return samples


def counted_positions(observed_BVT: Tensor, kept_BT: Tensor, patch_size: int) -> Tensor:
    """(B, V, T - P) bool: steps of the second and later patches that the loss counts.

    They are observed, and predicted from a patch that is seen whole and from at least `LEAST_OBSERVATIONS` steps. Of a
    window that hides something only what is hidden counts, so a validation loss is of steps that were not trained on.
    """
    from_kept_BN = kept_BT.reshape(len(kept_BT), -1, patch_size).all(-1)[:, :-1]
    asked_BT = ~kept_BT | kept_BT.all(-1, keepdim=True)
    seen_BVN = (observed_BVT & kept_BT[:, None]).cumsum(-1)[..., patch_size - 1 :: patch_size][..., :-1]
    predicted_BVN = from_kept_BN[:, None] & (seen_BVN >= LEAST_OBSERVATIONS)
    asked_BVT: Tensor = observed_BVT & asked_BT[:, None]
    return asked_BVT[..., patch_size:] & predicted_BVN.repeat_interleave(patch_size, dim=-1)


def build_for_training(settings: TrainingSettings, weights: Path | None) -> Toto1Forecaster:
    """The model that `settings` train, with what is not trained frozen.

    Raises:
        WeightsError: the folder holds no readable Toto 1.0 weights.
        ConfigError: `settings.tune` is lora.
    """
    config = configuration(settings.model) if weights is None else read_config(weights)
    module = Toto(**config).model if weights is None else load_module(weights)
    prepare_plain(module, settings, head=[module.unembed, module.output_distribution])
    return Toto1Forecaster(module.train(), config, precision=settings.precision)


def load_forecaster(folder: Path, *, device: str = "cpu") -> Toto1Forecaster:
    """The forecaster of a folder with config.json and model.safetensors."""
    return Toto1Forecaster(load_module(folder).to(device).eval(), read_config(folder))


def configuration(settings: ModelSettings) -> dict[str, Any]:
    """The released configuration at the size that the settings name."""
    return {
        "patch_size": settings.patch_size,
        "stride": settings.patch_size,
        "embed_dim": settings.d_model,
        "num_layers": settings.num_layers,
        "num_heads": settings.num_heads,
        "mlp_hidden_dim": settings.d_ff or 4 * settings.d_model,
        "dropout": 0.0,
        "spacewise_every_n_layers": settings.layer_group_size,
        "spacewise_first": False,
        "scaler_cls": "<class 'model.scaler.CausalPatchStdMeanScaler'>",
        "output_distribution_classes": ["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
        "output_distribution_kwargs": {"k_components": 24},
        "use_memory_efficient_attention": False,  # that is xFormers' attention; this is PyTorch's
        "stabilize_with_global": True,
        "scale_factor_exponent": 10.0,
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The arguments of `Toto` that a weights folder describes.

    Raises:
        WeightsError: config.json is missing, not JSON, or not Toto 1.0's.
    """
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        config["spacewise_every_n_layers"], config["patch_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{file}: does not describe a Toto 1.0 model ({error!r}). Expected: the config.json that is published "
            "beside the weights. What to do: point training.model.weights at a folder with config.json and "
            "model.safetensors."
        ) from error
    return config


def load_module(folder: Path) -> TotoBackbone:
    """`Toto.load_from_checkpoint` for a local folder of safetensors; nothing pickled is ever opened.

    Raises:
        WeightsError: no safetensors there, or they do not fit the architecture of config.json.
    """
    read_config(folder)
    if not (folder / "model.safetensors").is_file():
        raise WeightsError(
            f"{folder}: holds no model.safetensors. Expected: weights in the safetensors format (pickled weights are "
            "never loaded). What to do: download the released safetensors, or convert the file."
        )
    try:
        module: TotoBackbone = Toto.load_from_checkpoint(str(folder), strict=True).model
    except (RuntimeError, SafetensorError, OSError, ValueError, TypeError, KeyError, AssertionError) as error:
        shown = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise WeightsError(
            f"{folder}: the weights do not fit the architecture of their config.json: {shown}. Expected: tensors named "
            "and shaped as Toto 1.0 of that size. What to do: use the config.json that came with them."
        ) from error
    return module


def _ids(values_BVT: Tensor) -> Tensor:
    """All variates of a row belong together: zeros."""
    return torch.zeros_like(values_BVT, dtype=torch.int)
