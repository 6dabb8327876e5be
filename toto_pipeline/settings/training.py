"""The model, and how it is trained, kept and spread over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from toto_pipeline.settings.base import Settings
from toto_pipeline.settings.families import LARGEST_PLAIN_RATE, OWN_FAMILIES, traits, unheeded, unknown_family


class ModelSettings(Settings):
    """The architecture, and the weights to start from."""

    family: str = Field(
        "toto2",
        description="Model family: toto2, toto1, chronos (Chronos-2), or one of another package. docs/model_families.md tells of each.",
    )
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
    options: dict[str, Any] = Field(
        default_factory=dict, description="Settings of a family of another package; what they are is up to it."
    )

    @field_validator("family")
    @classmethod
    def _installed(cls, value: str) -> str:
        problem = unknown_family(value)
        if problem:
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _heeded(self) -> ModelSettings:
        problem = unheeded(
            self.family,
            {name: getattr(self, name) for name in type(self).model_fields},
            {name: field.default for name, field in type(self).model_fields.items()},
        )
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _divisible(self) -> ModelSettings:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model ({self.d_model}) must be divisible by num_heads ({self.num_heads})")
        if "layer_group_size" in traits(self.family).sizes and self.num_layers % self.layer_group_size:
            raise ValueError(
                f"num_layers ({self.num_layers}) must be a multiple of layer_group_size ({self.layer_group_size})"
            )
        return self


Mode = Literal["min", "max"]
_METRIC = "validation_loss, train_loss, or a score of the validation forecasts: MASE, WQL, coverage_80."


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al., 2021), used with `tune: lora` and merged into the weights that are published."""

    rank: int = Field(8, ge=1, description="Rank of the update of each matrix.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    targets: list[str] = Field(
        default_factory=lambda: ["in_proj", "out_proj", "fc1", "fc2"],
        min_length=1,
        description="Linear layers of the transformer that get an adapter, by the last part of their name.",
    )


class EarlyStoppingSettings(Settings):
    """Ending the training when an epoch's metric no longer gets better."""

    patience: int | None = Field(
        None, ge=1, description="Stop after so many epochs in a row without an improvement. Unset: train all epochs."
    )
    metric: str = Field("validation_loss", description=f"What is watched: {_METRIC}")
    mode: Mode = Field("min", description="Whether lower (min) or higher (max) is better.")
    min_delta: float = Field(0.0, ge=0, description="A change no larger than this is no improvement.")
    baseline: float | None = Field(
        None, description="Improvements count only once the metric is better than this value. Unset: at once."
    )
    warmup_epochs: int = Field(0, ge=0, description="Epochs at the start that are not counted.")


class PlateauSettings(Settings):
    """Lowering the learning rate when an epoch's metric no longer gets better."""

    patience: int | None = Field(
        None, ge=0, description="Lower the rate after more than so many epochs without an improvement. Unset: never."
    )
    metric: str = Field("validation_loss", description=f"What is watched: {_METRIC}")
    mode: Mode = Field("min", description="Whether lower (min) or higher (max) is better.")
    factor: float = Field(0.5, gt=0, lt=1, description="What the rate of every parameter group is multiplied by.")
    threshold: float = Field(1e-4, ge=0, description="How much better a value must be to count.")
    threshold_mode: Literal["rel", "abs"] = Field(
        "rel", description="Whether `threshold` is a share of the best value (rel) or a difference (abs)."
    )
    cooldown: int = Field(0, ge=0, description="Epochs after a reduction in which none is counted.")
    floor: float = Field(0.01, ge=0, lt=1, description="The reductions together never go below this factor.")


