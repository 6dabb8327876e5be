"""The sink that shows a run to Prometheus, live.

    open    listens on a port, and tells Prometheus the address by a file (see `prometheus_targets`)
    write   takes events into the metrics (see `prometheus_metrics`); Prometheus reads them when it wants to
    close   sets the final state, waits until that has been read, takes the file away, and ends

A scrape config for it:

    scrape_configs:
      - job_name: toto_training
        honor_labels: true        # series carry the label `run` themselves
        file_sd_configs: [{files: ["<home>/prometheus/targets/*.json"]}]
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from toto_pipeline.errors import ConfigError
from toto_pipeline.events.schema import Event
from toto_pipeline.monitoring.prometheus_metrics import MOST_LABEL_SETS, RunMetrics, families
from toto_pipeline.monitoring.prometheus_server import MetricsServer, check_port
from toto_pipeline.monitoring.prometheus_targets import Owner, Target, reachable, remove_stale
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, State

LINGER_SECONDS = 18.0
"""More than the 15 seconds at which most Prometheus scrape. With the farewell, less than a follower gives its sinks."""
FAREWELL_SECONDS = 11.0
"""Prometheus looks at changed targets every 5 seconds in each of two places, and scrapes the old ones until then."""

_log = logging.getLogger(__name__)


class PrometheusExporter:
    """See the module.

    Args:
        host: the address to listen on; others than loopback let others read.
        port: 0 for any that is free, as several runs at a time need.
        file_sd: the folder of target files; `prometheus/targets` of the home by default, or of the run where it has no
            home.
        advertise: the host that Prometheus finds this machine by, where that is not `host`.
        linger_seconds: how long the final state waits to be read. Where nobody has read anything for so long from the
            start on, nobody is waited for.
        farewell_seconds: how long the server stays after that, for a Prometheus that has not yet seen that the target
            is gone and would take the silence for a crash.
        clock: monotonic seconds.

    Raises:
        ConfigError: a setting is out of range.
    """

    name = "prometheus"

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        file_sd: Path | str | None = None,
        advertise: str | None = None,
        linger_seconds: float = LINGER_SECONDS,
        farewell_seconds: float = FAREWELL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for setting, seconds in (("linger_seconds", linger_seconds), ("farewell_seconds", farewell_seconds)):
            if not seconds >= 0:
                raise ConfigError(f"prometheus.{setting}: {seconds} is no time. Expected: 0 or more seconds.")
        self._host = host
        self._port = check_port(port, "prometheus.port")
        self._file_sd = None if file_sd is None else Path(file_sd).expanduser().absolute()
        self._advertise = advertise
        self._linger_seconds = linger_seconds
        self._farewell_seconds = farewell_seconds
        self._clock = clock
        self._opened = 0.0
        self._server: MetricsServer | None = None
        self._target: Target | None = None
        self._metrics = RunMetrics()
        self._told: set[str] = set()

    def open(self, run: FollowedRun, state: State) -> None:
        """
        Raises:
            ConfigError: this machine has no such address, or the port is not for this user.
            PipelineError: the port is in use.
            StorageError: the folder of targets cannot be written.
        """
        self._metrics = RunMetrics(state)
        folder = self._file_sd or (run.home or run.folder) / "prometheus" / "targets"
        self._target = Target(folder, run.name)
        if self._server is None:
            registry = CollectorRegistry()
            registry.register(_Collector(self._families))
            self._server = MetricsServer(registry, self._host, self._port)
            self._opened = self._clock()
        address = reachable(self._advertise or self._host, self._server.port)
        self._target.publish(address, _owner(self._metrics))
        remove_stale(folder)

    def write(self, events: Sequence[Event]) -> State:
        """All of the events or, where something raises, none.

        Raises:
            StorageError: the folder of targets cannot be written.
        """
        metrics = self._metrics.copied()
        for event in events:
            metrics.add(event)
        self._show(metrics)
        return metrics.state()

    def close(self, outcome: RunOutcome | None) -> None:
        """With an outcome, takes up to `linger_seconds` and, if somebody reads, `farewell_seconds`."""
        if self._server is None or self._target is None:
            return
        was_read = False
        if outcome is not None:
            metrics = self._metrics.copied()
            metrics.end(outcome)
            self._show(metrics)
            began = self._clock() if self._server.was_read else self._opened
            was_read = self._server.wait_for_reading(began + self._linger_seconds - self._clock())
        self._target.withdraw_own()
        if was_read:
            threading.Event().wait(self._farewell_seconds)
        self._server.close()
        self._server = None

    def _show(self, metrics: RunMetrics) -> None:
        """From here on `metrics` is read by other threads, and not changed any more."""
        if self._target is not None and _depends_on(metrics) != _depends_on(self._metrics):
            self._target.own(_owner(metrics))
        self._metrics = metrics
        for metric in metrics.crowded - self._told:
            _log.warning("%s has %d series: further ones are left out, and counted", metric, MOST_LABEL_SETS)
        self._told |= metrics.crowded

    def _families(self) -> Iterator[Metric]:
        assert self._target is not None  # noqa: S101 - there is a server only once there is a target
        return families(self._target.run, self._metrics)


class _Collector(Collector):
    """What a registry asks at each reading."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _depends_on(metrics: RunMetrics) -> tuple[tuple[str, ...], bool]:
    """The processes that the target waits for, and whether it need not any more."""
    return metrics.trainers, metrics.outcome not in (None, "running")


def _owner(metrics: RunMetrics) -> Owner:
    trainers, ended = _depends_on(metrics)
    return Owner.here(trainers, ended=ended)
