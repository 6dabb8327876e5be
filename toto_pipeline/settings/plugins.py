"""What other packages offer by entry points: finding it without importing it, and importing it with a clear error."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from importlib.metadata import EntryPoint
from typing import Any

from toto_pipeline.errors import ConfigError
from toto_pipeline.settings.spelling import suggestion


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name. Nothing of them is imported."""
    return _installed_on(group, tuple(sys.path))


def not_installed(kind: str, name: str, group: str) -> str | None:
    """What is wrong with the name of a `kind` of plug-in, such as a sink; None where it is installed."""
    known = installed(group)
    if name in known:
        return None
    return (
        f"there is no {kind} {name!r}{suggestion(name, known)}. Expected: one of "
        f"{', '.join(sorted(known)) or 'none, as none is installed'}. What to do: install the package that offers it "
        f"as an entry point of the group {group}; after a change of pyproject.toml, `make setup`"
    )


def package_of(point: EntryPoint) -> str:
    """Name and version of the package that offers it."""
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def load(point: EntryPoint, *, who: str, remedy: str) -> Any:
    """What stands behind an entry point.

    Args:
        who: asks for it, as the error names it. remedy: what to do where it cannot be imported.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # a stranger's module may raise anything
        raise ConfigError(
            f"{who}: {point.value} of {package_of(point)} cannot be imported "
            f"({type(error).__name__}: {error}). What to do: {remedy}."
        ) from error


@functools.lru_cache(maxsize=8)
def _installed_on(group: str, _path: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}
