"""The metrics of a run: which measurement is which metric of Prometheus, and what they are after some events.

`ROWS` is the one table from names to metrics. Its names are those of `measurements`, and for what is counted or known
of the run as a whole, names of the same kind that `RunMetrics` makes up:

    progress/...   where the run stands
    total/...      what has been counted since it began
    tensor/...     of the newest histogram of each name

A `RunMetrics` is a few hundred numbers, however long the run: the newest value of each name, and the counts. After
a restart of the training, steps behind its checkpoint count again, since they are done again.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event, number, spell_out
from toto_pipeline.monitoring.progress import Progress, advance

STATES = ("running", "completed", "stopped", "canceled", "failed", "killed")

BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)

MOST_LABEL_SETS = 200
"""A metric takes no more series than this, whatever a loop calls its numbers; what is left out is counted."""

INFO_LABELS = ("host", "device", "code_version", "data_fingerprint", "config_hash", "preset")
PERCENT = 0.01


@dataclass(frozen=True)
class Row:
    """A metric and the name that it comes from.

    Attributes:
        source: a name; a part in braces matches anything and becomes a label, such as {metric} in validation/{metric}.
        factor: what a value is multiplied with to be in Prometheus' base units.
        labels: labels that are always the same.
    """

    source: str
    metric: str
    help: str
    kind: Literal["gauge", "counter"] = "gauge"
    factor: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.*)", re.escape(self.source)), re.DOTALL)

    @functools.cached_property
    def label_names(self) -> tuple[str, ...]:
        return (*self.labels, *self.pattern.groupindex, *(GPU_LABELS if self.source.startswith("gpu/") else ()))


GPU_LABELS = ("uuid", "name")
"""Labels of a GPU besides its index."""

_HOME_DISK = {"disk": "home"}

ROWS: tuple[Row, ...] = (
    Row("train/loss", "toto_training_loss", "Loss of the last step; NaN where it was not a number."),
    Row("train/learning_rate", "toto_training_learning_rate", "Learning rate of the last step."),
    Row("train/gradient_norm", "toto_training_gradient_norm", "Gradient norm of the last step, before clipping."),
    Row("speed/step_seconds", "toto_training_last_step_seconds", "Seconds of the last step."),
    Row("speed/data_seconds", "toto_training_last_data_wait_seconds", "Seconds the last step waited for its batch."),
    Row("epoch/train_loss", "toto_training_epoch_loss", "Mean training loss of the last epoch."),
    Row("epoch/learning_rate", "toto_training_epoch_learning_rate", "Learning rate at the end of the last epoch."),
    Row("epoch/gradient_norm", "toto_training_epoch_gradient_norm", "Norm of the gradient over the last epoch."),
    Row("epoch/skipped_steps", "toto_training_epoch_skipped_steps", "Steps of the last epoch that were skipped."),
    Row("speed/epoch_seconds", "toto_training_epoch_seconds", "Seconds of the last epoch."),
    Row("speed/windows_per_second", "toto_training_windows_per_second", "Windows trained a second in the last epoch."),
    Row("validation/loss", "toto_training_validation_loss", "Validation loss of the last epoch."),
    Row("validation/{metric}", "toto_training_score", "Scores of the validation forecasts of the last epoch."),
    Row(
        "statistics/{metric}/{statistic}",
        "toto_training_statistic",
        "The course of each metric as of the last epoch: moving means, slopes, bests.",
    ),
    Row("checkpoint/bytes", "toto_training_last_checkpoint_bytes", "Size of the last checkpoint."),
    Row("checkpoint/seconds", "toto_training_last_checkpoint_seconds", "Seconds until it was on the disk."),
    Row(
        "checkpoint/blocked_seconds",
        "toto_training_last_checkpoint_blocked_seconds",
        "Seconds that training waited for the last checkpoint.",
    ),
    Row("progress/step", "toto_training_step", "Optimizer steps done; goes back when a restart does."),
    Row("progress/epoch", "toto_training_epoch", "Epochs done."),
    Row("progress/planned_steps", "toto_training_planned_steps", "Steps that the run is to have."),
    Row("progress/planned_epochs", "toto_training_planned_epochs", "Epochs that the run is to have."),
    Row("progress/attempt", "toto_training_attempt", "1 for the first start of the run, one more at each restart."),
    Row("progress/processes", "toto_training_processes", "Processes that train together."),
    Row("progress/parameters", "toto_training_parameters", "Parameters of the model."),
    Row("progress/trained_parameters", "toto_training_trained_parameters", "Parameters that are trained."),
    Row("progress/best_validation_loss", "toto_training_best_validation_loss", "Validation loss of the best epoch."),
    Row("progress/started", "toto_training_started_timestamp_seconds", "When the run first started, in Unix time."),
    Row("progress/last_event", "toto_training_last_event_timestamp_seconds", "Unix time of the last event."),
    Row(
        "progress/last_checkpoint",
        "toto_training_last_checkpoint_timestamp_seconds",
        "When a checkpoint was last saved, in Unix time.",
    ),
    Row(
        "progress/seconds_remaining",
        "toto_training_remaining_seconds",
        "Seconds until the planned end, at the pace of this attempt; NaN before its second step.",
    ),
    Row("total/steps", "toto_training_steps_total", "Steps done, repeated ones included.", "counter"),
    Row("total/skipped_steps", "toto_training_skipped_steps_total", "Steps skipped as not finite.", "counter"),
    Row("total/restarts", "toto_training_restarts_total", "Starts after the first.", "counter"),
    Row("total/epochs", "toto_training_epochs_total", "Epochs done, repeated ones included.", "counter"),
    Row(
        "total/data_wait_seconds",
        "toto_training_data_wait_seconds_total",
        "Seconds that steps waited for their batches.",
        "counter",
    ),
    Row("total/checkpoints/saved", "toto_training_checkpoints_saved_total", "Checkpoints saved.", "counter"),
    Row("total/checkpoints/failed", "toto_training_checkpoints_failed_total", "Checkpoints not saved.", "counter"),
    Row(
        "total/checkpoints/quarantined",
        "toto_training_checkpoints_quarantined_total",
        "Checkpoints set aside as damaged.",
        "counter",
    ),
    Row(
        "total/checkpoints/backed_up", "toto_training_checkpoints_backed_up_total", "Checkpoints backed up.", "counter"
    ),
    Row(
        "total/checkpoint_blocked_seconds",
        "toto_training_checkpoint_blocked_seconds_total",
        "Seconds that training waited for checkpoints.",
        "counter",
    ),
    Row("total/warnings/{name}", "toto_training_warnings_total", "Warnings, by what they warn of.", "counter"),
    Row(
        "total/left_out/{metric}",
        "toto_training_left_out_total",
        f"Values left out as their metric has {MOST_LABEL_SETS} series already.",
        "counter",
    ),
    Row("tensor/mean/{tensor}", "toto_training_tensor_mean", "Mean of the newest histogram of a tensor."),
    Row("tensor/deviation/{tensor}", "toto_training_tensor_deviation", "Its standard deviation."),
    Row("host/cpu_percent", "toto_host_cpu_ratio", "Busy share of all cores, 1 for all of them.", factor=PERCENT),
    Row("host/cpu_percents/{core}", "toto_host_core_cpu_ratio", "Busy share of each core.", factor=PERCENT),
    Row("host/load_1m", "toto_host_load1", "Load average over a minute."),
    Row("host/memory_total_bytes", "toto_host_memory_total_bytes", "Memory of the machine."),
    Row("host/memory_used_bytes", "toto_host_memory_used_bytes", "Memory in use."),
    Row("host/memory_available_bytes", "toto_host_memory_available_bytes", "Memory that programs can still get."),
    Row("host/memory_percent", "toto_host_memory_used_ratio", "Share of the memory that is in use.", factor=PERCENT),
    Row("host/swap_total_bytes", "toto_host_swap_total_bytes", "Swap space of the machine."),
    Row("host/swap_used_bytes", "toto_host_swap_used_bytes", "Swap space in use."),
    Row("host/disk_read_bytes_per_second", "toto_host_disk_read_bytes_per_second", "Read from all disks."),
    Row("host/disk_write_bytes_per_second", "toto_host_disk_written_bytes_per_second", "Written to all disks."),
    Row("host/network_received_bytes_per_second", "toto_host_network_received_bytes_per_second", "Received."),
    Row("host/network_sent_bytes_per_second", "toto_host_network_sent_bytes_per_second", "Sent."),
    *(
        Row(source, metric, help, factor=factor, labels=labels)
        for field_name, metric, help, factor in (
            ("disk_total_bytes", "toto_host_disk_total_bytes", "Size of a disk.", 1.0),
            ("disk_used_bytes", "toto_host_disk_used_bytes", "Space in use on a disk.", 1.0),
            ("disk_free_bytes", "toto_host_disk_free_bytes", "Free space on a disk.", 1.0),
            ("disk_percent", "toto_host_disk_used_ratio", "Share of a disk that is in use.", PERCENT),
        )
        for source, labels in ((f"host/{field_name}", _HOME_DISK), (f"host/{{disk}}_{field_name}", {}))
    ),
    Row("process/cpu_percent", "toto_process_cpu_ratio", "CPU time of the training process, 1 a core.", factor=PERCENT),
    Row(
        "process/cpu_percent_with_children",
        "toto_process_tree_cpu_ratio",
        "The same with its children.",
        factor=PERCENT,
    ),
    Row("process/resident_bytes", "toto_process_resident_memory_bytes", "Resident memory of the training process."),
    Row(
        "process/resident_bytes_with_children",
        "toto_process_tree_resident_memory_bytes",
        "The same with its children; shared memory counts for each.",
    ),
    Row("process/children", "toto_process_children", "Child processes."),
    Row("process/threads", "toto_process_threads", "Threads of the training process."),
    Row("process/open_files", "toto_process_open_files", "Open files of the training process."),
    Row("gpu/{gpu}/utilization_percent", "toto_gpu_utilization_ratio", "Share of time with work.", factor=PERCENT),
    Row(
        "gpu/{gpu}/memory_utilization_percent",
        "toto_gpu_memory_utilization_ratio",
        "Share of time in which memory was read or written.",
        factor=PERCENT,
    ),
    Row("gpu/{gpu}/memory_total_bytes", "toto_gpu_memory_total_bytes", "Memory of a GPU."),
    Row("gpu/{gpu}/memory_used_bytes", "toto_gpu_memory_used_bytes", "Its memory in use."),
    Row("gpu/{gpu}/process_memory_bytes", "toto_gpu_process_memory_bytes", "Its memory used by the training."),
    Row("gpu/{gpu}/temperature_celsius", "toto_gpu_temperature_celsius", "Temperature of a GPU."),
    Row("gpu/{gpu}/power_watts", "toto_gpu_power_watts", "Power that a GPU draws."),
    Row("gpu/{gpu}/power_limit_watts", "toto_gpu_power_limit_watts", "Power that a GPU may draw."),
    Row("gpu/{gpu}/sm_clock_hertz", "toto_gpu_sm_clock_hertz", "Clock of the multiprocessors."),
    Row("gpu/{gpu}/memory_clock_hertz", "toto_gpu_memory_clock_hertz", "Clock of the memory."),
    Row(
        "gpu/{gpu}/ecc_errors_corrected",
        "toto_gpu_ecc_corrected_errors_total",
        "Memory errors corrected since the driver was loaded.",
        "counter",
    ),
    Row(
        "gpu/{gpu}/ecc_errors_uncorrected",
        "toto_gpu_ecc_uncorrected_errors_total",
        "Memory errors that could not be corrected since the driver was loaded.",
        "counter",
    ),
    Row("{measurement}", "toto_training_measurement", "Numbers of this loop's own, by the names they have elsewhere."),
)
"""In the order in which they are shown; the first that fits a name is its metric."""

_STARTED = (
    ("attempt", "progress/attempt"),
    ("total_steps", "progress/planned_steps"),
    ("epochs", "progress/planned_epochs"),
    ("processes", "progress/processes"),
    ("parameters", "progress/parameters"),
    ("trained_parameters", "progress/trained_parameters"),
)
_COUNTED_EVENTS = {
    "checkpoint_saved": "total/checkpoints/saved",
    "checkpoint_failed": "total/checkpoints/failed",
    "checkpoint_quarantined": "total/checkpoints/quarantined",
    "checkpoint_backed_up": "total/checkpoints/backed_up",
    "epoch": "total/epochs",
}
_COUNTERS = (
    "total/steps",
    "total/skipped_steps",
    "total/restarts",
    "total/data_wait_seconds",
    "total/checkpoint_blocked_seconds",
    *_COUNTED_EVENTS.values(),
)
"""Counters that stand at 0 from the start, so that their first increase is seen as one."""


@functools.lru_cache(maxsize=4096)
def place(name: str) -> tuple[Row, tuple[str, ...]]:
    """The row of a name, and the values of its labels but those of GPUs."""
    for row in ROWS:
        found = row.pattern.fullmatch(name)
        if found is not None:
            return row, (*row.labels.values(), *found.groups())
    raise AssertionError(name)  # the last row fits every name


class RunMetrics:
    """What the metrics of a run are by now.

    `add` takes an event in. What is shown while events are taken in must be another object: `copied` gives it.

    Attributes:
        trainers: names of the processes that train, or would start the training again.
        crowded: metrics of which values were left out.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """As `state()` was; as new without."""
        state = state or {}
        stored: Mapping[str, Any] = state.get("values") or dict.fromkeys(_COUNTERS, 0)
        self.values = _numbers(stored)
        self.system = _numbers(state.get("system") or {})
        self.gpus: dict[str, tuple[str, ...]] = {key: tuple(one) for key, one in (state.get("gpus") or {}).items()}
        self.info: dict[str, str] = dict(state.get("info") or {})
        self.trainers: tuple[str, ...] = tuple(state.get("trainers") or ())
        self.outcome: str | None = state.get("outcome")
        buckets = list(state.get("buckets") or ())
        self.buckets: list[int] = buckets if len(buckets) == len(BUCKETS_SECONDS) + 1 else _no_buckets()
        self.bucket_seconds = number(state.get("bucket_seconds") or 0.0)
        self.progress = _progress(state.get("progress") or {})
        self._series = Counter(place(name)[0].metric for name in self.values)

    @property
    def crowded(self) -> frozenset[str]:
        return frozenset(place(name)[1][0] for name in self.values if name.startswith("total/left_out/"))

    def state(self) -> dict[str, Any]:
        """Everything, fit for JSON."""
        progress = self.progress
        return {
            "values": _spelled(self.values),
            "system": _spelled(self.system),
            "gpus": dict(self.gpus),
            "info": dict(self.info),
            "trainers": list(self.trainers),
            "outcome": self.outcome,
            "buckets": list(self.buckets),
            "bucket_seconds": self.bucket_seconds,
            "progress": {
                "total_steps": progress.total_steps,
                "first_step": progress.first_step,
                "first_step_seconds": spell_out(progress.first_step_seconds),
            },
        }

    def copied(self) -> RunMetrics:
        new = copy.copy(self)
        new.values, new.buckets, new._series = self.values.copy(), self.buckets.copy(), self._series.copy()
        return new

    def add(self, event: Event) -> None:
        """Take in an event; a type that is not known changes nothing but the time of the last event."""
        kind = event["type"]
        self._set("progress/last_event", event.get("time"))
        if kind == "step":
            self._add_step(event)
        elif kind == "system":
            self._add_system(event)
        else:
            for name, value in measurements(event):
                self._set(name, value)
            if kind in _COUNTED_EVENTS:
                self._count(_COUNTED_EVENTS[kind])
            if kind in _HANDLERS:
                _HANDLERS[kind](self, event)

    def end(self, outcome: str) -> None:
        """The run is over, whether or not an event has said so."""
        self.outcome = outcome
        if "progress/seconds_remaining" in self.values:
            self.values["progress/seconds_remaining"] = 0.0

    def _add_step(self, event: Event) -> None:
        found = dict(measurements(event))
        values = self.values
        if found.keys() <= values.keys():
            values.update(found)
        else:
            for name, value in found.items():
                self._set(name, value)
        values["total/steps"] += 1
        if not math.isfinite(found.get("train/loss", 0.0)) or not math.isfinite(found.get("train/gradient_norm", 0.0)):
            values["total/skipped_steps"] += 1
        seconds = found.get("speed/step_seconds", math.nan)
        if 0 <= seconds < math.inf:
            self.buckets[bisect_left(BUCKETS_SECONDS, seconds)] += 1
            self.bucket_seconds += seconds
        self._count("total/data_wait_seconds", found.get("speed/data_seconds", 0.0))
        self._set_place(event)

    def _set_place(self, event: Event) -> None:
        step = event.get("step")
        self._set("progress/step", step)
        self._set("progress/epoch", event.get("epoch"))
        if not self.progress.total_steps or step is None:
            return
        moment = {"type": "step", "step": step, "monotonic": event.get("monotonic")}
        if self.progress.first_step is None:
            self.progress = advance(self.progress, moment)
        self._set("progress/seconds_remaining", advance(self.progress, moment).seconds_remaining)

    def _add_epoch(self, event: Event) -> None:
        self._set("progress/step", event.get("step"))
        self._set("progress/epoch", event.get("epoch"))
        if event.get("is_best") is True:
            self._set("progress/best_validation_loss", self.values.get("validation/loss"))

    def _add_start(self, event: Event) -> None:
        for field_name, name in _STARTED:
            self._set(name, event.get(field_name))
        self._set("progress/step", event.get("resumed_from") or 0)
        if "progress/started" not in self.values:
            self._set("progress/started", event.get("time"))
        restarts = event.get("attempt", 1) - 1
        self.values["total/restarts"] = max(self.values["total/restarts"], float(restarts))
        self.values.pop("progress/seconds_remaining", None)
        self.outcome = "running"
        self.progress = Progress(total_steps=int(event.get("total_steps") or 0))
        self.trainers = tuple(str(event[name]) for name in ("process", "supervisor") if event.get(name))
        facts = {**event, "preset": _preset(event)}
        self.info = {name: str(facts[name]) for name in INFO_LABELS if facts.get(name) is not None}

    def _add_end(self, event: Event) -> None:
        self.end(str(event.get("outcome")))

    def _add_checkpoint(self, event: Event) -> None:
        self._set("progress/last_checkpoint", event.get("time"))
        blocked = dict(measurements(event)).get("checkpoint/blocked_seconds", 0.0)
        self._count("total/checkpoint_blocked_seconds", blocked)

    def _add_warning(self, event: Event) -> None:
        name = f"total/warnings/{event.get('name')}"
        self._count(name if name in self.values or self._admit(name) else "total/warnings/other")

    def _add_histogram(self, event: Event) -> None:
        for field_name in ("mean", "deviation"):
            if event.get(field_name) is not None:
                self._set(f"tensor/{field_name}/{event.get('name')}", number(event[field_name]))

    def _add_system(self, event: Event) -> None:
        """A reading stands for the one before as a whole: what it does not have is not known any more."""
        self.system = {name: value for name, value in measurements(event) if not name.endswith("/index")}
        self.gpus = {
            str(index): tuple(str(gpu.get(label, "")) for label in GPU_LABELS)
            for index, gpu in enumerate(event.get("gpus") or ())
        }

    def _set(self, name: str, value: Any) -> None:
        """Nothing where the event does not have the value."""
        if not isinstance(value, int | float):
            return
        if name in self.values or self._admit(name):
            self.values[name] = float(value)
        else:
            self._count(f"total/left_out/{place(name)[0].metric}")

    def _count(self, name: str, amount: float = 1.0) -> None:
        if amount >= 0:  # NaN is not
            self.values[name] = self.values.get(name, 0.0) + amount

    def _admit(self, name: str) -> bool:
        """Whether the metric of a new name takes one more series; one more is then counted."""
        metric = place(name)[0].metric
        taken = self._series.get(metric, 0)
        if taken >= MOST_LABEL_SETS:
            return False
        self._series[metric] = taken + 1
        return True


