"""Retrain Datadog's Toto time-series foundation models with Dagster.

Importing the package does nothing heavy: torch, mlflow and dagster are imported where they are used.

    champion = toto_pipeline.load_champion()
    champion.forecast(frame, horizon=96)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toto_pipeline.promotion.champion import Champion, load_champion

__version__ = "0.1.0"

__all__ = ["Champion", "load_champion"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only then."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toto_pipeline.promotion import champion

    return getattr(champion, name)