class TrendSettings(Settings):
    """When a warning is written about the course of the training. Warnings change nothing."""

    window: int = Field(5, ge=2, description="Epochs in the moving mean and slope of each metric.")
    overfitting_epochs: int = Field(
        3,
        ge=2,
        description="Epochs in a row in which the validation loss rises while the training loss falls, as their moving means must too.",
    )
    plateau_epochs: int = Field(10, ge=2, description="Epochs in a row without a better validation loss.")
    plateau_threshold: float = Field(1e-3, ge=0, description="Share by which a loss must be better to count.")
    divergence_factor: float = Field(2.0, gt=1, description="Training loss, as a multiple of the lowest so far.")
    explosion_factor: float = Field(
        10.0, gt=1, description="Gradient norm of a step, as a multiple of the median of the 100 steps before it."
    )
    oscillation_epochs: int = Field(
        6, ge=3, description="Epochs in a row whose training loss alternately rises and falls."
    )
    oscillation_amplitude: float = Field(
        0.05, ge=0, description="Smallest share of the loss by which it must rise or fall to count as oscillating."
    )


class CheckpointSettings(Settings):
    """When the state of the training is saved, and what is kept."""

    every_epochs: int | None = Field(1, ge=1, description="Save after every so many epochs. Unset: not by epochs.")
    every_steps: int | None = Field(None, ge=1, description="Save also after every so many steps.")
    every_minutes: float | None = Field(None, gt=0, description="Save also when so many minutes have passed.")
    asynchronous: bool = Field(
        True, description="Write in the background; the training only waits for a copy in memory."
    )
    keep_last: int = Field(3, ge=1, description="Newest checkpoints to keep.")
    keep_best: int = Field(1, ge=1, description="Best checkpoints to keep besides.")
    keep_every: int | None = Field(
        None, ge=1, description="Keep also each checkpoint whose step is a multiple of this. Unset: none."
    )
    metric: str = Field("validation_loss", description=f"What the best is best by: {_METRIC}")
    mode: Mode = Field("min", description="Whether lower (min) or higher (max) is better.")
    backup_folder: str | None = Field(
        None, description="A second folder, best on another disk, that always holds a copy of the best checkpoint."
    )
    reserve_gib: float = Field(0.2, ge=0, description="Free disk space that a checkpoint must leave, in GiB.")
    grace_seconds: float = Field(
        20.0, ge=0, description="Time that a training which is told to stop has to save and end, before it is killed."
    )


class DistributedSettings(Settings):
    """How many processes train together, and how they find each other."""

    processes: int = Field(1, ge=1, description="Training processes on each machine (one a GPU).")
    nodes: int = Field(1, ge=1, description="Machines. The others take part with `toto-pipeline join RUN`.")
    rendezvous: str | None = Field(
        None, description="host:port where the machines meet; a port of one of them that the others can reach."
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: every process holds the whole model. fsdp: weights and optimizer are sharded (FSDP2)."
    )
    timeout_seconds: float = Field(
        600.0, gt=0, description="How long a process waits for the others before it gives up and is restarted."
    )

    @model_validator(mode="after")
    def _meeting_place(self) -> DistributedSettings:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError("several nodes need a rendezvous, the host:port where they meet")
        return self

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.processes * self.nodes


