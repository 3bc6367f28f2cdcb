"""The report: a resolved plan as one HTML file that loads nothing."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from os import PathLike
from pathlib import Path

from .._cost import OptimizerLike
from .._resolved import ResolvedPlan
from ..errors import PlanError
from ._data import report_data

__all__ = ["save_html"]

_SCRIPTS = ("model.js", "tree.js", "page.js")
_UNSAFE = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def save_html(
    resolved: ResolvedPlan,
    path: str | PathLike[str],
    *,
    other: ResolvedPlan | None,
    base_lr: float | None,
    optimizer: OptimizerLike,
) -> None:
    """Writes the report; see `ResolvedPlan.save_html`."""
    if other is not None and not isinstance(other, ResolvedPlan):
        raise PlanError(
            f"other must be a resolved plan, got {type(other).__name__}; pass plan.resolve(model)"
        )
    data = report_data(resolved, other, base_lr, optimizer)
    script = "".join(map(_asset, _SCRIPTS))
    style = _asset("page.css")
    parts = {
        "title": escape(f"{data['model']}: freezekit report"),
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "summary": escape(str(resolved.summary())),
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_UNSAFE),
        "script": script,
    }
    # One pass over the page, so that nothing in a part is taken for a place.
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("page.html"))
    # Half of a surrogate pair in a name has no bytes in UTF-8: it becomes a reference.
    Path(path).write_bytes(page.encode("utf-8", "xmlcharrefreplace"))


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Returns the source expression that lets exactly this text run in a page."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
