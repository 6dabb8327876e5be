"""A self-contained page: style and script inlined, and a policy that allows only those two.

So nothing is fetched, and nothing that came with the data can run. The same body and data give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import string
from pathlib import Path
from typing import Any

from toto_pipeline.dashboards.html.markup import script_json, text

_HERE = Path(__file__).parent


def page(title: str, body: str, data: Any) -> str:
    """The HTML of a page.

    Args:
        title: plain text.
        body: HTML that is safe already.
        data: JSON-able values that `report.js` draws from.
    """
    style, script = _asset("report.css"), _asset("report.js")
    return string.Template(_asset("report.html")).substitute(
        title=text(title),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        style=style,
        script=script,
        body=body,
        data=script_json(data),
    )


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
