"""Model families by name: packages offer them as entry points of the group `toto_pipeline.models`.

What an entry point names, a module or an object, has two functions:

    build_for_training(settings: TrainingSettings, weights: Path | None) -> TrainableForecaster
    load_forecaster(folder: Path, *, device: str = "cpu") -> Forecaster

A folder of weights says by its `family.json` which family it is of. Folders that were not written here have none;
those of the families of this package are known by their config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from toto_pipeline.errors import ConfigError, WeightsError
from toto_pipeline.models.forecaster import Forecaster, TrainableForecaster
from toto_pipeline.settings.families import FAMILY_GROUP, unknown_family
from toto_pipeline.settings.plugins import installed, load, package_of
from toto_pipeline.settings.training import TrainingSettings

FAMILY_FILE = "family.json"
_INSTALL = {
    "chronos": "pip install 'chronos-forecasting>=2.3,<3'",
    "toto1": "pip install 'rotary-embedding-torch>=0.9' 'beartype>=0.18' && pip install --no-deps toto-ts==0.2.0",
}
"""How the library of a family of this package is brought."""
_MARKS = {"toto2": "layer_group_size", "toto1": "spacewise_every_n_layers", "chronos": "chronos_config"}
"""A name that stands in the config.json of a family and of no other."""


class Family(Protocol):
    def build_for_training(self, settings: TrainingSettings, weights: Path | None) -> TrainableForecaster:
        """The model that `settings` train, from scratch with torch's global seed or from a folder of weights."""
        ...

    def load_forecaster(self, folder: Path, *, device: str = "cpu") -> Forecaster:
        """The forecaster of a folder that `TrainableForecaster.save` or the family's own package wrote."""
        ...


def family(name: str) -> Family:
    """The family with this name, imported.

    Raises:
        ConfigError: there is none, it cannot be imported, or it lacks a function that a family has.
    """
    problem = unknown_family(name)
    if problem:
        raise ConfigError(f"training.model.family: {problem}.")
    point = installed(FAMILY_GROUP)[name]
    package = package_of(point)
    remedy = f"{_INSTALL.get(name, f'mend or reinstall {package}')}, or choose another family"
    loaded = load(point, who=f"training.model.family: {name}", remedy=remedy)
    missing = [each for each in ("build_for_training", "load_forecaster") if not callable(getattr(loaded, each, None))]
    if missing:
        raise ConfigError(
            f"training.model.family: {point.value} of {package} has no {' and no '.join(missing)}. Expected: a module "
            "or an object with the functions that toto_pipeline/models/families.py describes. What to do: mend it."
        )
    return cast("Family", loaded)


def build_for_training(settings: TrainingSettings, weights: Path | None) -> TrainableForecaster:
    """The model that `settings` train, with what is not trained frozen.

    Raises:
        ConfigError: the family is not there or cannot train as the settings say.
        WeightsError: the weights are not the family's, or are damaged.
    """
    name = settings.model.family
    found = None if weights is None else family_of(weights)
    if found not in (None, name):
        raise WeightsError(
            f"{weights}: holds weights of the family {found}. Expected: those of {name}, which training.model.family "
            f"names. What to do: set training.model.family={found}, or training.model.weights to weights of {name}."
        )
    return family(name).build_for_training(settings, weights)


def load_forecaster(folder: Path, *, device: str = "cpu") -> Forecaster:
    """The forecaster of a folder of weights, of whatever family it is.

    Raises:
        WeightsError: the folder does not say of which, or holds no readable weights.
        ConfigError: the family is not installed here.
    """
    name = family_of(folder)
    if name is None:
        raise WeightsError(
            f"{folder}: there is no telling which family its weights are of. Expected: {FAMILY_FILE}, or the "
            f"config.json of one of {', '.join(_MARKS)}. What to do: point to a folder that this pipeline or the "
            f'makers of a model wrote, or name the family in {FAMILY_FILE}, as in {{"family": "toto2"}}.'
        )
    return family(name).load_forecaster(folder, device=device)


def family_of(folder: Path) -> str | None:
    """The family that a folder of weights is of; None where neither family.json nor config.json tells.

    Raises:
        WeightsError: the one that should tell is damaged.
    """
    if (folder / FAMILY_FILE).is_file():
        name = _read(folder / FAMILY_FILE).get("family")
        if not isinstance(name, str):
            raise WeightsError(
                f'{folder / FAMILY_FILE}: names no family. Expected: {{"family": "toto2"}} or another name. '
                "What to do: mend it."
            )
        return name
    if not (folder / "config.json").is_file():
        return None
    config = _read(folder / "config.json")
    return next((name for name, mark in _MARKS.items() if mark in config), None)


def save(forecaster: TrainableForecaster, folder: Path) -> None:
    """Write the weights in the family's own public format, and beside them which family that is."""
    forecaster.save(folder)
    content = {"family": forecaster.name}
    (folder / FAMILY_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{file}: cannot be read ({error}). Expected: the {file.name} that was written beside the weights. What to "
            "do: point to a folder with config.json and model.safetensors."
        ) from error
    if not isinstance(values, dict):
        raise WeightsError(f"{file}: expected a JSON object, found a {type(values).__name__}.")
    return values
