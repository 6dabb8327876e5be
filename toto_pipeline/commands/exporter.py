"""`exporter`: the outcomes of all runs, for Prometheus."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from toto_pipeline.commands.shared import console, examples, home_of

if TYPE_CHECKING:
    from toto_pipeline.dashboards.fleet_exporter import Champion
    from toto_pipeline.home import Home

PORT = 9464


def register(app: typer.Typer) -> None:
    app.command(epilog=examples("toto-pipeline exporter", "toto-pipeline exporter --host 0.0.0.0 --port 9500"))(
        exporter
    )


def exporter(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback let others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any that is free.")] = PORT,
    model: Annotated[str, typer.Option(help="Name of the registered model whose champion is shown.")] = "toto",
) -> None:
    """Show the outcomes of all runs of this home to Prometheus, until it is stopped.

    How many runs were promoted, refused or failed, when one last succeeded, the newest scores, the age of the data, and
    the champion. Runs that train are shown by their own exporters, live.
    """
    from prometheus_client import CollectorRegistry

    from toto_pipeline.dashboards.fleet_exporter import ChampionWatch, FleetCollector
    from toto_pipeline.monitoring.prometheus_server import MetricsServer, check_port
    from toto_pipeline.monitoring.prometheus_targets import reachable, remove_stale

    home = home_of(context)
    check_port(port, "--port")
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    remove_stale(home.root / "prometheus" / "targets")
    registry = CollectorRegistry()
    with ChampionWatch(ChampionOf(home, model)) as watch:
        collector = FleetCollector(home, watch)
        runs = collector.read_runs()  # the first time takes longest
        registry.register(collector)
        server = MetricsServer(registry, host, port)
        try:
            address = f"http://{reachable(host, server.port)}/metrics"
            console().print(f"{runs} runs of {home.root} are shown at {address}", soft_wrap=True, markup=False)
            told_to_stop.wait()
        finally:
            server.close()


class ChampionOf:
    """Asks the registry of a home, which is opened at the first question and kept.

    Raises:
        RegistryError: it cannot be reached (from a call).
    """

    def __init__(self, home: Home, model: str) -> None:
        from toto_pipeline.promotion.registry import Registry

        self._registry = Registry(home, model)

    def __call__(self) -> Champion | None:
        """Its files are not looked at: that would read gigabytes each minute."""
        from toto_pipeline.dashboards.fleet_exporter import Champion
        from toto_pipeline.promotion.registry import CHAMPION

        found = next((one for one in self._registry.versions() if CHAMPION in one.aliases), None)
        if found is None:
            return None
        return Champion(
            model=self._registry.name,
            version=found.version,
            run=found.run,
            created=found.created,
            scores=found.metrics,
        )
