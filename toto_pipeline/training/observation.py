"""What a training shows of its model besides its numbers: its structure, weights, gradients, updates and forecasts.

At the start of a run one `model` event. Then of at most `monitoring.observations` epochs, spread over the run:

    in the last step        histograms weights/<tensor> (after the step) and gradients/<tensor> (as the step used them:
                            clipped), and in its `step` event update_to_weight: the norm of a tensor's change divided
                            by the norm of the tensor, the median over all tensors; and for each block as a whole
    after the validation    the figures of `forecast_figures`, and of `importance` where that is cheap or the last

Training neither waits for any of this nor is changed by it: copies are taken on the device, and the thread that writes
the log counts them. Of a sharded model every process gathers the tensors, one at a time, and the first records them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.events.histograms import MOST_VALUES, Snapshot
from toto_pipeline.events.log import EventWriter, NoLog
from toto_pipeline.events.model_structure import modules
from toto_pipeline.models.forecaster import TrainableForecaster
from toto_pipeline.settings.training import TrainingSettings
from toto_pipeline.training import importance
from toto_pipeline.training.distributed import World
from toto_pipeline.training.forecast_figures import KeptForecasts
from toto_pipeline.training.state import Progress
from toto_pipeline.training.windows import Place, window_random

MOST_TENSORS = 256
"""Of a model with more trained tensors, those with the most parameters are looked at."""
MOST_VALUES_IN_ALL = 1 << 22
"""Of a model with more parameters, only every n-th value of large tensors is looked at: 16 MB for each copy."""
IMPORTANCE_SHARE = 0.01
"""Share of an epoch's arithmetic up to which the importance of variates is computed before the end of the run."""
_PASSES_OF_A_STEP = 3
_PASSES_OF_VALIDATION = 2
_IMPORTANCE = 2**62
"""In the place of a window's index, where random numbers are drawn."""

Snapshots = dict[str, Snapshot]


def is_observed(epoch: int, epochs: int, most: int) -> bool:
    """Whether epoch number `epoch` (from 1) of `epochs` is among the at most `most` that are looked at.

    The last always is, the first too if `most` is above 1, and the others lie at equal distances.
    """
    parts = max(1, most - 1)
    is_due = epoch * parts // epochs > (epoch - 1) * parts // epochs
    return most > 0 and (is_due or (epoch == 1 and most > 1))


def observed_tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name, in the module's order; at most `MOST_TENSORS`, the largest."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    largest = set(sorted(trained, key=lambda name: -trained[name].numel())[:MOST_TENSORS])
    return {name: parameter for name, parameter in trained.items() if name in largest}


def block_of(name: str) -> str:
    """The part of a model that a parameter belongs to: a numbered layer, or else the first part of its name."""
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else name.partition(".")[0]


def update_ratios(before: Snapshots, after: Snapshots) -> dict[str, Tensor]:
    """The norm of each change divided by the norm of what it led to, as fields of a `step` event, on the device.

    `update_to_weight` is the median over the tensors (the lower of two), `update_to_weight/<block>` that of a block's
    tensors together. What is 0 and stays so has the ratio 0.
    """
    changes = {name: _norm(after[name], after[name].values - before[name].values) for name in after}
    weights = {name: _norm(after[name], after[name].values) for name in after}
    blocks: dict[str, list[str]] = {}
    for name in after:
        blocks.setdefault(block_of(name), []).append(name)
    ratios = _ratio(torch.stack(list(changes.values())), torch.stack(list(weights.values())))
    return {"update_to_weight": ratios.median()} | {
        f"update_to_weight/{block}": _ratio(_together(changes, names), _together(weights, names))
        for block, names in blocks.items()
    }


