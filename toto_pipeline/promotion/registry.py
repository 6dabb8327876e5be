"""Which model is in production, and every model that was ever considered: the MLflow Model Registry.

    register   the model's files, scores and lineage become a version; refused models too, so that they can be looked at
    promote    the alias `champion` moves to a version, `previous` to the one it replaces
    champion   the version in production, its files checked against the hashes taken when it was registered

The alias is the one truth; moving it is a single atomic write. Everything else happens before it, in an order in which
a second attempt finds and completes what a killed one left behind:

    the MLflow run (params, metrics, tags) -> files -> run FINISHED -> version with its tags -> previous -> champion

Locally the files lie below `registry/artifacts` of the home and are found from there, so that a home can be moved. With
a server they are uploaded, and downloaded to the home's cache when needed. A file lock lets one process of a machine
write at a time; promotions from different machines to one server are not ordered, since MLflow offers no
compare-and-set.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.manifest import FileRecord, describe_files, sha256_of
from toto_pipeline.checkpoints.store import publish_folder
from toto_pipeline.errors import ConfigError, RegistryError
from toto_pipeline.events.schema import number, spell_out
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import TRANSFER_SECONDS, Store
from toto_pipeline.monitoring.mlflow_run import (
    RUN_TAG,
    artifact_folder,
    log_params,
    log_scores,
    log_tags,
    open_run,
    quotable,
)
from toto_pipeline.settings.base import fingerprint

CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases of the version in production, and of the one before it."""

