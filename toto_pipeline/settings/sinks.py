"""Which sinks there are. Light enough for a training process, which checks their names before it begins."""

from __future__ import annotations

import re
from collections.abc import Iterable

from toto_pipeline.settings.plugins import not_installed

SINK_GROUP = "toto_pipeline.sinks"
"""The group of entry points by which a package offers sinks: name = "module:Class"."""
RESERVED_NAMES = ("sinks", "status")
"""Names of other files beside the cursors of the sinks."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def unknown_sinks(names: Iterable[str]) -> str | None:
    """What is wrong with the names of sinks; None where all are installed and can be used."""
    for name in names:
        problem = not_installed("sink", name, SINK_GROUP)
        if problem:
            return problem
        if name in RESERVED_NAMES or not _NAME.fullmatch(name):
            return f"{name!r} cannot be the name of a sink; expected letters, digits, _ and -, and none of {', '.join(RESERVED_NAMES)}"
    return None
