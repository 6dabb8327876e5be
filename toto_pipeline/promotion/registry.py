"""Which model is in production, and every model that was ever considered: the MLflow Model Registry.

    register   the model's files, scores and lineage become a version; refused models too, so that they can be looked at
    promote    the alias `champion` moves to a version, `previous` to the one it replaces
    champion   the version in production, its files checked against the hashes taken when it was registered
    changes    who was champion when, and by what decision

The alias is the one truth; moving it is a single atomic write. Everything else happens before it, in an order in which
a second attempt finds and completes what a killed one left behind, or follows from it and is completed by the next call
(changes.py):

    the MLflow run (params, metrics, tags) -> files -> run FINISHED -> version with its tags -> challenger
    record of the change -> champion -> previous, challenger, tags of the decision

Locally the files lie below `registry/artifacts` of the home and are found from there, so that a home can be moved. With
a server they are uploaded, and downloaded to the home's cache when needed. A file lock lets one process of a machine
write at a time; promotions from different machines to one server are not ordered, since MLflow offers no
compare-and-set.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.manifest import FileRecord, describe_files
from toto_pipeline.errors import ConfigError, RegistryError
from toto_pipeline.events.schema import number, spell_out
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import Store
from toto_pipeline.monitoring.mlflow_run import RUN_TAG, log_params, log_scores, log_tags, open_run, quotable
from toto_pipeline.promotion import registry_files
from toto_pipeline.promotion.changes import CHANGE_PREFIX, ROLLED_BACK, Change, Kind, is_recorded, read_mark, who
from toto_pipeline.promotion.production import DECISION, Production
from toto_pipeline.promotion.registered_model import CHALLENGER, CHAMPION, PREVIOUS, RegisteredModel
from toto_pipeline.promotion.registry_files import ARTIFACT, FILES_TAG, VersionFiles

__all__ = ["CARD_FILE", "CHALLENGER", "CHAMPION", "DECISION", "MODEL_HASH", "PREVIOUS", "ModelVersion", "Registry"]

CARD_FILE = "MODEL_CARD.md"
MODEL_HASH = "model_sha256"
"""Tag of a version: the SHA-256 of its weights."""

_RUN, _METRICS = RUN_TAG, "toto.metrics"
_DESCRIPTION_CHARACTERS = 5000
"""What MLflow's databases keep of a version's description."""
_PLAIN_NAME = re.compile(r"[\w][\w .-]*")


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A registered model. `path` holds its files (with a server, once `champion` or `fetch` has brought them).

    metrics: as registered. run: the id of our run that made it. created: Unix seconds. mlflow_run: the id in MLflow.
    """

    version: str
    path: Path
    metrics: Mapping[str, float]
    run: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: float
    mlflow_run: str = ""


