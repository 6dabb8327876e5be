"""Which version is in production: moving the alias `champion`, and what follows from it. changes.py tells the order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from toto_pipeline.promotion.changes import (
    CHAMPION_TAG,
    ROLLED_BACK,
    Change,
    Kind,
    Mark,
    change_tag,
    newest_change,
    read_change,
    read_mark,
    write_change,
    write_mark,
)
from toto_pipeline.promotion.registered_model import CHALLENGER, CHAMPION, PREVIOUS, RegisteredModel, State

DECISION = "decision"
ACCEPTED, REFUSED, PROMOTED, FORCED = "accepted", "refused", "promoted", "forced"
"""Tag of a version and its values: what the gate said; once it was champion, who made it so, the gate or a person."""
_DECISIONS: Mapping[Kind, str] = {"promotion": PROMOTED, "forced": FORCED}


class Production:
    """The champion of a registered model. Who calls what writes has taken the lock."""

    def __init__(self, model: RegisteredModel, clock: Callable[[], float]) -> None:
        self._model, self._clock = model, clock

    def settle(self) -> State:
        """Complete what follows from the newest change of champion; the champion and the mark as they then are."""
        state = self._model.state()
        mark, champion = read_mark(state.tags), state.champion
        if champion == mark.version:
            return state
        if champion is None:  # somebody removed the alias
            return self._mark(Mark(mark.number))
        tags = self._model.get(champion).tags
        change = newest_change(champion, tags, mark, self._clock())
        if change.kind == "outside":
            self.record(change)
        self._follow_up(change, tags, state)
        return self._mark(Mark(change.number, champion))

    def _mark(self, mark: Mark) -> State:
        self._model.set_own_tag(CHAMPION_TAG, write_mark(mark))
        return _marked(mark)

    def move(self, change: Change) -> State:
        """Let a change take place."""
        self.record(change)
        self._model.set_alias(CHAMPION, change.version)
        return self.settle()

    def record(self, change: Change) -> None:
        self._model.set_tags(change.version, {change_tag(change.number): write_change(change)})

    def changes(self, state: State) -> Iterator[Change]:
        """The changes that led to the present champion, newest first, as far as the records go."""
        version, change = state.champion, None
        while version is not None:
            found = self._model.find(version)
            if found is None:
                return
            if change is None:
                change = newest_change(version, found.tags, read_mark(state.tags), self._clock())
            else:
                change = read_change(found.tags, change.number - 1)
            if change is None:
                return
            yield change
            version = change.replaced

    def to_go_back_to(self, state: State) -> str | None:
        """The version that a rollback without a name means: `previous`, else an earlier champion."""
        previous = state.aliases.get(PREVIOUS)
        if previous is not None and previous != state.champion and self._may_return(previous):
            return previous
        return next(self._earlier_champions(state), None)

    def _follow_up(self, change: Change, tags: Mapping[str, str], state: State) -> None:
        """What follows from a change; done twice it is as done once. `tags` are those of the new champion."""
        if change.kind == "rollback" and change.replaced and self._model.find(change.replaced) is not None:
            self._model.set_tags(change.replaced, {ROLLED_BACK: rolled_back_text(change)})
        if ROLLED_BACK in tags:
            self._model.delete_tag(change.version, ROLLED_BACK)
        if change.kind in _DECISIONS:
            self._model.set_tags(change.version, {DECISION: _DECISIONS[change.kind]}, known=tags)
        self._set_previous(self._previous(change), state)
        if state.aliases.get(CHALLENGER) == change.version:
            self._model.delete_alias(CHALLENGER)

    def _previous(self, change: Change) -> str | None:
        """The version to go back to: the champion before; after a rollback the nearest one that was not taken out."""
        if change.kind != "rollback":
            return change.replaced
        return next(self._earlier_champions(_marked(Mark(change.number, change.version))), None)

    def _set_previous(self, version: str | None, state: State) -> None:
        if version is not None and self._model.find(version) is not None:
            self._model.set_alias(PREVIOUS, version)
        elif PREVIOUS in state.aliases:
            self._model.delete_alias(PREVIOUS)

    def _earlier_champions(self, state: State) -> Iterator[str]:
        """Versions that were champion before the present one and were not taken out, newest first."""
        seen = {state.champion}
        for change in self.changes(state):
            earlier = change.replaced
            if earlier is not None and earlier not in seen and self._may_return(earlier):
                yield earlier
            seen.add(earlier)

    def _may_return(self, version: str) -> bool:
        found = self._model.find(version)
        return found is not None and ROLLED_BACK not in found.tags


def _marked(mark: Mark) -> State:
    """A registered model, as far as a change has made it."""
    return State({CHAMPION: mark.version} if mark.version else {}, {CHAMPION_TAG: write_mark(mark)})


def rolled_back_text(change: Change) -> str:
    """When, by whom and why a rollback took a version out of production."""
    moment = datetime.fromtimestamp(change.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{moment} by {change.by}: {change.reason or 'no reason was given'}"
