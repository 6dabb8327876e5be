"""What a checkpoint manager needs to know of the other training processes."""

from __future__ import annotations

from typing import Any, Protocol


class Ranks(Protocol):
    """The training processes: this one's number, how many there are, and a way to agree."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order, on every rank."""
        ...

    def barrier(self) -> None: ...


class OneRank:
    """The null object: rank 0 of 1."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None: ...
