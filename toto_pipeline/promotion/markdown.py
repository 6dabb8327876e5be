"""Markdown from text: everything that came from outside passes through `escape`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&$-])")


def escape(value: object) -> str:
    """A value as Markdown that shows its text on one line and does nothing else."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split())).replace("://", ":\u200b//")


def code(value: object) -> str:
    """A name or hash in the type of code; no text can end it."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\u2502")
    return f"`{text}`" if text else "-"


def bullets(lines: Iterable[str]) -> str:
    """Lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells that are Markdown already; all columns but the first hold numbers."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *rows])
