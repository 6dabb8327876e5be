"""What a checkpoint manager needs to know of the other training processes."""

from __future__ import annotations

from collections.abc import Callable
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


def together[T](ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """What `work` returns on each rank, on every rank; what it raises on one is raised on all."""
    result, failure = None, None
    try:
        result = work()
    except Exception as error:  # told to all ranks, and raised below
        failure = error
    outcomes = ranks.gather((result, failure))
    for _, each in outcomes:
        if each is not None:
            raise each
    return [each for each, _ in outcomes]
