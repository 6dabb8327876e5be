"""Every setting once: typed, validated and described.

A YAML file, `--set key=value` on the command line and Dagster's launchpad all end in these classes, so a setting has
one name, one default and one description wherever it is met. Later layers win:

    defaults  <  preset  <  YAML file  <  --set key=value
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toto_pipeline.errors import ConfigError

SAMPLE = "sample"
CONFIG_VARIABLE = "TOTO_CONFIG"
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of these settings."""
        return fingerprint(self.model_dump(mode="json"))


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class DataSettings(Settings):
    """Where the series come from, how they are laid out, and what to do about faults in them."""

    source: str = Field(
        SAMPLE,
        description="'sample' for the bundled data set, or a file, folder or glob of CSV or Parquet files.",
    )
    layout: Literal["auto", "wide", "long", "symbols"] = Field(
        "auto",
        description="wide: a timestamp column and one column a series. long: rows of id, timestamp, target. symbols: one "
        "file a series, its columns the variates (Open, High, Low, ...). auto: recognised from the column names.",
    )
    timestamp_column: str | None = Field(
        None,
        description="Name of the timestamp column. Unset: timestamp, ds, date, datetime, time and the like are recognised.",
    )
    id_column: str | None = Field(
        None,
        description="Name of the series id column of a long layout. Unset: item_id, unique_id, id, series_id are recognised.",
    )
    value_columns: list[str] = Field(
        default_factory=list,
        description="The value columns to use. Empty: all numeric columns (wide, symbols) or target, y, value (long).",
    )
    duplicates: Literal["error", "first", "last", "mean"] = Field(
        "error",
        description="Rows of one series with the same timestamp: refuse the data, or keep the first, the last or their mean.",
    )
    unsorted: Literal["error", "sort"] = Field(
        "error", description="Rows whose timestamps go backwards: refuse the data, or sort them."
    )
    constant_series: Literal["error", "drop", "keep"] = Field(
        "error", description="A series whose value never changes: refuse the data, leave the series out, or keep it."
    )
    missing_series: Literal["error", "drop"] = Field(
        "error", description="A series without a single value: refuse the data, or leave the series out."
    )
    infinities: Literal["error", "missing"] = Field(
        "error", description="Infinite values: refuse the data, or treat them as missing."
    )
    vanished: Literal["error", "accept"] = Field(
        "error",
        description="A series of the last snapshot of this source that is no longer there: refuse the data, or accept it.",
    )


class PreparationSettings(Settings):
    """How series become training, validation and test data. All cuts are points in time."""

    context_length: int = Field(512, ge=8, description="Steps of history the model sees before it forecasts.")
    horizon: int = Field(96, ge=1, description="Steps to forecast.")
    season: int | None = Field(
        None,
        ge=1,
        description="Steps in a season, for MASE and the seasonal naive baseline. Unset: from the frequency (a day for minutes and hours, a week for days, ...).",
    )
    frequency: str | None = Field(
        None, description="Step between rows, as pandas writes it (10min, h, D). Unset: inferred from the timestamps."
    )
    irregular: Literal["error", "mean"] = Field(
        "error",
        description="Timestamps off the regular grid: refuse the data, or average them into the grid step they fall in.",
    )
    short_series: Literal["error", "drop"] = Field(
        "error", description="A series too short to train and test on: refuse the data, or leave the series out."
    )
    validation_windows: int = Field(
        2, ge=1, description="Horizons held out before the test span, for validation after each epoch."
    )
    test_windows: int = Field(5, ge=1, description="Horizons held out at the end, for evaluation and promotion.")


class ModelSettings(Settings):
    """The architecture, and the weights to start from."""

    family: Literal["toto2"] = Field("toto2", description="Model family.")
    weights: str | None = Field(
        None,
        description="Start from these weights: a Hugging Face id (Datadog/Toto-2.0-4m) or a local folder. The architecture then "
        "comes from its config.json. Unset: from scratch.",
    )
    patch_size: int = Field(16, ge=1, description="Steps in a patch.")
    d_model: int = Field(64, ge=8, description="Width of the model.")
    num_heads: int = Field(2, ge=1, description="Attention heads; must divide d_model.")
    num_layers: int = Field(4, ge=1, description="Transformer layers; a multiple of layer_group_size.")
    d_ff: int | None = Field(None, ge=8, description="Width of the feed-forward layers. Unset: 8/3 of d_model.")
    layer_group_size: int = Field(4, ge=1, description="Layers in a group; the last of each attends across variates.")

    @model_validator(mode="after")
    def _divisible(self) -> ModelSettings:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model ({self.d_model}) must be divisible by num_heads ({self.num_heads})")
        if self.num_layers % self.layer_group_size:
            raise ValueError(
                f"num_layers ({self.num_layers}) must be a multiple of layer_group_size ({self.layer_group_size})"
            )
        return self


