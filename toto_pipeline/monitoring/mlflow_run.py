"""The one MLflow run of a pipeline run, whoever needs it first: the tracker, the registry, or an asset of a user.

`open_run` finds it by its tag `toto.run`, in whatever experiment, or creates it under a lock. The lock holds for one
machine. Against a server, two machines may still create one each in the same instant: who creates looks again, keeps
the older, and deletes its own younger one.

Whether a run ended well is known by two: the tracker knows how the training ended, and who executes the pipeline knows
how all of it ended, evaluation and promotion included. The second outranks the first unless training has begun anew
since. `close_run` records it in `<home>/registry/ended/<run>.json` before it tells MLflow, so a store that is away
gets to know later, and a tracker that lags behind does not overwrite it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home
from toto_pipeline.monitoring.mlflow_connection import TRANSFER_SECONDS, Store

RUN_TAG = "toto.run"
CHANGED_PARAMS_TAG = "toto.changed_params"
EXPERIMENT = "toto_pipeline"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
BATCH = 100
"""Most params and tags that MLflow takes at once."""
PARAM_CHARACTERS, TAG_CHARACTERS = 6000, 8000

Status = Literal["FINISHED", "FAILED", "KILLED"]
Running = Literal["RUNNING"]

_LOCK = "runs.lock"
_PAGE = 1000


def experiment_name(setting: str | None = None) -> str:
    """The experiment of new runs: a setting, else `$MLFLOW_EXPERIMENT_NAME`, else `toto_pipeline`."""
    return setting or os.environ.get(EXPERIMENT_VARIABLE) or EXPERIMENT


def open_run(
    store: Store,
    client: Any,
    run: str,
    *,
    experiment: str | None = None,
    started: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> Any:
    """The MLflow run of our run: the one that is there, or a new one with `tags`.

    Args:
        client: what `store.client()` gave.
        run: the id of our run; also the name that MLflow shows.
        started: Unix seconds at which a new run has begun; now by default.

    Raises:
        RegistryError: the run's name cannot be asked for. What else MLflow raises is for `store.talking` to explain.
    """
    with store.locked(_LOCK):
        found = find_run(client, run, experiment=experiment)
        if found is not None:
            return found
        created = client.create_run(
            _experiment_id(store, client, experiment_name(experiment)),
            start_time=round((time.time() if started is None else started) * 1000),
            tags={RUN_TAG: run, **(tags or {})},
            run_name=run,
        )
        return _keep_oldest(client, run, created) if store.remote else created


def find_run(client: Any, run: str, *, experiment: str | None = None) -> Any | None:
    """The MLflow run of our run, in the expected experiment or any other; None where there is none."""
    expected = client.get_experiment_by_name(experiment_name(experiment))
    if expected is not None:
        found = _runs_of(client, run, [expected.experiment_id])
        if found:
            return found[0]
    others = [each for each in _experiment_ids(client) if expected is None or each != expected.experiment_id]
    return next(iter(_runs_of(client, run, others)), None) if others else None


def _runs_of(client: Any, run: str, experiment_ids: list[str]) -> list[Any]:
    """Oldest first, in an order on which all agree."""
    found = client.search_runs(experiment_ids, f"tags.`{RUN_TAG}` = '{quotable(run)}'", max_results=_PAGE)
    return sorted(found, key=lambda each: (each.info.start_time, each.info.run_id))


def _keep_oldest(client: Any, run: str, created: Any) -> Any:
    oldest = _runs_of(client, run, _experiment_ids(client))[0]
    if oldest.info.run_id == created.info.run_id:
        return created
    client.delete_run(created.info.run_id)
    return oldest


def _experiment_ids(client: Any) -> list[str]:
    ids: list[str] = []
    token: str | None = None
    while True:
        page = client.search_experiments(max_results=_PAGE, page_token=token)
        ids += [str(each.experiment_id) for each in page]
        token = page.token
        if not token:
            return ids


def _experiment_id(store: Store, client: Any, name: str) -> str:
    """The experiment of a name, created where it is not there; files of the local store lie in the home's registry."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if store.remote else (store.folder / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def quotable(run: str) -> str:
    """The run id, fit for MLflow's query language, which has no escapes."""
    if "'" in run or "`" in run:
        raise RegistryError(f"{run!r} cannot name a run in the model registry. Expected: a name without quotes.")
    return run


