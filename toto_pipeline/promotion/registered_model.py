"""One registered model of MLflow: its versions, tags and aliases, through the client that a store gives.

Nothing here explains errors or takes locks; the registry does both around it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toto_pipeline.errors import RegistryError
from toto_pipeline.monitoring.mlflow_connection import Store

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
"""Aliases of the version in production, of the one to go back to, and of the newest that is not (yet) in production."""

_PAGE = 10_000


@dataclass(frozen=True)
class State:
    """The registered model as it is now: alias to version, and its tags; empty where it does not exist yet."""

    aliases: Mapping[str, str]
    tags: Mapping[str, str]

    @property
    def champion(self) -> str | None:
        return self.aliases.get(CHAMPION)


class RegisteredModel:
    """Creating the object touches neither disk nor network."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    @functools.cached_property
    def client(self) -> Any:
        return self.store.client()

    @functools.cached_property
    def _writer(self) -> Any:
        """What `client` writes through: its own methods first read all versions, to see that the model is no prompt."""
        return self.client._get_registry_client()

    def state(self) -> State:
        # Asked for a model by its name, MLflow reads all its versions; in a search for it, only the newest.
        for found in self.client.search_registered_models(f"name = '{self.name}'", max_results=1):
            aliases = {str(alias): str(version) for alias, version in found.aliases.items()}
            return State(aliases, dict(found.tags))
        return State({}, {})

    def create(self) -> None:
        """Make the registered model unless it is there."""
        from mlflow.exceptions import MlflowException

        if self.client.search_registered_models(f"name = '{self.name}'", max_results=1):
            return
        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def find(self, version: str) -> Any | None:
        """A version; None where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(self.name, str(version))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def get(self, version: str) -> Any:
        """A version.

        Raises:
            RegistryError: there is no such version.
        """
        found = self.find(version)
        if found is None:
            raise RegistryError(
                f"The model registry at {self.store} has no version {version!r} of {self.name!r}. "
                "`toto-pipeline versions` lists what there is."
            )
        return found

    def search(self, condition: str | None = None, limit: int | None = None) -> Iterator[Any]:
        """The versions that fit a condition of MLflow's query language, newest first."""
        query = f"name = '{self.name}'" + (f" and {condition}" if condition else "")
        token: str | None = None
        left = limit
        while left is None or left > 0:
            page = self.client.search_model_versions(
                query, max_results=min(left or _PAGE, _PAGE), order_by=["version_number DESC"], page_token=token
            )
            yield from page
            token = page.token
            left = None if left is None else left - len(page)
            if not token:
                return

    def set_tags(self, version: str, tags: Mapping[str, str], known: Mapping[str, str] | None = None) -> None:
        """Set tags of a version, but those that are known to be so already."""
        for key, value in tags.items():
            if (known or {}).get(key) != value:
                self._writer.set_model_version_tag(self.name, version, key, value)

    def delete_tag(self, version: str, key: str) -> None:
        self._writer.delete_model_version_tag(self.name, version, key)

    def set_own_tag(self, key: str, value: str) -> None:
        """Set a tag of the registered model itself."""
        self._writer.set_registered_model_tag(self.name, key, value)

    def set_alias(self, alias: str, version: str) -> None:
        self._writer.set_registered_model_alias(self.name, alias, version)

    def delete_alias(self, alias: str) -> None:
        self._writer.delete_registered_model_alias(self.name, alias)
