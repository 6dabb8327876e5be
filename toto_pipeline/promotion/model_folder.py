"""What stands beside the weights of a registered model, so that anyone who has the folder can forecast with it.

    forecasting.json       variates, frequency, season, context, horizon and preparation that it was trained with
    MLmodel                makes the folder a model of MLflow's `python_function` flavor: input, output, params
    requirements.txt       the packages it was made with; python_env.yaml names them and the version of Python

Nothing of it is pickled: MLflow imports `toto_pipeline.promotion.pyfunc`, which reads JSON and safetensors. What is
written follows from the run alone, so a second attempt at a registration finds the files that the first one wrote.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.data.series import TARGET
from toto_pipeline.data.training_data import TrainingData
from toto_pipeline.errors import WeightsError
from toto_pipeline.models.families import family_of
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.settings.data import PreparationSettings

FACTS_FILE, MLFLOW_FILE, REQUIREMENTS_FILE, ENVIRONMENT_FILE = (
    "forecasting.json",
    "MLmodel",
    "requirements.txt",
    "python_env.yaml",
)
LOADER = "toto_pipeline.promotion.pyfunc"
SCHEMA = 1
_PACKAGES = ("toto-pipeline", "toto-2", "torch", "safetensors", "numpy", "pandas", "pyarrow", "mlflow")
_OF_FAMILIES = {"chronos": ("chronos-forecasting",), "toto1": ("toto-ts",)}
"""What a model family needs beside them."""
_POLICIES = ("duplicates", "unsorted", "infinities")
"""Settings of `data` that say what is done about faults in rows; the others say where the rows came from."""


@dataclass(frozen=True, kw_only=True)
class ForecastingFacts:
    """How a model is to be used, as it was trained.

    Attributes:
        variates: their names in order; empty where that is not known, and any number of them is taken.
        frequency: the step between rows, as pandas writes it.
        preparation: the settings of `preparation` of the run; policies: those of `data` about faults in rows.
        run, snapshot, training_data: where it came from.
    """

    variates: tuple[str, ...] = ()
    frequency: str | None = None
    season: int | None = None
    context_length: int = PreparationSettings().context_length
    horizon: int = PreparationSettings().horizon
    preparation: Mapping[str, Any] = field(default_factory=dict)
    policies: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    snapshot: str = ""
    training_data: str = ""
    code_version: str = ""


def complete(folder: Path, run_folder: Path, data: TrainingData, *, code_version: str) -> None:
    """Write what is missing beside the weights in `folder`; a folder that is complete stays as it is."""
    if (folder / MLFLOW_FILE).is_file():
        return
    config = _config(run_folder)
    manifest = data.manifest
    facts = ForecastingFacts(
        variates=tuple(manifest.variates),
        frequency=manifest.frequency,
        season=manifest.season,
        context_length=manifest.context_length,
        horizon=manifest.horizon,
        preparation=config.get("preparation") or {},
        policies=_policies(config),
        run=run_folder.name,
        snapshot=manifest.snapshot,
        training_data=data.fingerprint,
        code_version=code_version,
    )
    content = {"schema": SCHEMA, "quantiles": list(QUANTILES), **asdict(facts)}
    write_file(folder / FACTS_FILE, json.dumps(content, indent=2).encode() + b"\n")
    write_file(folder / REQUIREMENTS_FILE, _requirements(folder).encode())
    write_file(folder / ENVIRONMENT_FILE, _environment().encode())
    created = datetime.fromtimestamp(float(config.get("created") or 0), UTC).replace(tzinfo=None)
    # Last, because it says that the folder is complete.
    write_file(folder / MLFLOW_FILE, _mlflow_description(facts, created).encode())


def read_facts(folder: Path) -> ForecastingFacts | None:
    """How the model in `folder` is to be used; None where it was registered before that was written down.

    Raises:
        WeightsError: the file cannot be read.
    """
    file = folder / FACTS_FILE
    try:
        values = json.loads(file.read_bytes())
        known = {one.name: values[one.name] for one in fields(ForecastingFacts)}
        return ForecastingFacts(**{**known, "variates": tuple(known["variates"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{file}: does not say how the model is to be used ({type(error).__name__}: {error}). Expected: the file "
            "that was written when the model was registered. What to do: restore it, or register the run again."
        ) from error


def facts_of_run(run_folder: Path) -> ForecastingFacts:
    """What the settings of a run say of its model, as far as the run is there."""
    config = _config(run_folder)
    preparation = config.get("preparation") or {}
    known = {name: preparation[name] for name in ("context_length", "horizon", "season") if preparation.get(name)}
    return ForecastingFacts(preparation=preparation, policies=_policies(config), run=run_folder.name, **known)


def _config(run_folder: Path) -> dict[str, Any]:
    file = run_folder / "config.json"
    values: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return values


def _policies(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data") or {}
    return {name: data[name] for name in _POLICIES if name in data}


def _requirements(folder: Path) -> str:
    packages = (*_PACKAGES, *_OF_FAMILIES.get(family_of(folder) or "", ()))
    return "".join(f"{name}=={_version(name)}\n" for name in packages)


def _environment() -> str:
    """As MLflow writes it for its environment managers `virtualenv` and `uv`."""
    return f"python: {platform.python_version()}\nbuild_dependencies:\n- pip\ndependencies:\n- -r {REQUIREMENTS_FILE}\n"


def _version(package: str) -> str:
    """Without the local part (`2.15.0+cpu`), which no index has."""
    return importlib.metadata.version(package).partition("+")[0]


def _mlflow_description(facts: ForecastingFacts, created: datetime) -> str:
    from mlflow.models import Model

    description = Model(
        utc_time_created=str(created),
        signature=_signature(facts),
        model_uuid=None,
        flavors={
            "python_function": {
                "loader_module": LOADER,
                "python_version": platform.python_version(),
                "env": {"virtualenv": ENVIRONMENT_FILE},
            }
        },
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / MLFLOW_FILE
        description.save(str(file))
        return file.read_text(encoding="utf-8")


def _signature(facts: ForecastingFacts) -> Any:
    """A long frame in; quantiles of each step of each variate out; the horizon as a param."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    keys = [ColSpec(DataType.string, "id"), ColSpec(DataType.datetime, "timestamp")]
    values = [ColSpec(DataType.double, name) for name in facts.variates or (TARGET,)]
    quantiles = [ColSpec(DataType.float, f"{level:.1f}") for level in QUANTILES]
    return ModelSignature(
        inputs=Schema([*keys, *values]),
        outputs=Schema(
            [keys[0], ColSpec(DataType.string, "variate"), keys[1], *quantiles],
        ),
        params=ParamSchema([ParamSpec("horizon", DataType.long, facts.horizon)]),
    )
