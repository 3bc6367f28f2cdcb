"""The tables of the page "Coming from ...", between markers in its text.

`python tests/migration_page.py` writes them there; a test compares them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from dialects import PATTERNS, counts
from migrations import PEERS, Patterns, Peer, Row
from peer_models import shared

from freezekit import FreezePlan

PAGE = Path(__file__).parents[1] / "docs" / "migrating.md"
HEAD = ("Theirs", "Ours", "What differs, and **what theirs does beyond what was meant**")


def covered(model: torch.nn.Module, patterns: Patterns) -> frozenset[str]:
    """The parameters that patterns select."""
    if not patterns:
        return frozenset()
    return FreezePlan(allow_all_frozen=True).freeze(*patterns).resolve(model).at().frozen


def rendered(page: str) -> str:
    """The page with its tables as the rows have them."""
    for name, text in tables().items():
        marks = (f"<!-- {name} -->", f"<!-- end of {name} -->")
        before, mark, rest = page.partition(marks[0])
        assert mark, f"no {marks[0]}"
        page = f"{before}{mark}\n\n{text}\n\n{marks[1]}{rest.partition(marks[1])[2]}"
    return page


def tables() -> dict[str, str]:
    """All that stands between markers."""
    return {"one string": dialects(), **{name: section(peer) for name, peer in PEERS.items()}}


def section(peer: Peer) -> str:
    """A peer's title, words and table."""
    rows = [(_code(row.theirs), _code(_by_verb(row.ours)), note(row)) for row in peer.rows]
    return "\n\n".join([f"## {peer.title}", peer.words, _table("code", [HEAD, *rows])])


def note(row: Row) -> str:
    """What differs, and in bold what theirs takes."""
    beyond = takes(row)
    return f"{_sentence(row.differs)}." + (f"<br>**{beyond}.**" if beyond else "")


def takes(row: Row) -> str:
    """What theirs takes, with the tensors counted on the model of the row."""
    model = shared(row.model)
    named = {"more": row.more, "less": row.less, "other": row.other}
    spelt = {
        key: f"{', '.join(f'`{each}`' for each in patterns)} ({_tensors(model, patterns)})"
        for key, patterns in named.items()
    }
    return _sentence(re.sub(r"\{(more|less|other)\}", lambda found: spelt[found[1]], row.takes))


def dialects() -> str:
    """The table of what one text selects."""
    found = counts()
    languages = list(found[PATTERNS[0]])
    rows = [(f"`{each}`", *found[each].values()) for each in PATTERNS]
    return _table("counts", [("Text", *languages), *rows])


def _table(kind: str, rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown with a class for its style."""
    head, *body = (f"| {' | '.join(each)} |" for each in rows)
    text = "\n".join([head, f"|{'---|' * len(rows[0])}", *body])
    return f"```{{table}}\n:class: {kind}\n\n{text}\n```"


def _tensors(model: torch.nn.Module, patterns: Patterns) -> str:
    many = len(covered(model, patterns))
    return f"{many} tensors" if many != 1 else "1 tensor"


def _code(text: str) -> str:
    return "<br>".join(f"`{line}`" for line in text.splitlines())


def _by_verb(plan: str) -> str:
    """The plan with every rule on a line of its own."""
    return re.sub(r"\)\.(?=[a-z_]+\()", ")\n.", plan)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
