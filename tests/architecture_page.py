"""The page of the documentation that shows the layers of each architecture."""

from __future__ import annotations

import re
from collections.abc import Sequence

import transformers
from architecture_notes import EXCEPTIONS, SAYS
from architectures import Report

INTRO = """# Architectures

What [`infer_layers`](layers.md) finds in the models of transformers {version}.
A test builds every class on the `meta` device from its default configuration, and checks that

- every parameter is in exactly one layer, and there is not one layer per parameter;
- the blocks are whole, none is left out, and they stand in the order of their numbers;
- input embeddings come before the blocks, and output embeddings and heads after them;
- there are as many blocks as the configuration says.

Of {bases} base classes {built} build; {passing} of these pass, {percent:.1f} %.
Of {heads} further classes with heads {heads_built} build; {heads_passing} of these pass.
They are those for classification of text, tokens, images and audio, for question answering,
language modelling, segmentation, detection and CTC.

What breaks one of these is marked as wrong below.
For such a model name `stem`, `blocks` and `head`, or write the rules out.

## Base classes

`12 x encoder.layer` are twelve blocks, `encoder.layer.0` to `encoder.layer.11`.
`2 + 6 x stages.*.blocks` are stages of two and six blocks.

| Architecture | Layers found | Note |
|---|---|---|
"""


def page(bases: Sequence[Report], heads: Sequence[Report]) -> str:
    """Returns the text of the page."""
    built, with_heads = (_built(each) for each in (bases, heads))
    passing, heads_passing = (
        sum(each.name not in EXCEPTIONS for each in found) for found in (built, with_heads)
    )
    intro = INTRO.format(
        version=transformers.__version__,
        bases=len(bases),
        built=len(built),
        passing=passing,
        percent=100 * passing / len(built),
        heads=len(heads),
        heads_built=len(with_heads),
        heads_passing=heads_passing,
    )
    table = [f"| {each.name} | {found(each)} | {note(each)} |" for each in built]
    wrong = [
        f"| {each.name} | {found(each)} | {note(each)} |"
        for each in with_heads
        if each.name in EXCEPTIONS
    ]
    missing = [
        f"| {each.name} | {_escaped(each.error)} |"
        for each in sorted((*bases, *heads), key=_by_name)
        if each.error
    ]
    return "\n".join(
        [
            intro + "\n".join(table),
            "",
            "## Classes with heads whose layers are wrong",
            "",
            "| Architecture | Layers found | Note |",
            "|---|---|---|",
            *wrong,
            "",
            "## Not built",
            "",
            "| Class | Why |",
            "|---|---|",
            *missing,
            "",
        ]
    )


def found(report: Report) -> str:
    """Returns the layers of a class in a line."""
    rows = [
        f"{' + '.join(map(str, sizes))} x `{path.removesuffix('.#').replace('#', '*')}`"
        for path, sizes in report.rows
    ]
    inner = rows or [f"{report.layers - len(report.ends)} parts"]
    return ", ".join(
        [*("stem" for _ in report.ends[:1] if "stem" in report.ends), *inner,
         *("head" for _ in report.ends[:1] if "head" in report.ends)]
    )  # fmt: skip


def note(report: Report) -> str:
    """Returns what is worth knowing of a class."""
    notes = [f"Wrong: {EXCEPTIONS[report.name]}."] if report.name in EXCEPTIONS else []
    notes += [f"`{key.partition('.')[2]}` {SAYS[key][1]}." for key in report.corrected]
    return " ".join(notes)


def _built(reports: Sequence[Report]) -> list[Report]:
    return sorted((each for each in reports if not each.error), key=_by_name)


def _by_name(report: Report) -> tuple[str, str]:
    return report.name.lower(), report.name


def _escaped(error: str) -> str:
    """Returns the first clause of an error, without paths and what would end the code or cell."""
    return f"`{re.split(r'[`|<]| neither in |[.:]$|[.] ', error)[0].strip()}`"
