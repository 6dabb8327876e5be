"""The whole state of a training run, as tensors and JSON, and back.

    model        weights and buffers by name
    optimizer    <parameter name>.<state name>
    trainer      sums over the running epoch, and the steps that the callbacks have not seen yet
    random       the random generators of PyTorch, <rank>.cpu and <rank>.cuda
    values       counters, callbacks, loss scale, the other random generators

The position in the data is the number of steps done: it names the epoch and the windows of every later step.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from toto_pipeline.checkpoints.manager import State, Tensors
from toto_pipeline.models.optimizer import from_indexes, load_state_by_name, state_by_name
from toto_pipeline.training.distributed import World, load_weights

if TYPE_CHECKING:
    from toto_pipeline.training.trainer import Trainer

REPORT_STEPS = 10
"""The callbacks are shown the steps in groups of so many, which costs one reading of the device for each group."""


@dataclass
class Progress:
    """How far the training is.

    Attributes:
        step: optimizer steps done, skipped ones included.
        epoch: epochs done, with their validation and decisions.
        stopped: why a callback ended the run, if one did.
        rate_factor: product of all reductions of the learning rate.
        skipped: steps skipped so far.
    """

    step: int = 0
    epoch: int = 0
    stopped: str | None = None
    rate_factor: float = 1.0
    skipped: int = 0


class Tally:
    """Running numbers of the epoch, kept on the device until somebody needs them.

    Each is a tensor of fixed shape, so that it goes into a checkpoint as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.steps = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.float64, device=device)
        self.recent = torch.zeros((REPORT_STEPS, 3), dtype=torch.float64, device=device)

    def add(self, place: int, loss: torch.Tensor, norm: torch.Tensor, skip: torch.Tensor) -> None:
        """Count a step, which is number `place` of its group."""
        self.loss_sum += torch.where(skip, 0.0, loss)
        self.steps += ~skip
        self.skipped += skip
        self.recent[place] = torch.stack([loss.double(), norm.double(), skip.double()])

    def start_epoch(self) -> None:
        for total in (self.loss_sum, self.steps, self.skipped):
            total.zero_()

    def tensors(self) -> Tensors:
        return dict(vars(self))

    def load(self, tensors: Tensors) -> None:
        for name, value in vars(self).items():
            value.copy_(tensors[name])


def capture(trainer: Trainer, metrics: Mapping[str, float]) -> State:
    """What the trainer is now. Tensors are the live ones; they are copied before the next step."""
    module = trainer.forecaster.module
    generators = trainer.world.gather(_generators(trainer.device))
    return State(
        step=trainer.progress.step,
        epoch=trainer.progress.epoch,
        metrics=metrics,
        tensors={
            "model": dict(module.state_dict()),
            "optimizer": state_by_name(module, trainer.optimizer),
            "trainer": trainer.tally.tensors(),
            "random": {
                f"{rank}.{name}": t for rank, (tensors, _) in enumerate(generators) for name, t in tensors.items()
            },
        },
        values={
            "progress": dict(vars(trainer.progress)),
            "callbacks": {name: callback.state_dict() for name, callback in trainer.callbacks.items()},
            "loss_scaler": trainer.scaler.state_dict(),
            "random": [values for _, values in generators],
        },
    )


def restore(state: State, trainer: Trainer) -> None:
    """Put `state` into the trainer."""
    if state.schema == 1:
        state = _from_schema_1(state, trainer)
    module = trainer.forecaster.module
    load_weights(module, state.tensors["model"])
    load_state_by_name(module, trainer.optimizer, state.tensors["optimizer"])
    if state.tensors["trainer"]:
        trainer.tally.load(state.tensors["trainer"])
    for name, callback in trainer.callbacks.items():
        if name in state.values["callbacks"]:
            callback.load_state_dict(state.values["callbacks"][name])
    if state.values["loss_scaler"]:
        trainer.scaler.load_state_dict(state.values["loss_scaler"])
    vars(trainer.progress).update(state.values["progress"])
    _set_generators(state, trainer.world, trainer.device)


def live_tensors(trainer: Trainer) -> dict[str, Tensors]:
    """The trainer's own tensors, to load a sharded checkpoint into."""
    return dict(capture(trainer, {}).tensors)


def _generators(device: torch.device) -> tuple[Tensors, dict[str, Any]]:
    """The random generators of this process: PyTorch's as tensors, NumPy's and Python's as JSON."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    name, keys, *rest = np.random.get_state(legacy=True)
    return tensors, {"numpy": [name, np.asarray(keys).tolist(), *rest], "python": random.getstate()}


def _set_generators(state: State, world: World, device: torch.device) -> None:
    """Give this process the generators its rank had; a rank that is new starts from numbers of its own."""
    tensors, rank = state.tensors["random"], world.rank
    if f"{rank}.cpu" not in tensors:
        torch.manual_seed(state.step * world.size + rank)
        return
    torch.set_rng_state(tensors[f"{rank}.cpu"])
    if device.type == "cuda" and f"{rank}.cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{rank}.cuda"], device)
    values = state.values["random"]
    if rank < len(values):
        np.random.set_state(tuple(values[rank]["numpy"]))
        version, keys, gauss = values[rank]["python"]
        random.setstate((version, tuple(keys), gauss))


def _from_schema_1(state: State, trainer: Trainer) -> State:
    """A state as the first format held it: at the end of an epoch, the optimizer by parameter index."""
    module = trainer.forecaster.module
    old = state.values
    best = old["best"]["best"]
    return State(
        step=state.step,
        epoch=state.epoch,
        metrics=state.metrics,
        tensors={
            "model": state.tensors["model"],
            "optimizer": from_indexes(module, state.tensors["optimizer"]),
            "trainer": {},
            "random": {f"0.{name.replace('cuda_0', 'cuda')}": t for name, t in state.tensors["random"].items()},
        },
        values={
            "progress": {"step": state.step, "epoch": state.epoch, "stopped": old["stopped"]},
            "callbacks": {} if best is None else {"best": {"best": {**best, "metrics": {}}}},
            "loss_scaler": {},
            "random": [],
        },
    )
