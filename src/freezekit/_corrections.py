"""Corrections: what a layering names in a model, as its stem, its blocks and its head."""

from __future__ import annotations

from typing import Literal

from ._automaton import Automaton
from ._glob import parse
from ._layering import PARTS, Layering
from ._matches import Selection, check_matches
from ._names import Tree, Walk, walk
from ._rungs import Rung
from .errors import PlanError


class Corrections:
    """What a layering names in a model.

    Attributes:
        rungs: the blocks.
        parts: which parameters are the stem's or the head's.
    """

    def __init__(self, walked: Walk, layering: Layering) -> None:
        """Looks up the patterns of a layering; a tied parameter goes by its first name first.

        Raises:
            PlanError: two parts name one parameter, or blocks names no module; `PatternError`
                for a pattern that selects nothing.
        """
        lists = {part: getattr(layering, part) for part in PARTS}
        labels = [part for part, texts in lists.items() for _ in texts]
        automaton = Automaton([parse(text) for texts in lists.values() for text in texts], labels)
        self.rungs: list[Rung] = []
        self.parts: dict[int, Literal["stem", "head"]] = {}
        if not labels:
            return
        walked = walk(walked.modules[0], automaton)
        start = len(layering.stem)
        blocks = range(start, start + len(layering.blocks))
        check_matches(automaton, walked, [True] * len(labels), blocks)
        selection = Selection([*lists.values()], automaton)
        self.parts = _named_ends(walked.tree, selection)
        self.rungs = _named_blocks(walked.tree, selection)
        _check_blocks(walked.tree, automaton, blocks)


def _named_ends(tree: Tree, selection: Selection) -> dict[int, Literal["stem", "head"]]:
    """Returns which parameters are given to the stem or the head."""
    reached = [*enumerate(tree.accepts), *((alias.row, alias.accept) for alias in tree.aliases)]
    found: dict[int, Literal["stem", "head"]] = {}
    for row, accept in reached:
        stem = selection.selects(PARTS.index("stem"), accept)
        head = selection.selects(PARTS.index("head"), accept)
        if stem and head:
            raise PlanError(f"stem and head both name {tree.names[row]!r}; name it in one of them")
        if stem or head:
            found.setdefault(row, "stem" if stem else "head")
    return found


def _named_blocks(tree: Tree, selection: Selection) -> list[Rung]:
    """Returns the outermost modules with parameters that the patterns of the blocks name."""
    blocks = PARTS.index("blocks")
    filled = _filled(tree)
    named = [selection.selects(blocks, accept) for accept in tree.module_accepts]
    rungs, inside = [], set[int]()
    for row, parent in enumerate(tree.parents):
        if parent in inside or (named[row] and filled[row]):
            inside.add(row)
            if parent not in inside:
                turn = selection.first(blocks, tree.module_accepts[row])
                rungs.append(Rung(row, parent, row, turn))
    return rungs


def _check_blocks(tree: Tree, automaton: Automaton, blocks: range) -> None:
    """Raises for the first pattern of the blocks that names no module with parameters.

    Args:
        tree: the model's columns, by a walk with the automaton.
        automaton: all patterns.
        blocks: which of them are those of the blocks.
    """
    filled = _filled(tree)
    accepts = {accept for row, accept in enumerate(tree.module_accepts) if filled[row]}
    met = frozenset[int]().union(*(automaton.accepts[accept] for accept in accepts))
    for identifier in blocks:
        if identifier not in met:
            pattern = automaton.patterns[identifier]
            why = " by its first name" if pattern.regex is None else "; re: is for parameters"
            raise PlanError(
                f"blocks: {pattern.text!r} names no module with parameters{why}; name the modules "
                "that are the blocks, e.g. blocks='encoder.blocks.*'"
            )


def _filled(tree: Tree) -> list[bool]:
    """Returns for each module whether it has parameters at or below it."""
    filled = [False] * len(tree.prefixes)
    for row in tree.owners:
        while row >= 0 and not filled[row]:
            filled[row] = True
            row = tree.parents[row]
    return filled
