"""How much arithmetic training Toto 2.0 takes: what a measured speed is compared with a device's peak by.

Model FLOPs utilization = windows per second * `flops_per_window` / peak FLOP per second of the device.
"""

from __future__ import annotations

from toto2 import Toto2ModelConfig

from toto_pipeline.models.forecaster import QUANTILES

BACKWARD_PASSES = 2
"""A matrix product has two in its backward pass: one for the gradient of each of its factors."""


def flops_per_window(config: Toto2ModelConfig, length: int, variates: int) -> float:
    """Floating point operations of a forward and a backward pass over one window of (variates, length) steps.

    Chowdhery et al., PaLM (2022), appendix B: matrix products only, a multiplication and an addition for each of
    their terms, the backward pass twice the forward pass, attention counted over all pairs although it is causal, and
    nothing that is computed anew. With all weights trained: `tune: head` and `tune: lora` take less.

    forward = 2 * tokens * (weights of all linear layers)
            + 2 * tokens * heads * (qk_dim + v_dim) * (layers over time * patches + layers over variates * variates)

    where tokens = variates * patches and patches = length / patch_size.
    """
    patches = length // config.patch_size
    tokens = variates * patches
    groups = config.num_layers // config.layer_group_size
    over_variates = groups * config.num_variate_layers_per_group
    over_time = config.num_layers - over_variates
    attended = over_time * patches + over_variates * variates
    attention = config.num_heads * (config.qk_dim + config.v_dim) * attended
    forward = 2 * tokens * (_linear_weights(config) + attention)
    return float(forward * (1 + BACKWARD_PASSES))


def _linear_weights(config: Toto2ModelConfig) -> int:
    """Weights that each token is multiplied by: input and output networks, and the layers."""
    width, hidden = config.d_model, 4 * config.d_model
    read = 2 * config.patch_size
    written = config.patch_size * config.num_output_patches * len(QUANTILES)
    ends = sum(from_ * hidden + hidden * to + from_ * to for from_, to in ((read, width), (width, written)))
    heads = config.num_heads * config.qk_dim + config.num_groups * (config.qk_dim + config.v_dim)
    attention = width * heads + config.num_heads * config.v_dim * width
    return int(ends + config.num_layers * (attention + 3 * width * config.d_ff))
