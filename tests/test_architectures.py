"""All of transformers: the layers of every class that builds from a default configuration."""

import os
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import pytest
from architecture_notes import EXCEPTIONS, FIXES, NEEDS, SAYS
from architecture_page import page
from architectures import Report, build, classes, report

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
OVERWRITE = "FREEZEKIT_OVERWRITE_GOLDEN"
BASES = classes("MODEL_MAPPING")
HEADS = classes(
    *(
        f"MODEL_FOR_{task}_MAPPING"
        for task in (
            "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "CAUSAL_LM",
            "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION",
            "OBJECT_DETECTION", "AUDIO_CLASSIFICATION", "CTC",
        )
    )
)  # fmt: skip
HEADS = {name: kind for name, kind in HEADS.items() if name not in BASES}

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.untraced]


def checked(name: str) -> Report:
    """Returns the report on a class: with all its blocks, or with few where it has a head."""
    return report(BASES[name], name) if name in BASES else report(HEADS[name], name, few=True)


def groups(names: dict[str, str]) -> list[list[str]]:
    """Returns the classes with the same first letter together."""
    ordered = sorted(names, key=str.lower)
    return [list(group) for _, group in groupby(ordered, key=lambda name: name[0].lower())]


@pytest.mark.parametrize(
    "names", groups(BASES) + groups(HEADS), ids=lambda names: f"{names[0]} to {names[-1]}"
)
def test_layers_are_those_of_the_configuration(names: list[str]) -> None:
    """Every parameter in one layer, blocks whole, in order and as many as stated, ends at the ends.

    A class that is listed as an exception must break one of them.
    """
    reports = [checked(name) for name in names]
    wrong = {each.name: each.problems for each in reports if each.problems}
    assert {name: found for name, found in wrong.items() if name not in EXCEPTIONS} == {}
    assert {name for name in names if name in EXCEPTIONS} <= wrong.keys(), "stale exceptions"


def test_few_classes_are_exceptions() -> None:
    """At most 2 % of the base classes that build are listed, and 3 % of those with heads."""
    for names, share in ((BASES, 0.02), (HEADS, 0.03)):
        built = [name for name in names if not checked(name).error]
        assert len(EXCEPTIONS.keys() & built) <= share * len(built)
    assert set(EXCEPTIONS) <= {*BASES, *HEADS}


def test_most_classes_build() -> None:
    """The sweep sees what there is: nine in ten classes of each kind build."""
    for names in (BASES, HEADS):
        assert sum(not checked(name).error for name in names) >= 0.9 * len(names)


def test_what_is_noted_is_needed() -> None:
    """No setting, library or corrected count is listed that the sweep could do without."""
    kinds = {kind: name for name, kind in (HEADS | BASES).items()}
    for kind in FIXES:
        with pytest.raises(Exception):  # noqa: B017, PT011
            build(kind, kinds[kind], {})
    for library, needing in NEEDS.items():
        for kind in needing if find_spec(library) is None else ():
            with pytest.raises(ImportError, match=library):
                build(kind, kinds[kind], {})
    used = {key for name in (*BASES, *HEADS) for key in checked(name).corrected}
    assert used == set(SAYS)


def test_the_page_shows_what_is_found() -> None:
    """The table of the documentation is the one that the sweep gives now."""
    text = page([checked(name) for name in BASES], [checked(name) for name in HEADS])
    if os.environ.get(OVERWRITE):
        PAGE.write_text(text, encoding="utf-8")
    assert text == PAGE.read_text(encoding="utf-8")
