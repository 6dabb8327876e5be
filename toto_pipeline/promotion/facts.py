"""What the gate is told beside the scores: how the training ended, the weights, the data, time and size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home

if TYPE_CHECKING:
    from toto_pipeline.data.training_files import TrainingDataManifest
    from toto_pipeline.evaluation.backtest import Evaluation

FINISHED = ("completed", "stopped")
"""Outcomes of a training that came to its end: all epochs, or a policy ended it."""
UNFINISHED = "unfinished"
"""Outcome of a training whose last start has no end in the log."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """None stands for what is not known.

    outcome: as `run_ended` says, or unfinished; reason: of that outcome. steps: of the training, skipped_steps among
    them. bad_weights: names of the tensors that are not finite. model_bytes: of all files of the model. seconds: model
    key to how long the forecast of one window of one series took, on average. mended: sentences about the data, one
    for each thing that was mended or left out. rolled_back: which version with these very weights a rollback took out,
    when and why.
    """

    outcome: str | None = None
    reason: str | None = None
    steps: int | None = None
    skipped_steps: int | None = None
    bad_weights: tuple[str, ...] | None = None
    model_bytes: int | None = None
    seconds: Mapping[str, float] | None = None
    has_champion: bool = False
    mended: tuple[str, ...] | None = None
    rolled_back: str | None = None


def read_facts(
    home: Home,
    run_folder: Path,
    evaluation: Evaluation,
    data: TrainingDataManifest,
    *,
    has_champion: bool,
) -> Facts:
    """The facts of a run that was trained and evaluated.

    Raises:
        DataError: the manifest of the snapshot is damaged.
        StorageError: the event log cannot be read.
    """
    model = run_folder / "model"
    return Facts(
        **training_facts(read_events(run_folder)),
        bad_weights=nonfinite_weights(model),
        model_bytes=sum(file.stat().st_size for file in model.rglob("*") if file.is_file()),
        seconds=seconds_per_forecast(evaluation),
        has_champion=has_champion,
        mended=_mended(home, data),
    )


def training_facts(events: Iterable[Event]) -> dict[str, Any]:
    """outcome, reason, steps and skipped_steps out of a run's log; of an epoch that was trained twice, the later."""
    outcome: str | None = None
    reason: str | None = None
    skipped: dict[int, int] = {}
    steps = 0
    for event in events:
        if event["type"] == "run_started":
            outcome, reason = UNFINISHED, None
        elif event["type"] == "run_ended":
            outcome, reason = event["outcome"], event.get("reason")
        elif event["type"] == "epoch" and event.get("skipped_steps") is not None:
            skipped[event.get("epoch", 0)] = int(event["skipped_steps"])
            steps = event.get("step", steps)
    return {
        "outcome": outcome,
        "reason": reason,
        "steps": steps if skipped else None,
        "skipped_steps": sum(skipped.values()) if skipped else None,
    }


def nonfinite_weights(folder: Path) -> tuple[str, ...] | None:
    """Names of the tensors in the safetensors files of a model that hold a NaN or an infinity; one in memory at a time.

    None where the folder holds no such file.
    """
    import torch
    from safetensors import safe_open

    files = sorted(folder.rglob("*.safetensors"))
    bad: list[str] = []
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            bad += [name for name in tensors.keys() if not torch.isfinite(tensors.get_tensor(name).float()).all()]  # noqa: SIM118
    return tuple(sorted(bad)) if files else None


def seconds_per_forecast(evaluation: Evaluation) -> dict[str, float]:
    """Model key to seconds for one window of one series."""
    import pyarrow.compute as pc

    scores = evaluation.scores
    counts = pc.value_counts(scores.column("model").cast("string")).to_pylist()
    rows = {each["values"]: each["counts"] for each in counts}
    variates = len(pc.unique(scores.column("variate")))
    return {key: seconds * variates / rows[key] for key, seconds in evaluation.seconds.items() if rows.get(key)}


def _mended(home: Home, data: TrainingDataManifest) -> tuple[str, ...] | None:
    from toto_pipeline.data.snapshot import open_snapshot

    folder = home.snapshots / data.snapshot
    if not folder.is_dir():
        return None  # it was deleted, and what was mended in it is no longer on record
    return (*open_snapshot(folder).manifest.repairs, *data.repairs, *data.dropped)
