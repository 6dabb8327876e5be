"""Going back to an earlier champion.

The version to go back to is verified before the alias moves; a damaged one is refused and the champion stays. The
version that is replaced gets the tag `rolled_back`, and the nights that follow do not promote its weights again.
"""

from __future__ import annotations

from dataclasses import dataclass

from toto_pipeline.errors import RegistryError
from toto_pipeline.home import Home
from toto_pipeline.promotion.changes import Change
from toto_pipeline.promotion.registry import CHAMPION, ModelVersion, Registry


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a rollback would do."""

    champion: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What a rollback did: the version that is champion now, and the change that made it so."""

    version: ModelVersion
    change: Change


def plan(home: Home, model_name: str, to: str | None = None) -> Plan:
    """What a rollback would do; nothing is changed.

    Args:
        to: the version to go back to; by default the newest champion before the present one that was not itself taken
            out by a rollback.

    Raises:
        RegistryError: there is no champion, or no such version, or it is the champion already.
    """
    registry = Registry(home, model_name)
    champion = registry.with_alias(CHAMPION)
    if champion is None:
        raise RegistryError(
            f"There is no champion of {model_name!r} in {home.root} to go back from. Expected: a promoted model. What "
            "to do: name another home or model."
        )
    target = registry.to_go_back_to() if to is None else registry.version(to).version
    if target is None:
        raise RegistryError(
            f"There is no version of {model_name!r} to go back to: before version {champion} there was no champion "
            "that is still there and was not rolled back. What to do: name one with --to; `toto-pipeline versions` "
            "lists them."
        )
    if target == champion:
        raise RegistryError(
            f"Version {target} of {model_name!r} is the champion already. Expected: another version. What to do: "
            "`toto-pipeline versions` lists them."
        )
    return Plan(champion=champion, target=target)


def roll_back(home: Home, model_name: str, planned: Plan, *, reason: str = "", run: str = "") -> Rollback:
    """Do what was planned.

    Args:
        run: the run of Dagster that does it. If that run has rolled back already, nothing is done again.

    Raises:
        RegistryError: the champion changed since the plan, or the files of the version to go back to are damaged.
    """
    registry = Registry(home, model_name)
    change = registry.promote(
        planned.target, expected_champion=planned.champion, kind="rollback", reason=reason, run=run
    )
    return Rollback(version=registry.version(change.version), change=change)


def done_by(home: Home, model_name: str, run: str) -> Rollback | None:
    """The rollback that a run has already done, when it is tried again; None where it has not."""
    registry = Registry(home, model_name)
    registry.settle()
    for change in registry.changes(1):
        if change.kind == "rollback" and change.run == run:
            return Rollback(version=registry.fetch(change.version), change=change)
    return None
