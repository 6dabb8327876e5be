"""Versions with a few bytes for weights, registered through the registry's own door."""

from __future__ import annotations

from pathlib import Path

from toto_pipeline.promotion.registry import ModelVersion, Registry


def register(registry: Registry, folder: Path, run: str, **tags: str) -> ModelVersion:
    """A version of `run`, with its weights' text as tag `model_sha256`."""
    model = folder / f"model of {run}"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text(f"weights of {run}")
    tags = {"model_sha256": f"sha of {run}", **tags}
    return registry.register(model, run=run, metrics={"SQL": 0.5}, tags=tags, card=f"# Card of {run}\n")


def aliases(registry: Registry) -> dict[str, str]:
    return {alias: version.version for version in registry.versions() for alias in version.aliases}
