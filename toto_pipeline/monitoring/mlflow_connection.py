"""How the tracker and the registry reach MLflow, and what a person is told when they do not.

`$MLFLOW_TRACKING_URI` names the store; unset, it is the SQLite file of the home. MLflow itself is imported on first use
(2 to 7 seconds). Its own retries would wait for minutes on a server that is down, so each request is given seconds.
Nothing here touches the state that MLflow keeps for a whole process (`mlflow.set_tracking_uri`, `mlflow.start_run`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home, storage_errors

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE_FILE = "mlflow.db"
REQUEST_SECONDS = 5
TRANSFER_SECONDS = 300
_RETRIES = 1


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps its records. `local` is the home's own SQLite file, with artifacts beside it in `folder`."""

    uri: str
    local: bool
    folder: Path

    @classmethod
    def of(cls, home: Home) -> Store:
        folder = home.registry.absolute()
        own = f"sqlite:///{folder / DATABASE_FILE}"
        uri = os.environ.get(URI_VARIABLE) or own
        return cls(uri=uri, local=uri == own, folder=folder)

    @property
    def remote(self) -> bool:
        """Whether a server stands between us and the records."""
        return self.uri.startswith(("http:", "https:"))

    @property
    def page(self) -> str:
        """The address of a server's UI, without the name and password that a link must not show."""
        return re.sub(r"(?<=://)[^/@]*@", "", self.uri).rstrip("/")

    def is_empty(self) -> bool:
        """True where nothing can have been recorded: saves a first look the seconds of creating tables."""
        return self.local and not (self.folder / DATABASE_FILE).is_file()

    def __str__(self) -> str:
        """The address, without a password."""
        return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", self.uri)

    def client(self) -> Any:
        """An `mlflow.MlflowClient`; the SQLite file's tables are created or checked on the way."""
        for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):  # stdout is for programs
            os.environ.setdefault(name, "true")
        import mlflow

        for chatter in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        if not self.local:
            return mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        with self.locked("tables.lock"):  # two processes cannot create the tables at once
            client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)  # creates those of tracking
            client.search_registered_models(max_results=1)  # those of the registry
        return client

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Let in one thread of one process of this machine at a time. Not to be nested under one name."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / name).open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

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
        if self.remote:
            remedy = f"start the MLflow server there, or point {URI_VARIABLE} at one that runs, or unset it"
        else:
            remedy = (
                f"check that the database can be read and written and is MLflow's; `mlflow db upgrade {self}` "
                "brings an older one up to date"
            )
        return f"MLflow at {self} cannot be used: {said} Expected: an MLflow store. What to do: {remedy}."


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