class TrainingSettings(Settings):
    """The training run. Defaults are those of the preset `sample`."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    epochs: int = Field(9, ge=1, description="Epochs to train. An epoch is `steps_per_epoch` optimizer steps.")
    steps_per_epoch: int = Field(100, ge=1, description="Optimizer steps in an epoch.")
    batch_size: int = Field(16, ge=1, description="Windows in a step, over all processes and micro-batches.")
    accumulation: int = Field(
        1, ge=1, description="Micro-batches that each process computes its part of a step in; more need less memory."
    )
    tune: Literal["full", "head", "lora"] = Field(
        "full", description="full: all weights. head: only the output head. lora: low-rank adapters, merged at the end."
    )
    lora: LoraSettings = Field(default_factory=LoraSettings)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw: for all weights. muon: Muon for the matrices of the transformer's layers, AdamW for the rest; "
        "a step costs more and learns more.",
    )
    learning_rate: float = Field(
        0.1,
        gt=0,
        description="Base learning rate; u-muP scales it for each parameter group of toto2. The default of other families is "
        "1e-3, and lower with model.weights.",
    )
    muon_learning_rate: float = Field(
        0.2,
        gt=0,
        description="Base rate of Muon's matrices; learning_rate is then that of all other parameters.",
    )
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
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Number format of the forward pass. fp16 scales the loss, and skips steps that overflow."
    )
    compile: bool = Field(
        False, description="torch.compile the model: minutes of warm-up, which long runs on a GPU earn back."
    )
    deterministic: bool = Field(
        False, description="Only deterministic kernels on a GPU: slower, bit-equal from run to run. A CPU always is."
    )
    max_skipped_steps: int = Field(
        25,
        ge=1,
        description="A step whose loss or gradient is not finite is skipped; after so many in a row the run ends.",
    )
    restore_best: bool = Field(
        True, description="Publish the weights of the best epoch. Off: those of the last, also after an early stop."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, windows and masks.")
    threads: int = Field(1, ge=1, description="CPU threads of a training process.")
    loader_workers: int = Field(
        0, ge=0, description="Processes that read windows ahead of the training. 0: a thread of the training does."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    validation_batches: int = Field(16, ge=1, description="At most so many batches are validated after an epoch.")
    early_stopping: EarlyStoppingSettings = Field(default_factory=EarlyStoppingSettings)
    plateau: PlateauSettings = Field(default_factory=PlateauSettings)
    trends: TrendSettings = Field(default_factory=TrendSettings)
    callbacks: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Callbacks of your own: `package.module:Class` and the keyword arguments of each.",
    )
    checkpoints: CheckpointSettings = Field(default_factory=CheckpointSettings)
    distributed: DistributedSettings = Field(default_factory=DistributedSettings)
    max_restarts: int = Field(
        2, ge=0, description="Times a training that died is restarted from its last good checkpoint."
    )

    @field_validator("callbacks")
    @classmethod
    def _named_classes(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            module, separator, attribute = name.partition(":")
            if not (separator and module and attribute.isidentifier()):
                raise ValueError(f"{name!r} names no class; expected package.module:Class")
        return value

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_family(cls, values: Any) -> Any:
        """Each family has a default of its own."""
        if not isinstance(values, Mapping) or "learning_rate" in values:
            return values
        model = values.get("model") or {}
        family, weights = (
            (model.family, model.weights)
            if isinstance(model, ModelSettings)
            else (model.get("family", "toto2"), model.get("weights"))
            if isinstance(model, Mapping)
            else ("toto2", None)
        )
        known = traits(str(family))
        return {**values, "learning_rate": known.fine_tuning_rate if weights else known.learning_rate}

    @model_validator(mode="after")
    def _fits_the_family(self) -> TrainingSettings:
        family = self.model.family
        if family not in OWN_FAMILIES or traits(family).unit_scaled:
            return self
        if self.tune == "lora":
            raise ValueError(f"tune lora adapts unit-scaled layers, which {family} has not; with it use full or head")
        if self.optimizer == "muon":
            raise ValueError(f"optimizer muon is set up for unit-scaled layers, which {family} has not; use adamw")
        if self.distributed.strategy == "fsdp" and not traits(family).sharded:
            raise ValueError(f"strategy fsdp cannot be used with {family}, which forecasts row by row; use ddp")
        if self.learning_rate > LARGEST_PLAIN_RATE:
            raise ValueError(
                f"learning_rate {self.learning_rate:g} is a rate for the unit-scaled toto2; {family} diverges above "
                f"{LARGEST_PLAIN_RATE:g}. Leave it out for the family's own, or set one such as 1e-3"
            )
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> TrainingSettings:
        parts = self.distributed.world_size * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of processes x nodes x accumulation ({parts})"
            )
        if self.distributed.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("precision fp16 goes with strategy ddp; with fsdp use bf16")
        if self.distributed.strategy == "fsdp" and self.tune == "lora":
            raise ValueError("tune lora goes with strategy ddp; fsdp shards full weights")
        if self.optimizer == "muon" and self.tune != "full":
            raise ValueError(
                f"optimizer muon trains the matrices of the transformer's layers, which tune {self.tune} freezes; "
                "with it use optimizer adamw, or set tune to full"
            )
        return self
