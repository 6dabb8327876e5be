"""How the registry reaches MLflow, and what a person is told when it does not.

`$MLFLOW_TRACKING_URI` names the store; unset, it is the SQLite file of the home. MLflow itself is imported on first use
(3 to 7 seconds). Its own retries would wait for minutes on a server that is down, so each request is given seconds.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE_FILE = "mlflow.db"
REQUEST_SECONDS = 5
TRANSFER_SECONDS = 300
_RETRIES = 1


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps its records. `local` is the home's own SQLite file, with artifacts beside it."""

    uri: str
    local: bool

    @classmethod
    def of(cls, home: Home) -> Store:
        own = f"sqlite:///{home.registry.absolute() / DATABASE_FILE}"
        uri = os.environ.get(URI_VARIABLE) or own
        return cls(uri=uri, local=uri == own)

    def __str__(self) -> str:
        """The address, without a password."""
        return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", self.uri)

    def client(self) -> Any:
        """An `mlflow.MlflowClient`; the SQLite file's tables are created or checked on the way."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        for chatter in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        return mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @contextmanager
    def talking(self, seconds: int = REQUEST_SECONDS) -> Iterator[None]:
        """Give each request `seconds`, and turn what MLflow raises into a message with the way out.

        Raises:
            RegistryError: the store cannot be reached, or refuses.
        """
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        with _patience(seconds):
            try:
                yield
            except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
                raise RegistryError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        said = said.replace(self.uri, str(self))
        if self.uri.startswith(("http:", "https:")):
            remedy = f"start the MLflow server there, or point {URI_VARIABLE} at one that runs, or unset it"
        else:
            remedy = (
                f"check that the database can be read and written and is MLflow's; `mlflow db upgrade {self}` "
                "brings an older one up to date"
            )
        return f"The model registry at {self} cannot be used: {said} Expected: an MLflow store. What to do: {remedy}."


@contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """Set MLflow's limits for a while; a limit that the user's environment sets stays."""
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(_RETRIES)}
    ours = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
