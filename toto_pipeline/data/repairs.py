"""What was mended in the data, told in one sentence for each file and kind of repair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_FILES = 20
"""Files told apart for a kind of repair; the rest are counted together."""


@dataclass
class _Tally:
    series: int = 0
    count: int = 0
    first: str = ""


@dataclass
class Repairs:
    """Collects repairs; `sentences()` tells them."""

    _notes: dict[str, None] = field(default_factory=dict)
    _tallies: dict[str, dict[str, _Tally]] = field(default_factory=dict)

    def note(self, sentence: str) -> None:
        """Something said in its own words, once."""
        self._notes[sentence] = None

    def count(self, kind: str, file: str, series: str, count: int = 1) -> None:
        """`kind` is a sentence with `{count}`, `{series}` and `{file}` in it."""
        tally = self._tallies.setdefault(kind, {}).setdefault(file, _Tally(first=series))
        tally.series += 1
        tally.count += count

    def sentences(self) -> list[str]:
        told = _capped(self._notes)
        for kind, files in self._tallies.items():
            told += [_tell(kind, file, tally) for file, tally in sorted(files.items())[:MOST_FILES]]
            rest = [tally for _, tally in sorted(files.items())[MOST_FILES:]]
            if rest:
                total = _Tally(sum(t.series for t in rest), sum(t.count for t in rest), rest[0].first)
                told.append(_tell(kind, f"{len(rest)} more files", total))
        return told


def _tell(kind: str, file: str, tally: _Tally) -> str:
    several = f"{tally.series} series, the first {tally.first!r}"
    return kind.format(count=tally.count, series=several if tally.series > 1 else f"series {tally.first!r}", file=file)


def _capped(notes: Iterable[str]) -> list[str]:
    told = list(notes)
    rest = len(told) - MOST_FILES
    return told if rest <= 0 else [*told[:MOST_FILES], f"And {rest} more of the kind."]
