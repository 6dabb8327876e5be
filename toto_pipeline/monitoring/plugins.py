"""Sinks by name: packages offer them as entry points of the group `toto_pipeline.sinks`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from toto_pipeline.errors import ConfigError
from toto_pipeline.settings.plugins import installed, load, package_of
from toto_pipeline.settings.sinks import SINK_GROUP, unknown_sinks

if TYPE_CHECKING:
    from toto_pipeline.monitoring.sink import Sink

SinkMaker = Callable[[], "Sink"]


def load_sinks(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, SinkMaker]:
    """For each name a function that imports and makes the sink, and raises a ConfigError where that cannot be done.

    Nothing is imported here: who cannot be imported, or takes long, holds nobody but itself.

    Raises:
        ConfigError: there is no sink of a name; the message lists those there are.
    """
    problem = unknown_sinks(settings)
    if problem:
        raise ConfigError(f"monitoring.sinks: {problem}.")
    return {name: functools.partial(make_sink, name, dict(values)) for name, values in settings.items()}


def make_sink(name: str, settings: Mapping[str, Any]) -> Sink:
    """A sink that is not yet open.

    Raises:
        ConfigError: it cannot be imported, or does not take these settings.
    """
    point = installed(SINK_GROUP)[name]
    package = package_of(point)
    remedy = f"mend or reinstall the package, or take {name} out of monitoring.sinks"
    kind = load(point, who=f"sink {name}", remedy=remedy)
    try:
        return cast("Sink", kind(**settings))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"monitoring.sinks.{name}: {point.value} of {package} does not take the settings {settings!r} ({error}). "
            "What to do: mend them, or leave them out for its defaults."
        ) from error