_RUN, _FILES, _METRICS = RUN_TAG, "toto.files", "toto.metrics"
_ARTIFACT = "model"
_PLAIN_NAME = re.compile(r"[\w][\w .-]*")


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A registered model. `path` holds its files (with a server, once `champion` or `fetch` has brought them).

    metrics: as registered. run: the id of our run that made it. created: Unix seconds.
    """

    version: str
    path: Path
    metrics: Mapping[str, float]
    run: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: float


class Registry:
    """The versions of one registered model. Creating the object touches neither disk nor network.

    Every method raises RegistryError, within seconds, when the store cannot be reached; the message names it.
    """

    def __init__(self, home: Home, model_name: str) -> None:
        """
        Raises:
            ConfigError: MLflow allows no such name.
        """
        if not _PLAIN_NAME.fullmatch(model_name):
            raise ConfigError(
                f"promotion.model_name: {model_name!r} cannot name a registered model. Expected: letters, digits, "
                "spaces, dots, dashes and underscores, beginning with a letter or digit."
            )
        self.name = model_name
        self.store = Store.of(home)
        self._cache = home.cache.absolute() / "registry"

    def champion(self) -> ModelVersion | None:
        """The version in production, its files verified; None where there is none.

        Raises:
            RegistryError: a file is missing or was changed since it was registered.
        """
        if self.store.is_empty():
            return None
        with self.store.talking():
            version = self._aliases().get(CHAMPION)
        return None if version is None else self.fetch(version)

    def versions(self) -> list[ModelVersion]:
        """All versions, newest first; their files are neither brought nor verified."""
        if self.store.is_empty():
            return []
        with self.store.talking():
            aliases = self._aliases()
            return [self._as_version(found, aliases) for found in self._search(f"name = '{self.name}'")]

    def fetch(self, version: str) -> ModelVersion:
        """One version with its files on this machine, verified.

        Raises:
            RegistryError: there is no such version, or a file is missing or was changed.
        """
        with self.store.talking():
            aliases = self._aliases()
            found = self._get(version)
            model = self._as_version(found, aliases)
            files = self._recorded_files(found)
        if not self.store.local and _difference(model.path, files) is not None:
            self._download(str(found.run_id), model.path)
        difference = _difference(model.path, files)
        if difference is not None:
            raise RegistryError(self._damaged(model, aliases, difference))
        return model

    def register(
        self,
        folder: Path,
        *,
        run: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """Keep the model files of `folder` as a new version.

        Called again for the same run it returns the version that is there, with `tags` laid over its own, or completes
        the one that a killed attempt began.

        Args:
            tags: lineage and decision, such as `data_fingerprint`, `code_version`, `decision`, `reasons`.
            params: settings of the run; nested mappings get dotted names.

        Raises:
            RegistryError: the folder is empty, or the run is registered with other files.
            StorageError: the registry's folder cannot be written.
        """
        files = describe_files(folder)
        if not files:
            raise RegistryError(
                f"{folder}: holds no model to register. Expected: the files of the trained model. "
                "What to do: train first."
            )
        with self.store.talking(), self._writing():
            found = self._of_run(run)
            if found is None:
                return self._create(folder, files, run=run, metrics=metrics, tags=tags, params=params or {})
            self._refuse_other_files(found, files, run)
            for key, value in tags.items():
                if found.tags.get(key) != value:
                    self._client.set_model_version_tag(self.name, found.version, key, value)
            return self._as_version(self._get(str(found.version)), self._aliases())

    def promote(self, version: str, *, expected_champion: str | None) -> None:
        """Make `version` the champion and the one it replaces `previous`. Promoting the champion changes nothing.

        Args:
            expected_champion: the version that was champion when the models were compared, None where there was none.

        Raises:
            RegistryError: another version has become champion since, or the version's files are damaged.
        """
        with self.store.talking(), self._writing():
            current = self._aliases().get(CHAMPION)
            if current == str(version):
                return
            if current != expected_champion:
                raise RegistryError(self._overtaken(version, expected_champion, current))
            self.fetch(version)
            if current is not None:
                self._client.set_registered_model_alias(self.name, PREVIOUS, current)
            self._client.set_registered_model_alias(self.name, CHAMPION, str(version))

    @functools.cached_property
    def _client(self) -> Any:
        return self.store.client()

    def _writing(self) -> AbstractContextManager[None]:
        """One writer a machine."""
        return self.store.locked("lock")

    def _create(
        self,
        folder: Path,
        files: Mapping[str, FileRecord],
        *,
        run: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> ModelVersion:
        client = self._client
        self._create_registered_model()
        mlflow_run = open_run(self.store, client, run)
        run_id = str(mlflow_run.info.run_id)
        log_params(client, run_id, params)
        log_tags(client, run_id, tags)
        log_scores(client, mlflow_run, metrics)
        self._store_files(folder, run_id)
        client.set_terminated(run_id, "FINISHED")
        recorded = {name: [record.bytes, record.sha256] for name, record in files.items()}
        own = {
            _RUN: run,
            _FILES: json.dumps(recorded, sort_keys=True),
            _METRICS: json.dumps(spell_out({name: float(value) for name, value in metrics.items()})),
        }
        source = f"{mlflow_run.info.artifact_uri}/{_ARTIFACT}"
        created = client.create_model_version(self.name, source, run_id=run_id, tags={**tags, **own})
        return self._as_version(self._get(str(created.version)), self._aliases())

    def _create_registered_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _store_files(self, folder: Path, run_id: str) -> None:
        if self.store.local:
            publish_folder(self._local_path(run_id), lambda new: _copy_files(folder, new))
        else:
            with self.store.talking(TRANSFER_SECONDS):
                self._client.log_artifacts(run_id, str(folder), _ARTIFACT)

    def _download(self, run_id: str, target: Path) -> None:
        def fill(new: Path) -> None:
            with self.store.talking(TRANSFER_SECONDS):
                brought = self._client.download_artifacts(run_id, _ARTIFACT, str(new))
            for file in Path(brought).iterdir():
                file.rename(new / file.name)
            Path(brought).rmdir()

        publish_folder(target, fill)

    def _local_path(self, run_id: str) -> Path:
        return artifact_folder(self.store, run_id) / _ARTIFACT

    def _path(self, found: Any) -> Path:
        if self.store.local:
            return self._local_path(str(found.run_id))
        server = fingerprint(self.store.uri)[:8]
        return self._cache / f"{server}-{self.name}-{found.version}"

    def _aliases(self) -> dict[str, str]:
        """Alias to version of the registered model; empty where it does not exist yet."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self._client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {str(alias): str(version) for alias, version in aliases.items()}

    def _get(self, version: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version(self.name, str(version))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise RegistryError(
                    f"The model registry at {self.store} has no version {version!r} of {self.name!r}. "
                    "`toto-pipeline runs` lists what was trained, with the versions."
                ) from None
            raise

    def _search(self, query: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._client.search_model_versions(
                query, max_results=10_000, order_by=["version_number DESC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _of_run(self, run: str) -> Any | None:
        return next(self._search(f"name = '{self.name}' and tags.`{_RUN}` = '{quotable(run)}'"), None)

    def _as_version(self, found: Any, aliases: Mapping[str, str]) -> ModelVersion:
        own = (_RUN, _FILES, _METRICS)
        metrics = json.loads(found.tags.get(_METRICS, "{}"))
        return ModelVersion(
            version=str(found.version),
            path=self._path(found),
            metrics={name: number(value) for name, value in metrics.items()},
            run=str(found.tags.get(_RUN, "")),
            tags={key: value for key, value in found.tags.items() if key not in own},
            aliases=tuple(sorted(alias for alias, version in aliases.items() if version == str(found.version))),
            created=found.creation_timestamp / 1000,
        )

    def _recorded_files(self, found: Any) -> dict[str, FileRecord]:
        try:
            recorded = json.loads(found.tags[_FILES])
            return {name: FileRecord(int(size), str(digest)) for name, (size, digest) in recorded.items()}
        except (KeyError, ValueError, TypeError, AttributeError):
            raise RegistryError(
                f"Version {found.version} of {self.name!r} in the model registry at {self.store} carries no file "
                "hashes, so its files cannot be verified. Expected: a version that this pipeline registered. What to "
                f"do: give the alias {CHAMPION!r} to such a version in MLflow, or use another promotion.model_name."
            ) from None

    def _refuse_other_files(self, found: Any, files: Mapping[str, FileRecord], run: str) -> None:
        recorded = self._recorded_files(found)
        changed = sorted(name for name in {*files, *recorded} if files.get(name) != recorded.get(name))
        if changed:
            raise RegistryError(
                f"Run {run} is already registered as version {found.version} of {self.name!r}, with other content of "
                f"{', '.join(changed)}. Expected: the files that were registered. What to do: start a new run for a "
                "new model."
            )

    def _overtaken(self, version: str, expected: str | None, current: str | None) -> str:
        compared = "no champion" if expected is None else f"version {expected}"
        now = "there is none" if current is None else f"it is version {current}"
        return (
            f"Version {version} of {self.name!r} is not promoted: it was compared with {compared} as the champion, and "
            f"now {now}. Expected: the champion of the evaluation. What to do: evaluate again, against the present "
            "champion."
        )

    def _damaged(self, model: ModelVersion, aliases: Mapping[str, str], difference: str) -> str:
        before = aliases.get(PREVIOUS)
        other = f"version {before}, which was champion before" if before else "another version"
        remedy = "restore the file from a backup"
        if CHAMPION in model.aliases:
            remedy += (
                f", or give the alias {CHAMPION!r} to {other} (`mlflow ui --backend-store-uri {self.store}` shows the "
                "versions and their aliases), or remove the alias to start anew"
            )
        return (
            f"{difference}. It belongs to version {model.version} of {self.name!r} and is not what was registered. "
            f"Expected: the files as registered by run {model.run}. What to do: {remedy}."
        )


def _difference(folder: Path, files: Mapping[str, FileRecord]) -> str | None:
    """The first way in which a folder is not as recorded, in words; None where it is."""
    for name, record in files.items():
        file = folder / name
        if not file.is_file():
            return f"{file}: is missing"
        size = file.stat().st_size
        if size != record.bytes:
            return f"{file}: has {size} bytes, registered were {record.bytes}"
        if sha256_of(file) != record.sha256:
            return f"{file}: its content was changed (its SHA-256 is not the registered one)"
    return None


def _copy_files(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
