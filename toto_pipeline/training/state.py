"""The whole state of a training run, as tensors and JSON, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from toto_pipeline.checkpoints.manager import State, Tensors

if TYPE_CHECKING:
    from toto_pipeline.training.trainer import Trainer


@dataclass
class Progress:
    """Optimizer steps and epochs done, and why a policy ended the run, if one did."""

    step: int = 0
    epoch: int = 0
    stopped: str | None = None


def capture(trainer: Trainer, validation_loss: float) -> State:
    """What the trainer is now. Tensors are references to the live ones, to be written before the next step."""
    tensors, groups = _optimizer_state(trainer.optimizer)
    return State(
        step=trainer.progress.step,
        epoch=trainer.progress.epoch,
        validation_loss=validation_loss,
        tensors={
            "model": dict(trainer.forecaster.module.state_dict()),
            "optimizer": tensors,
            "random": _random_state(),
        },
        values={
            "stopped": trainer.progress.stopped,
            "optimizer_groups": groups,
            "scheduler_step": trainer.scheduler.last_epoch,
            "best": trainer.best.state_dict(),
            "policies": {name: policy.state_dict() for name, policy in trainer.policies.items()},
        },
    )


def restore(state: State, trainer: Trainer) -> None:
    """Put `state` into the trainer."""
    trainer.forecaster.module.load_state_dict(dict(state.tensors["model"]))
    trainer.optimizer.load_state_dict(_nested(state.tensors["optimizer"], state.values["optimizer_groups"]))
    trainer.scheduler.last_epoch = state.values["scheduler_step"]
    trainer.best.load_state_dict(state.values["best"])
    for name, policy in trainer.policies.items():
        if name in state.values["policies"]:
            policy.load_state_dict(state.values["policies"][name])
    _set_random_state(state.tensors["random"])
    trainer.progress.step = state.step
    trainer.progress.epoch = state.epoch
    trainer.progress.stopped = state.values["stopped"]


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[Tensors, list[dict[str, Any]]]:
    """Tensors as `<parameter index>.<name>`, and the groups with their rates."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    return tensors, state["param_groups"]


def _nested(tensors: Tensors, groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}


def _random_state() -> Tensors:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda_{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_random_state(states: Tensors) -> None:
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda_{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda_{index}"], index)
