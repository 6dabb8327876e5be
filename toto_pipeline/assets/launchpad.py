"""The core's settings as Dagster config: same names, defaults and descriptions, made from the same classes."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import dagster as dg
import pydantic
from pydantic_core import PydanticUndefined

from toto_pipeline.config import PRESET_DESCRIPTIONS, PRESETS, build, training_settings
from toto_pipeline.settings.base import Settings
from toto_pipeline.settings.monitoring import MonitoringSettings
from toto_pipeline.settings.training import TrainingSettings

MONITORING = "monitoring"


def config_class(settings: type[Settings], defaults: Settings) -> type[dg.Config]:
    """A Dagster config class with the fields of `settings` and the values of `defaults`.

    Validation stays with the core: `to_settings` runs it, so a wrong value gets the same message everywhere.
    """
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        value = getattr(defaults, name)
        if isinstance(value, Settings):
            nested = config_class(type(value), value)
            fields[name] = (nested, pydantic.Field(default_factory=nested, description=type(value).__doc__))
        else:
            fields[name] = (_plain(field.annotation), pydantic.Field(default=value, description=field.description))
    return pydantic.create_model(f"{settings.__name__}Config", __base__=dg.Config, __doc__=settings.__doc__, **fields)


def training_config_class(
    preset: str, defaults: TrainingSettings, monitoring: MonitoringSettings | None = None
) -> type[dg.Config]:
    """Config of the training: a preset, and every setting left empty where the preset's value is meant.

    Beside them stands the group `monitoring`, which no preset changes.
    """
    choices = "; ".join(f"{name}: {text}" for name, text in PRESET_DESCRIPTIONS.items())
    fields: dict[str, Any] = {
        "preset": (str, pydantic.Field(default=preset, description=f"Named settings to start from. {choices}"))
    }
    fields |= _optional_fields(TrainingSettings, defaults, ())
    group = config_class(MonitoringSettings, monitoring or MonitoringSettings())
    fields[MONITORING] = (group, pydantic.Field(default_factory=group, description=MonitoringSettings.__doc__))
    return pydantic.create_model("TrainingConfig", __base__=dg.Config, __doc__="How the model is trained.", **fields)


def to_training(config: dg.Config) -> TrainingSettings:
    """The training settings that a launchpad config means.

    Raises:
        ConfigError: a setting is wrong, or the preset does not exist.
    """
    values = config.model_dump()
    values.pop(MONITORING)
    return training_settings(values.pop("preset"), values)


def to_monitoring(config: dg.Config) -> MonitoringSettings:
    """The settings of the group `monitoring` that a launchpad config means.

    Raises:
        ConfigError: a setting is wrong, or a sink is not installed.
    """
    return build(MonitoringSettings, config.model_dump()[MONITORING], section=MONITORING)


def preset_of(config: dg.Config) -> str:
    return str(config.model_dump()["preset"])


def _optional_fields(settings: type[Settings], defaults: Settings, path: tuple[str, ...]) -> dict[str, Any]:
    """Every field optional: what differs from the preset `sample` is set, the rest is the preset's."""
    plain = settings()
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        value = getattr(defaults, name)
        if isinstance(value, Settings):
            nested = pydantic.create_model(
                f"{type(value).__name__}Overrides",
                __base__=dg.Config,
                __doc__=type(value).__doc__,
                **_optional_fields(type(value), value, (*path, name)),
            )
            fields[name] = (nested, pydantic.Field(default_factory=nested, description=type(value).__doc__))
        else:
            default = None if value == getattr(plain, name) else value
            fields[name] = (
                _optional(field.annotation),
                pydantic.Field(default=default, description=_described(field, (*path, name))),
            )
    return fields


def _plain(annotation: Any) -> Any:
    """The type. Dagster knows no list of choices, so it becomes a list of texts that the core checks."""
    inner = get_args(annotation)
    return list[str] if get_origin(annotation) is list and get_origin(inner[0]) is Literal else annotation


def _optional(annotation: Any) -> Any:
    """The type or None. Dagster knows no optional choice, so a choice becomes text that the core checks."""
    if get_origin(annotation) is Literal:
        return str | None
    return annotation if type(None) in get_args(annotation) else annotation | None


def _described(field: pydantic.fields.FieldInfo, path: tuple[str, ...]) -> str:
    values = {name: _lookup(preset, path) for name, preset in PRESETS.items()}
    plain = None if field.default is PydanticUndefined else field.default
    choices = f" One of: {', '.join(get_args(field.annotation))}." if get_origin(field.annotation) is Literal else ""
    presets = ", ".join(f"{name}: {plain if value is None else value}" for name, value in values.items())
    return f"{field.description}{choices} (Unset: {presets})"


def _lookup(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = values
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found
