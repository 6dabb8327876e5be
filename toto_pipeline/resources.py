"""Dagster's handles on the core."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from pydantic import Field

from toto_pipeline.home import Home


class HomeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The folder where runs, snapshots and the registry live."""

    path: str | None = Field(default=None, description="Folder. Unset: $TOTO_HOME, else ./.toto.")

    def open(self) -> Home:
        """The home, created and proven writable."""
        home = Home(Path(self.path).expanduser().absolute()) if self.path else Home.from_environment()
        return home.prepare()
