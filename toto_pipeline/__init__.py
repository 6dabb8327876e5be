"""Retrain Datadog's Toto time-series foundation models with Dagster.

Importing the package does nothing heavy: torch, mlflow and dagster are imported where they are used.
"""

__version__ = "0.1.0"
