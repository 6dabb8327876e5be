"""Who was champion when, and by what decision: a chain of records, one on each version that became champion.

The alias in MLflow is the one truth; this is the record beside it. A change is numbered, and kept as a tag of the
version that became champion, `toto.change.000003`; the registered model's tag `toto.champion` names the newest change
whose consequences are complete. A record is written before the alias moves:

    record on the new version -> alias `champion` -> its consequences (aliases, tags) -> `toto.champion`

so a process that is killed leaves one of two things. Before the alias moved: a record that no chain leads to, since the
chain is followed from the champion, number by number; a second attempt writes the same tag again. After: a champion
whose record is one ahead of `toto.champion`; the next call that writes completes what follows from it, and one that
reads sees it already. An alias that somebody moved in MLflow itself is found in the same way, and recorded as such.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["promotion", "rollback", "forced", "outside"]
"""promotion: the gate said so. rollback, forced: a person said so. outside: the alias was moved in MLflow itself."""

CHANGE_PREFIX, CHAMPION_TAG = "toto.change.", "toto.champion"
ROLLED_BACK = "rolled_back"
"""Tag of a version that a rollback took out of production: when, by whom and why."""
OUTSIDE_REASON = "the alias was moved in MLflow itself, or before changes were recorded"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A version became champion.

    Attributes:
        number: of the change, from 1.
        replaced: the champion before it; None for the first.
        at: Unix seconds.
        by: user@host.
        run: the run that did it, a retraining or a job; empty for a command.
    """

    number: int
    kind: Kind
    version: str
    replaced: str | None
    at: float
    by: str
    reason: str
    run: str


@dataclass(frozen=True)
class Mark:
    """The newest change that is complete, and the champion it made; (0, None) where there was none."""

    number: int = 0
    version: str | None = None


def change_tag(number: int) -> str:
    return f"{CHANGE_PREFIX}{number:06d}"


def write_change(change: Change) -> str:
    return json.dumps(asdict(change), sort_keys=True)


def read_change(tags: Mapping[str, str], number: int) -> Change | None:
    """The change called `number` among the tags of a version; None where there is none that can be read."""
    values = _object(tags.get(change_tag(number)))
    try:
        return None if values is None else Change(**values)
    except TypeError:
        return None


def read_mark(tags: Mapping[str, str]) -> Mark:
    values = _object(tags.get(CHAMPION_TAG))
    if values is None:
        return Mark()
    version = values.get("version")
    return Mark(int(values.get("number", 0)), None if version is None else str(version))


def write_mark(mark: Mark) -> str:
    return json.dumps(asdict(mark))


def newest_change(champion: str, tags: Mapping[str, str], mark: Mark, now: float) -> Change:
    """The change that made `champion` what it is.

    Args:
        tags: of the champion's version.
        mark: the newest complete change; that of another champion where a call was killed, or the alias was moved.
        now: Unix seconds, which a change that nobody recorded gets.
    """
    number = mark.number if mark.version == champion else mark.number + 1
    found = read_change(tags, number)
    if found is not None and mark.version in (champion, found.replaced):
        return found
    return Change(
        number=number,
        kind="outside",
        version=champion,
        replaced=None if mark.version == champion else mark.version,
        at=now,
        by="unknown",
        reason=OUTSIDE_REASON,
        run="",
    )


def is_recorded(tags: Mapping[str, str]) -> bool:
    """Whether a version ever was, or was about to be, champion."""
    return any(name.startswith(CHANGE_PREFIX) for name in tags)


def who() -> str:
    """user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a container's user without a name
    return f"{user}@{socket.gethostname()}"


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        value = None if text is None else json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