def log_params(client: Any, run_id: str, settings: Mapping[str, Any]) -> None:
    """Record settings, nested ones under dotted names. MLflow never changes a param: what differs becomes a tag."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    wanted = {name: str(value)[:PARAM_CHARACTERS] for name, value in flat(settings).items()}
    new = [Param(name, value) for name, value in wanted.items() if name not in known]
    for part in batches(new):
        client.log_batch(run_id, params=part)
    changed = {name: value for name, value in wanted.items() if known.get(name, value) != value}
    if changed:
        log_tags(client, run_id, {CHANGED_PARAMS_TAG: orjson.dumps(changed).decode()})


def log_tags(client: Any, run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags; those without a value are left out, and one that is too long is cut."""
    from mlflow.entities import RunTag

    kept = [RunTag(name, str(value)[:TAG_CHARACTERS]) for name, value in tags.items() if value not in (None, "")]
    for part in batches(kept):
        client.log_batch(run_id, tags=part)


def log_scores(client: Any, mlflow_run: Any, scores: Mapping[str, float]) -> None:
    """Record scores as metrics `evaluation/<name>`, the finite ones. Twice is as good as once."""
    from mlflow.entities import Metric

    timestamp = mlflow_run.info.start_time
    finite = {name: float(value) for name, value in scores.items() if value - value == 0}
    entries = [Metric(f"evaluation/{name}", value, timestamp, 0) for name, value in finite.items()]
    for part in batches(entries):
        client.log_batch(mlflow_run.info.run_id, metrics=part)


def put_artifact(store: Store, client: Any, run_id: str, name: str, data: bytes) -> None:
    """Keep `data` as the artifact `name`, which may have folders; one that is there is replaced."""
    if store.local:
        write_file(artifact_folder(store, run_id) / name, data)
        return
    with tempfile.TemporaryDirectory() as temporary, store.talking(TRANSFER_SECONDS):
        file = Path(temporary) / Path(name).name
        file.write_bytes(data)
        folder = str(Path(name).parent)
        client.log_artifact(run_id, str(file), None if folder == "." else folder)


def artifact_folder(store: Store, run_id: str) -> Path:
    """Where the local store keeps the artifacts of a run: found from the home, so that a home can be moved."""
    return store.folder / "artifacts" / run_id / "artifacts"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def batches[T](items: Sequence[T], size: int = BATCH) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass(frozen=True)
class End:
    """How a whole pipeline run ended. at: Unix seconds; told: whether MLflow knows."""

    status: Status
    at: float
    told: bool


def close_run(home: Home, run_id: str, status: Status, *, at: float | None = None) -> None:
    """Give the MLflow run of a pipeline run the status that the whole of it ended with.

    A run that never came to training or registration has no MLflow run, and gets none. What an earlier call could not
    tell is told now.

    Args:
        run_id: the id of the run, or of the first where it was retried.
        at: Unix seconds at which it ended; now by default.

    Raises:
        RegistryError: MLflow cannot be reached; the next call, of any run, tells it.
        StorageError: the home cannot be written.
    """
    ended = time.time() if at is None else at
    _write_end(home, run_id, End(status, ended, told=False))
    tell_ends(home)


def tell_ends(home: Home) -> None:
    """Tell MLflow what it does not know yet of ended runs.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    untold = list(_untold(home))
    store = Store.of(home)
    if not untold or store.is_empty():
        return
    client = store.client()
    for run, end in untold:
        with store.talking(), store.locked(_LOCK):
            found = find_run(client, run)  # where there is none, a tracker that lags behind will ask for the end
            if found is not None:
                client.set_terminated(found.info.run_id, end.status, round(end.at * 1000))
        if read_end(home, run) == end:
            _write_end(home, run, End(end.status, end.at, told=True))


def read_end(home: Home, run: str) -> End | None:
    """How a whole pipeline run ended, as far as that is known."""
    try:
        value = orjson.loads(_end_file(home, run).read_bytes())
    except FileNotFoundError:
        return None
    return End(value["status"], float(value["at"]), bool(value["told"]))


def set_status(store: Store, client: Any, run_id: str, status: Status | Running, at: float, run: str) -> None:
    """Set the status that a training has at Unix time `at`, unless the whole pipeline run has ended since."""
    with store.locked(_LOCK):
        end = read_end(Home(store.folder.parent), run)
        if end is not None and end.at >= at:
            client.set_terminated(run_id, end.status, round(end.at * 1000))
        elif status == "RUNNING":
            client.update_run(run_id, status=status)
        else:
            client.set_terminated(run_id, status, round(at * 1000))


def _end_file(home: Home, run: str) -> Path:
    return home.registry / "ended" / f"{run}.json"


def _write_end(home: Home, run: str, end: End) -> None:
    write_file(_end_file(home, run), orjson.dumps(vars(end)))


def _untold(home: Home) -> Iterator[tuple[str, End]]:
    for file in sorted((home.registry / "ended").glob("*.json")):
        end = read_end(home, file.stem)
        if end is not None and not end.told:
            yield file.stem, end