_HANDLERS = {
    "run_started": RunMetrics._add_start,
    "epoch": RunMetrics._add_epoch,
    "checkpoint_saved": RunMetrics._add_checkpoint,
    "warning": RunMetrics._add_warning,
    "histogram": RunMetrics._add_histogram,
    "run_ended": RunMetrics._add_end,
}


def families(run: str, metrics: RunMetrics) -> Iterator[Metric]:
    """What is shown of a run, every series with its label `run`."""
    yield _info(run, metrics)
    yield _state(run, metrics)
    yield _step_seconds(run, metrics)
    found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for name, value in (*metrics.values.items(), *metrics.system.items()):
        row, labels = place(name)
        if row.metric not in found:
            found[row.metric] = _FAMILIES[row.kind](row.metric, row.help, labels=("run", *row.label_names))
        if name.startswith("gpu/"):
            labels = (*labels, *metrics.gpus.get(labels[0], ("",) * len(GPU_LABELS)))
        found[row.metric].add_metric((run, *labels), value * row.factor)
    yield from (found[metric] for metric in dict.fromkeys(row.metric for row in ROWS) if metric in found)


_FAMILIES: Mapping[str, type[GaugeMetricFamily] | type[CounterMetricFamily]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
}


def _info(run: str, metrics: RunMetrics) -> Metric:
    info = InfoMetricFamily("toto_training_run", "The run, and what it was started with.", labels=("run",))
    info.add_metric((run,), metrics.info)
    return info


