"""Who forecasts in an evaluation: the new model, what it must beat, and what it began as.

    candidate        the model of the run
    seasonal_naive   the floor
    drift            a straight line, for series without a season
    champion         the model in production, where there is one
    zero_shot        the weights that the training started from, before any of it
    AutoETS, ...     the statistical baselines that the settings name

A model that was trained from scratch has no zero-shot: its starting weights are random, forecast noise, and beating
them says nothing about whether the training was worth it; the seasonal naive is the floor then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.manifest import sha256_of
from toto_pipeline.errors import TrainingError, WeightsError
from toto_pipeline.evaluation.backtest import BASELINE, CANDIDATE, CHAMPION, DRIFT, ZERO_SHOT
from toto_pipeline.home import Home
from toto_pipeline.models.forecaster import Forecaster
from toto_pipeline.promotion.registry import ModelVersion
from toto_pipeline.settings.promotion import EvaluationSettings
from toto_pipeline.training.run_files import read_order


@dataclass(frozen=True)
class Contenders:
    """forecasters: by model key. facts: what tells which model each was, for a reader. identities: what its forecasts
    follow from, for the cache. notes: who is not there, and why."""

    forecasters: dict[str, Forecaster] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    identities: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@contextmanager
def contenders(
    home: Home, run_folder: Path, champion: ModelVersion | None, season: int, settings: EvaluationSettings
) -> Iterator[Contenders]:
    """Everybody, loaded; the processes of the statistical baselines end with the block.

    Raises:
        ConfigError: the device or a package that the settings ask for is not there.
        WeightsError: the weights of the new model or the champion cannot be loaded.
    """
    from toto_pipeline.models.baselines import Drift, SeasonalNaive
    from toto_pipeline.models.device import choose_device
    from toto_pipeline.models.families import load_forecaster
    from toto_pipeline.models.statistical import StatisticalBaseline

    device = choose_device(settings.device)
    found = Contenders()

    def add(key: str, folder: Path, **facts: Any) -> None:
        found.forecasters[key] = load_forecaster(folder, device=str(device))
        found.facts[key] = facts
        found.identities[key] = {"weights": weights_digest(folder), "device": _device_name(device)}

    with ExitStack() as stack:
        add(CANDIDATE, run_folder / "model")
        found.forecasters[BASELINE] = SeasonalNaive(season)
        if champion is not None:
            add(CHAMPION, champion.path, version=champion.version, run=champion.run)
        start = _starting_weights(home, run_folder, found.notes)
        if start is not None:
            name, folder = start
            add(ZERO_SHOT, folder, weights=name)
        found.forecasters[DRIFT] = Drift()
        for model in settings.statistical_baselines:
            baseline = StatisticalBaseline(model, season, seconds=settings.baseline_seconds)
            stack.callback(baseline.close)
            found.forecasters[model] = baseline
            found.identities[model] = {"model": model, "season": season}
            found.notes.append(f"{model}: series that it cannot fit are forecast by the seasonal naive.")
        yield found


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) of the names and contents of a model folder's weights and descriptions."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _starting_weights(home: Home, run_folder: Path, notes: list[str]) -> tuple[str, Path] | None:
    """What the settings call them, and where they lie; else a note that says why there are none."""
    from toto_pipeline.models.weights import locate_weights

    try:
        name = read_order(run_folder).settings.model.weights
        if name is None:
            notes.append("The model was trained from scratch: no zero-shot comparison.")
            return None
        return name, locate_weights(name, home.cache)
    except (TrainingError, WeightsError) as error:
        notes.append(f"No zero-shot comparison, because the starting weights are not to be had: {error}")
        return None


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
