"""Every setting once: typed, validated and described.

A YAML file, `--set key=value` on the command line and Dagster's launchpad all end in these classes, so a setting has
one name, one default and one description wherever it is met. Later layers win:

    defaults  <  preset  <  YAML file  <  --set key=value
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from toto_pipeline.errors import ConfigError
from toto_pipeline.settings.base import Settings
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline.settings.monitoring import MonitoringSettings
from toto_pipeline.settings.promotion import EvaluationSettings, PromotionSettings, ScheduleSettings
from toto_pipeline.settings.spelling import suggestion
from toto_pipeline.settings.training import TrainingSettings

CONFIG_VARIABLE = "TOTO_CONFIG"
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class RetrainSettings(Settings):
    """One retraining, whole."""

    preset: str = Field(
        "sample", description="Named settings to start from: sample, or toto2-4m for the released architecture."
    )
    data: DataSettings = Field(default_factory=DataSettings)
    preparation: PreparationSettings = Field(default_factory=PreparationSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    monitoring: MonitoringSettings = Field(default_factory=MonitoringSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    promotion: PromotionSettings = Field(default_factory=PromotionSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        return check_preset(value)


PRESETS: dict[str, dict[str, Any]] = {
    "sample": {},
    "toto2-4m": {
        "model": {
            "patch_size": 32,
            "d_model": 256,
            "num_heads": 4,
            "num_layers": 4,
            "d_ff": 688,
            "layer_group_size": 4,
        },
        "epochs": 10,
        "steps_per_epoch": 200,
        "batch_size": 32,
        "learning_rate": 0.05,
    },
}
"""What each preset changes in `TrainingSettings`."""

PRESET_DESCRIPTIONS = {
    "sample": "292 thousand parameters from scratch; beats the seasonal naive on the bundled data within a minute.",
    "toto2-4m": "The released 4m architecture (4.1 million parameters), from scratch or from model.weights.",
}


def check_preset(name: str) -> str:
    """The name itself, if there is such a preset.

    Raises:
        ConfigError: there is none; the message suggests the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"preset: there is no {name!r}{suggestion(name, PRESETS)}. Expected one of: {', '.join(PRESETS)}."
        )
    return name


def training_settings(preset: str, overrides: Mapping[str, Any]) -> TrainingSettings:
    """The preset's settings with `overrides` (nested, None meaning 'as the preset says') laid over them."""
    values = _merge(PRESETS[check_preset(preset)], _without_none(overrides))
    return build(TrainingSettings, values, section="training")


def load_settings(
    preset: str | None = None, file: Path | None = None, assignments: Sequence[str] = ()
) -> RetrainSettings:
    """Settings from a preset, a YAML file and `key=value` assignments, later ones winning.

    Raises:
        ConfigError: names the file or assignment, the setting, what was expected, and the nearest valid name.
    """
    values = {} if file is None else _read_yaml(file)
    for assignment in assignments:
        values = _merge(values, _parse_assignment(assignment))
    chosen = check_preset(str(preset or values.get("preset") or "sample"))
    training = values.get("training") or {}
    if isinstance(training, Mapping):
        values["training"] = _merge(PRESETS[chosen], training)
    values["preset"] = chosen
    return build(RetrainSettings, values, file=file)


def build[S: Settings](cls: type[S], values: Mapping[str, Any], *, section: str = "", file: Path | None = None) -> S:
    """Validate `values` as `cls`, the settings of `section` out of `file`, where there are such.

    Raises:
        ConfigError: one line for each fault, with the setting's full name.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, fault, section, file) for fault in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def default_settings_file() -> Path | None:
    """The YAML file that applies where none is named: `$TOTO_CONFIG`, else `toto.yaml` here, if there is one."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named).expanduser()
    local = Path("toto.yaml")
    return local if local.is_file() else None


def setting_names(cls: type[BaseModel] = RetrainSettings, prefix: str = "") -> list[str]:
    """Dotted names of every setting, such as `training.model.d_model`."""
    names: list[str] = []
    for name, field in cls.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Settings):
            names += setting_names(nested, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def _explain(cls: type[Settings], fault: Any, section: str, file: Path | None) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    full = ".".join(part for part in (section, name) if part)
    where = full if file is None else f"{file}: {full}"
    if fault["type"] == "extra_forbidden":
        names = setting_names(cls)
        known = names + sorted({n.rsplit(".", depth)[0] for n in names for depth in range(1, n.count(".") + 1)})
        return f"{where}: there is no such setting{suggestion(name, known)}. `toto-pipeline settings` lists them all."
    found = "" if isinstance(fault.get("input"), Mapping) else f" (found {fault.get('input')!r})"
    return f"{where}: {fault['msg']}{found}. `toto-pipeline settings` describes every setting."


def _parse_assignment(text: str) -> dict[str, Any]:
    name, separator, raw = text.partition("=")
    name = name.strip()
    if not separator or not name:
        raise ConfigError(f"--set {text!r}: expected key=value, such as training.epochs=3.")
    try:
        value: Any = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = raw
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)  # YAML 1.1 reads 1e-4 as a string; a person means the number.
    for part in reversed(name.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}). Expected: a YAML file of settings.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected settings as `name: value` lines, found a {type(values).__name__}.")
    return values


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