def _state(run: str, metrics: RunMetrics) -> Metric:
    state = GaugeMetricFamily("toto_training_state", "1 for the state that the run is in.", labels=("run", "state"))
    for name in STATES:
        state.add_metric((run, name), float(name == metrics.outcome))
    return state


def _step_seconds(run: str, metrics: RunMetrics) -> Metric:
    seconds = HistogramMetricFamily("toto_training_step_seconds", "Seconds of each step.", labels=("run",))
    names = (*(str(edge) for edge in BUCKETS_SECONDS), "+Inf")
    counts = accumulate(metrics.buckets)
    seconds.add_metric((run,), list(zip(names, counts, strict=True)), metrics.bucket_seconds)
    return seconds


def _preset(event: Event) -> str | None:
    config = event.get("config")
    return config.get("preset") if isinstance(config, Mapping) else None


def _progress(stored: Mapping[str, Any]) -> Progress:
    """As much of it as the time remaining takes."""
    return Progress(
        total_steps=stored.get("total_steps") or 0,
        first_step=stored.get("first_step"),
        first_step_seconds=number(stored.get("first_step_seconds")),
    )


def _no_buckets() -> list[int]:
    return [0] * (len(BUCKETS_SECONDS) + 1)


def _numbers(stored: Mapping[str, Any]) -> dict[str, float]:
    return {name: number(value) for name, value in stored.items()}


def _spelled(values: Mapping[str, float]) -> dict[str, Any]:
    """The values with NaN and the infinities as names. Few are, so only those are looked at closer."""
    return {name: value if value - value == 0 else spell_out(value) for name, value in values.items()}