class TrainingSettings(Settings):
    """The training run. Defaults are those of the preset `sample`."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    epochs: int = Field(9, ge=1, description="Epochs to train. An epoch is `steps_per_epoch` optimizer steps.")
    steps_per_epoch: int = Field(100, ge=1, description="Optimizer steps in an epoch.")
    batch_size: int = Field(16, ge=1, description="Windows in a step, over all processes.")
    learning_rate: float = Field(0.1, gt=0, description="Base learning rate; u-muP scales it for each parameter group.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps over which the rate rises from 0.")
    decay_fraction: float = Field(
        0.3, ge=0, le=1, description="Share of the steps over which the rate falls to 0 at the end."
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1e-4,
        description="Not scaled by the learning rate: 1e-4 takes 0.01 % off the weights at each step.",
    )
    gradient_clip: float = Field(
        1.0, gt=0, description="Largest gradient norm; larger gradients are scaled down to it."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the forward pass.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, windows and masks.")
    threads: int = Field(1, ge=1, description="CPU threads of a training process.")
    loader_workers: int = Field(0, ge=0, description="Processes that read windows ahead of the training.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    validation_batches: int = Field(16, ge=1, description="At most so many batches are validated after an epoch.")
    patience: int | None = Field(
        None, ge=1, description="Stop after so many epochs without a better validation loss. Unset: train all epochs."
    )
    keep_checkpoints: int = Field(3, ge=1, description="Newest checkpoints to keep besides the best.")
    processes: int = Field(1, ge=1, description="Training processes on this machine (one a GPU).")
    max_restarts: int = Field(
        2, ge=0, description="Times a training that died is restarted from its last good checkpoint."
    )


class EvaluationSettings(Settings):
    """How models are compared on the test span."""

    batch_size: int = Field(64, ge=1, description="Windows forecast at once.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(1, ge=1, description="CPU threads used for forecasting.")
    pictures: int = Field(6, ge=0, le=50, description="Series to draw: the best, the middle and the worst by MASE.")


class PromotionSettings(Settings):
    """When a new model replaces the champion."""

    model_name: str = Field("toto", min_length=1, description="Name of the registered model in MLflow.")
    metric: Literal["MASE", "SQL", "WQL", "WAPE"] = Field(
        "SQL", description="The metric that decides; lower is better."
    )
    tolerated_loss: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="How much worse than the champion is still accepted, as a share of the champion's score.",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence with which the new model must beat the baseline and not fall behind the champion.",
    )
    resamples: int = Field(2000, ge=100, description="Bootstrap resamples of the paired windows.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class ScheduleSettings(Settings):
    """When the nightly retraining starts. The schedule is off until it is switched on in the UI."""

    cron: str = Field("0 2 * * *", description="Cron expression: minute, hour, day of month, month, day of week.")
    time_zone: str = Field("UTC", description="IANA time zone of the cron expression, such as Europe/Paris.")

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError(f"there is no time zone {value!r}{_suggestion(value, zoneinfo.available_timezones())}")
        return value


class RetrainSettings(Settings):
    """One retraining, whole."""

    preset: str = Field(
        "sample", description="Named settings to start from: sample, or toto2-4m for the released architecture."
    )
    data: DataSettings = Field(default_factory=DataSettings)
    preparation: PreparationSettings = Field(default_factory=PreparationSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
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
            f"preset: there is no {name!r}{_suggestion(name, PRESETS)}. Expected one of: {', '.join(PRESETS)}."
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
        return f"{where}: there is no such setting{_suggestion(name, known)}. `toto-pipeline settings` lists them all."
    found = "" if isinstance(fault.get("input"), Mapping) else f" (found {fault.get('input')!r})"
    return f"{where}: {fault['msg']}{found}. `toto-pipeline settings` describes every setting."


def _suggestion(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        leaf = name.rsplit(".", 1)[-1]
        leaves = {candidate.rsplit(".", 1)[-1]: candidate for candidate in known}
        close = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    return f"; did you mean {close[0]!r}?" if close else ""


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
