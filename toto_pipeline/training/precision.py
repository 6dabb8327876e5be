"""Number formats and repeatability of a training process."""

from __future__ import annotations

import torch
from torch.amp.grad_scaler import GradScaler

from toto_pipeline.settings.training import TrainingSettings


def loss_scaler(settings: TrainingSettings, device: torch.device) -> GradScaler:
    """Scales the loss so that fp16 gradients do not vanish; does nothing for other formats."""
    return GradScaler(device.type, enabled=settings.precision == "fp16")


def make_repeatable(settings: TrainingSettings) -> None:
    """Seed the random generators, set the threads, and choose deterministic kernels where asked to.

    cuBLAS reads CUBLAS_WORKSPACE_CONFIG when it starts, so the launcher sets that.
    """
    import random

    import numpy as np

    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed)
    random.seed(settings.seed)
    if settings.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