class Observation:
    """Looks at one training. Every process of it has one, and calls it at the same places.

    Args:
        most: at most so many epochs are looked at; 0 for none.
    """

    def __init__(
        self,
        *,
        forecaster: TrainableForecaster,
        settings: TrainingSettings,
        data: TrainingData,
        places: list[Place],
        world: World,
        log: EventWriter | NoLog,
        most: int,
    ) -> None:
        self._forecaster = forecaster
        self._settings = settings
        self._data = data
        self._places = places
        self._world = world
        self._log = log
        self._most = most
        self._sharded = any(isinstance(parameter, DTensor) for parameter in forecaster.module.parameters())
        self._looks = world.rank == 0 or self._sharded  # of whole models, which are all alike, only the first process
        self._tensors = observed_tensors(forecaster.module) if most else {}
        self._most_values = _most_values(self._tensors)
        self._ratios: dict[str, Tensor] = {}
        self._kept: KeptForecasts | None = None
        variates = len(data.manifest.variates)
        random = window_random(settings.seed, 0, _IMPORTANCE)
        self._plan = importance.plan(variates, places, random) if most else None

    def start(self) -> None:
        """Record what the model is made of, and what will not be shown of it, when a run begins."""
        self._log.append("model", step=0, epoch=0, modules=modules(self._forecaster.module))
        for name, text in self._notes():
            self._log.append("text", step=0, epoch=0, name=name, text=text)

    @contextlib.contextmanager
    def of_update(self, progress: Progress) -> Iterator[None]:
        """Around the optimizer's step: looks at it if it is the last of an epoch that is observed."""
        is_last = (progress.step + 1) % self._settings.steps_per_epoch == 0
        if not (is_last and self._looks and self._tensors and self._observes(progress.epoch + 1)):
            yield
            return
        gradients = self._snapshots({n: p.grad for n, p in self._tensors.items() if p.grad is not None})
        before = self._snapshots(self._tensors)
        yield
        after = self._snapshots(self._tensors)
        self._ratios = update_ratios(before, after)
        for kind, snapshots in (("weights", after), ("gradients", gradients)):
            for name, snapshot in snapshots.items():
                self._log.append(
                    "histogram",
                    step=progress.step + 1,
                    epoch=progress.epoch,
                    name=f"{kind}/{name}",
                    snapshot=snapshot,
                )
        self._log.flush_soon()  # counted while the training validates

    def take_ratios(self) -> dict[str, Tensor]:
        """What the last step's event says of its update; mostly nothing."""
        ratios, self._ratios = self._ratios, {}
        return ratios

    def watch(self, progress: Progress) -> KeptForecasts | None:
        """What the validation of an epoch, of which `progress` does not know yet, is to show its forecasts."""
        observed = self._observes(progress.epoch + 1)
        self._kept = KeptForecasts(self._data, self._places, self._settings.seed) if observed else None
        return self._kept

    def end_epoch(self, progress: Progress) -> None:
        """Record the figures of the epoch that `progress` has just counted."""
        kept, self._kept = self._kept, None
        if kept is not None:
            found = kept.figures(self._world)
            for name, figure in found:
                self._log.append("figure", step=progress.step, epoch=progress.epoch, name=name, figure=figure)
        if self._plan is not None and self._looks and self._shows_importance(self._plan, progress):
            self._record_importance(self._plan, progress)

    def _observes(self, epoch: int) -> bool:
        return is_observed(epoch, self._settings.epochs, self._most)

    def _snapshots(self, tensors: Mapping[str, Tensor]) -> Snapshots:
        return {name: Snapshot(_whole(tensor), self._most_values) for name, tensor in tensors.items()}

    def _shows_importance(self, plan: importance.Plan, progress: Progress) -> bool:
        settings = self._settings
        passes = _PASSES_OF_A_STEP * settings.steps_per_epoch * settings.batch_size
        passes += _PASSES_OF_VALIDATION * len(self._places)
        is_cheap = plan.windows <= IMPORTANCE_SHARE * passes
        is_last = progress.epoch == settings.epochs or progress.stopped is not None
        return is_last or (is_cheap and self._observes(progress.epoch))

    def _record_importance(self, plan: importance.Plan, progress: Progress) -> None:
        settings = self._settings
        rises = importance.importance(
            self._forecaster.forecast,
            self._data,
            plan,
            window_random(settings.seed, progress.epoch, _IMPORTANCE),
            batch_size=max(1, settings.batch_size // (self._world.size * settings.accumulation)),
        )
        figure = importance.figure(rises, len(self._data.manifest.variates))
        self._log.append("figure", step=progress.step, epoch=progress.epoch, name="importance", figure=figure)

    def _notes(self) -> Iterator[tuple[str, str]]:
        if not self._most:
            return
        trained = sum(parameter.requires_grad for parameter in self._forecaster.module.parameters())
        if len(self._tensors) < trained:
            yield "histograms", f"Shown are the {len(self._tensors)} largest of {trained} trained tensors."
        if self._plan is None:
            variates = len(self._data.manifest.variates)
            reason = (
                "every series has one variate"
                if variates == 1
                else f"there are {len(self._places)} validation windows, and it needs two to exchange histories"
            )
            yield "importance", f"The importance of variates is not shown: {reason}."


def _most_values(tensors: Mapping[str, Tensor]) -> int:
    """Of how many values of each tensor a copy is taken."""
    if sum(tensor.numel() for tensor in tensors.values()) <= MOST_VALUES_IN_ALL:
        return MOST_VALUES
    return MOST_VALUES_IN_ALL // len(tensors)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _norm(snapshot: Snapshot, values: Tensor) -> Tensor:
    """The norm of a tensor of which every `stride`-th value is known; 0-dimensional."""
    norm: Tensor = torch.linalg.vector_norm(values.float()) * float(snapshot.stride) ** 0.5
    return norm


def _together(norms: Mapping[str, Tensor], names: list[str]) -> Tensor:
    together: Tensor = torch.linalg.vector_norm(torch.stack([norms[name] for name in names]))
    return together


def _ratio(change: Tensor, weight: Tensor) -> Tensor:
    return torch.where(change == 0, change, change / weight)