class Registry:
    """The versions of one registered model. Creating the object touches neither disk nor network.

    Every method raises RegistryError, within seconds, when the store cannot be reached; the message names it.
    """

    def __init__(self, home: Home, model_name: str, *, clock: Callable[[], float] = time.time) -> None:
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
        self._model = RegisteredModel(self.store, model_name)
        self._production = Production(self._model, clock)
        self._files = VersionFiles(self.store, model_name, home.cache.absolute() / "registry")
        self._clock = clock

    def champion(self) -> ModelVersion | None:
        """The version in production, its files verified; None where there is none.

        Raises:
            RegistryError: a file is missing or was changed since it was registered.
        """
        if self.store.is_empty():
            return None
        with self.store.talking():
            state = self._model.state()
            return None if state.champion is None else self._verified(state.champion, state.aliases)

    def versions(self, limit: int | None = None) -> list[ModelVersion]:
        """The newest versions, or all, newest first; their files are neither brought nor verified."""
        if self.store.is_empty():
            return []
        with self.store.talking():
            aliases = self._model.state().aliases
            return [self._as_version(found, aliases) for found in self._model.search(limit=limit)]

    def version(self, version: str) -> ModelVersion:
        """One version; its files are neither brought nor verified.

        Raises:
            RegistryError: there is no such version.
        """
        with self.store.talking():
            return self._as_version(self._model.get(version), self._model.state().aliases)

    def of_run(self, run: str) -> ModelVersion | None:
        """The version that a run made; None where it made none."""
        if self.store.is_empty():
            return None
        with self.store.talking():
            found = self._of_run(run)
            return None if found is None else self._as_version(found, self._model.state().aliases)

    def with_alias(self, alias: str) -> str | None:
        """The version that an alias points to."""
        if self.store.is_empty():
            return None
        with self.store.talking():
            return self._model.state().aliases.get(alias)

    def rolled_back(self, model_sha256: str) -> list[ModelVersion]:
        """Versions with these very weights that a rollback took out of production."""
        if self.store.is_empty():
            return []
        condition = f"tags.`{MODEL_HASH}` = '{quotable(model_sha256)}'"
        with self.store.talking():
            found = [self._as_version(each, {}) for each in self._model.search(condition)]
        return [version for version in found if ROLLED_BACK in version.tags]

    def fetch(self, version: str) -> ModelVersion:
        """One version with its files on this machine, verified.

        Raises:
            RegistryError: there is no such version, or a file is missing or was changed.
        """
        with self.store.talking():
            return self._verified(version, self._model.state().aliases)

    def _verified(self, version: str, aliases: Mapping[str, str]) -> ModelVersion:
        found = self._model.get(version)
        model = self._as_version(found, aliases)
        files = self._recorded_files(found)
        self._files.bring(self._model.client, str(found.run_id), str(found.version), files)
        difference = registry_files.difference(model.path, files)
        if difference is not None:
            raise RegistryError(self._damaged(model, aliases, difference))
        return model

    def changes(self, limit: int | None = None) -> list[Change]:
        """Who was champion, newest change first, as far as the records lead back; nothing is written."""
        if self.store.is_empty():
            return []
        with self.store.talking():
            return list(islice(self._production.changes(self._model.state()), limit))

    def change_to(self, version: str) -> Change | None:
        """The newest change that made a version champion; None where it never was."""
        if self.store.is_empty():
            return None
        with self.store.talking():
            if not is_recorded(self._model.get(version).tags):
                return None
            changes = self._production.changes(self._model.state())
            return next((change for change in changes if change.version == version), None)

    def register(
        self,
        folder: Path,
        *,
        run: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        card: str | None = None,
    ) -> ModelVersion:
        """Keep the model files of `folder` as a new version; the alias `challenger` moves to it.

        Called again for the same run it returns the version that is there, with `tags` laid over its own, or completes
        the one that a killed attempt began.

        Args:
            tags: lineage and decision, such as `data_fingerprint`, `code_version`, `decision`, `reasons`.
            params: settings of the run; nested mappings get dotted names.
            card: the model card in Markdown: a file of the version, and its description in MLflow.

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
                found = self._create(
                    folder, run=run, metrics=metrics, tags=tags, params=params or {}, card=card, files=files
                )
            else:
                registry_files.refuse_other_files(
                    files,
                    self._recorded_files(found),
                    generated=frozenset({CARD_FILE}),
                    where=f"version {found.version} of {self.name!r}",
                    run=run,
                )
                self._model.set_tags(str(found.version), tags, known=found.tags)
            self._challenge(str(found.version))
            return self._as_version(self._model.get(str(found.version)), self._model.state().aliases)

    def promote(
        self,
        version: str,
        *,
        expected_champion: str | None,
        kind: Kind = "promotion",
        reason: str = "",
        run: str = "",
    ) -> Change:
        """Make `version` the champion. For the champion itself only what a killed call left undone is completed.

        Args:
            expected_champion: the version that was champion when it was decided, None where there was none.
            kind: whose decision it is; a rollback marks the version that it replaces as rolled back.
            run: the run that does it; empty for a command.

        Raises:
            RegistryError: another version has become champion since, or the version's files are damaged.
        """
        with self.store.talking(), self._writing():
            state = self._production.settle()
            if state.champion != str(version):
                if state.champion != expected_champion:
                    raise RegistryError(self._overtaken(version, expected_champion, state.champion))
                self._verified(version, state.aliases)
                change = Change(
                    number=read_mark(state.tags).number + 1,
                    kind=kind,
                    version=str(version),
                    replaced=state.champion,
                    at=self._clock(),
                    by=who(),
                    reason=reason,
                    run=run,
                )
                state = self._production.move(change)
            return next(self._production.changes(state))

    def settle(self) -> None:
        """Complete what a killed call left undone, and record what was done to the alias in MLflow itself."""
        if not self.store.is_empty():
            with self.store.talking(), self._writing():
                self._production.settle()

    def to_go_back_to(self) -> str | None:
        """The version that a rollback means where none is named: the newest champion before that was not taken out."""
        if self.store.is_empty():
            return None
        with self.store.talking():
            return self._production.to_go_back_to(self._model.state())

    def _writing(self) -> AbstractContextManager[None]:
        """One writer a machine."""
        return self.store.locked("lock")

    def _create(
        self,
        folder: Path,
        *,
        files: Mapping[str, FileRecord],
        run: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        card: str | None,
    ) -> Any:
        client = self._model.client
        self._model.create()
        mlflow_run = open_run(self.store, client, run)
        run_id = str(mlflow_run.info.run_id)
        log_params(client, run_id, params)
        log_tags(client, run_id, tags)
        log_scores(client, mlflow_run, metrics)
        extra = {} if card is None else {CARD_FILE: card.encode()}
        self._files.keep(client, folder, run_id, extra)
        client.set_terminated(run_id, "FINISHED")
        own = {
            _RUN: run,
            FILES_TAG: registry_files.write_records({**files, **registry_files.describe_contents(extra)}),
            _METRICS: json.dumps(spell_out({name: float(value) for name, value in metrics.items()})),
        }
        source = f"{mlflow_run.info.artifact_uri}/{ARTIFACT}"
        return client.create_model_version(
            self.name, source, run_id=run_id, tags={**tags, **own}, description=_description(card), await_creation_for=0
        )

    def _challenge(self, version: str) -> None:
        """Let `challenger` name the newest version that was never champion."""
        aliases = self._model.state().aliases
        newest = max((int(aliases[alias]) for alias in (CHALLENGER, CHAMPION) if alias in aliases), default=0)
        if int(version) > newest and not is_recorded(self._model.get(version).tags):
            self._model.set_alias(CHALLENGER, version)

    def _of_run(self, run: str) -> Any | None:
        return next(self._model.search(f"tags.`{_RUN}` = '{quotable(run)}'"), None)

    def _as_version(self, found: Any, aliases: Mapping[str, str]) -> ModelVersion:
        own = (_RUN, FILES_TAG, _METRICS)
        metrics = json.loads(found.tags.get(_METRICS, "{}"))
        return ModelVersion(
            version=str(found.version),
            path=self._files.path(str(found.run_id), str(found.version)),
            metrics={name: number(value) for name, value in metrics.items()},
            run=str(found.tags.get(_RUN, "")),
            tags={k: v for k, v in found.tags.items() if k not in own and not k.startswith(CHANGE_PREFIX)},
            aliases=tuple(sorted(alias for alias, version in aliases.items() if version == str(found.version))),
            created=found.creation_timestamp / 1000,
            mlflow_run=str(found.run_id),
        )

    def _recorded_files(self, found: Any) -> dict[str, FileRecord]:
        recorded = registry_files.read_records(found.tags)
        if recorded is None:
            raise RegistryError(
                f"Version {found.version} of {self.name!r} in the model registry at {self.store} carries no file "
                "hashes, so its files cannot be verified. Expected: a version that this pipeline registered. What to "
                f"do: give the alias {CHAMPION!r} to such a version in MLflow, or use another promotion.model_name."
            )
        return recorded

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
        other = f" to version {before}, which was champion before" if before else " to another version"
        remedy = "restore the file from a backup"
        if CHAMPION in model.aliases:
            remedy += f", or go back{other}, with `toto-pipeline rollback`, or remove the alias in MLflow to start anew"
        return (
            f"{difference}. It belongs to version {model.version} of {self.name!r} and is not what was registered. "
            f"Expected: the files as registered by run {model.run}. What to do: {remedy}."
        )


def _description(card: str | None) -> str | None:
    if card is None or len(card) <= _DESCRIPTION_CHARACTERS:
        return card
    rest = f"\n\n(The rest is in the file {CARD_FILE} of this version.)\n"
    return card[: _DESCRIPTION_CHARACTERS - len(rest)] + rest
