"""From a trained model to a decision: the same windows for the new model, the baseline and the champion; then the gate.

evaluation/      the scores and forecasts
decision.json    {"promote", "version", "champion", "rules": [{"name", "passed", "text"}], "comparisons"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from toto_pipeline.checkpoints.manifest import sha256_of
from toto_pipeline.checkpoints.store import write_file
from toto_pipeline.errors import EvaluationError
from toto_pipeline.events.schema import spell_out
from toto_pipeline.home import Home
from toto_pipeline.promotion.changes import ROLLED_BACK
from toto_pipeline.promotion.facts import read_facts
from toto_pipeline.promotion.gate import Decision, decide, resampling
from toto_pipeline.promotion.registry import ModelVersion, Registry
from toto_pipeline.settings.base import fingerprint
from toto_pipeline.settings.promotion import EvaluationSettings, PromotionSettings

DECISION_FILE = "decision.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """models: scores by model key; champion: the version it was compared with; pictures: PNG files."""

    models: Mapping[str, Mapping[str, float]]
    decision: Decision
    champion: ModelVersion | None
    pictures: list[Path]
    fingerprint: str


def evaluate(
    home: Home, run_folder: Path, data_fingerprint: str, settings: EvaluationSettings, policy: PromotionSettings
) -> Verdict:
    """Score the model of a run against baselines, champion and starting weights, and write what the gate says.

    Raises:
        EvaluationError: the run has no model, or a model forecasts nonsense.
        RegistryError: the champion cannot be reached or is damaged.
    """
    import torch

    from toto_pipeline.data.training_data import TrainingData
    from toto_pipeline.evaluation.backtest import CANDIDATE, backtest
    from toto_pipeline.evaluation.report import FOLDER, write_report
    from toto_pipeline.promotion.contenders import contenders

    model = run_folder / "model"
    if not (model / WEIGHTS_FILE).is_file():
        raise EvaluationError(f"{model}: holds no {WEIGHTS_FILE}. Expected: this run's model. Train it first.")
    torch.set_num_threads(settings.threads)
    data = TrainingData.open(home.training_data / data_fingerprint)
    registry = Registry(home, policy.model_name)
    champion = registry.champion()
    sha256 = sha256_of(model / WEIGHTS_FILE)
    with contenders(home, run_folder, champion, data.manifest.season, settings) as who:
        evaluation = backtest(
            who.forecasters, data, settings, cache=home.cache, identities=who.identities, notes=who.notes
        )
    identities = {**who.facts, CANDIDATE: {"sha256": sha256}}
    write_report(evaluation, run_folder, identities=identities, how=resampling(policy))
    facts = read_facts(home, run_folder, evaluation, data.manifest, has_champion=champion is not None)
    facts = replace(facts, rolled_back=_rolled_back(registry, sha256))
    decision = decide(evaluation.scores, policy, facts)
    _write_decision(run_folder, decision, champion, sha256)
    return Verdict(
        models=evaluation.aggregates,
        decision=decision,
        champion=champion,
        pictures=sorted((run_folder / FOLDER).glob("*.png")),
        fingerprint=fingerprint([evaluation.windows_fingerprint, identities, decision.describe()]),
    )


def _rolled_back(registry: Registry, sha256: str) -> str | None:
    """Which version with these very weights a rollback took out of production, when and why."""
    for version in registry.rolled_back(sha256):
        return f"version {version.version}, {version.tags[ROLLED_BACK]}"
    return None


def read_decision(run_folder: Path) -> dict[str, Any]:
    """The decision of a run.

    Raises:
        EvaluationError: it was not evaluated, or the file is damaged.
    """
    file = run_folder / DECISION_FILE
    try:
        decision: dict[str, Any] = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise EvaluationError(f"{file}: cannot be read ({error}). Materialize evaluation_report first.") from error
    return decision


def amend_decision(run_folder: Path, **values: Any) -> None:
    """Add to the decision what became of it: `version`, the registered one, or `forced`, who wanted it and why."""
    decision = {**read_decision(run_folder), **values}
    write_file(run_folder / DECISION_FILE, orjson.dumps(decision, option=orjson.OPT_INDENT_2))


def _write_decision(run_folder: Path, decision: Decision, champion: ModelVersion | None, sha256: str) -> None:
    content = {
        **decision.describe(),
        "version": None,
        "champion": None if champion is None else champion.version,
        "model_sha256": sha256,
    }
    write_file(run_folder / DECISION_FILE, orjson.dumps(spell_out(content), option=orjson.OPT_INDENT_2))
