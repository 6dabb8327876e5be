"""HTML from text: everything that came from outside passes through `text` before it meets a tag."""

from __future__ import annotations

import datetime
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import orjson


def text(value: Any) -> str:
    """A value as HTML text, safe between tags and inside quoted attributes."""
    return html.escape(str(value), quote=True)


def tag(name: str, content: str = "", **attributes: str) -> str:
    """An element around HTML that is already safe; attribute values are escaped here (`class_` writes `class`)."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>{content}</{name}>"


def section(title: str, identity: str, *content: str) -> str:
    return tag("section", tag("h2", text(title), id=f"{identity}-title") + "".join(content), id=identity)


def sentence(words: str) -> str:
    """What stands where a part is missing: a sentence that says why."""
    return tag("p", text(words), class_="missing")


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """A list of names and values."""
    rows = "".join(tag("dt", text(name)) + tag("dd", text(value)) for name, value in pairs)
    return tag("dl", rows, class_="facts")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1, label: str) -> str:
    """A table of cells that are already HTML; the first `words` columns are text, the others numbers."""
    kinds = ["word" if column < words else "number" for column in range(len(head))]
    top = "".join(tag("th", text(name), class_=kind, scope="col") for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        tag("tr", "".join(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows
    )
    inner = tag("table", tag("thead", tag("tr", top)) + tag("tbody", body), aria_label=label)
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=label)


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no tag, comment or line separator can begin in it."""
    raw = orjson.dumps(value).decode()
    for character in "<>&\u2028\u2029":
        raw = raw.replace(character, f"\\u{ord(character):04x}")
    return raw


def figure(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-" if math.isnan(value) else str(value)


def significant(value: float) -> str:
    """Four significant digits, without an exponent where a person would not write one."""
    if not math.isfinite(value):
        return figure(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def utc(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
