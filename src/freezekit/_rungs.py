"""Rungs: the modules that are layers, their order, and what structure does not tell of it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ._names import Tree
from ._shape import Shape, ancestors
from ._stacks import find_stacks

_CHANNELS = (3, 4)


class Rung(NamedTuple):
    """A block, or a part of a model without blocks.

    Attributes:
        row: its module.
        stack: what it has in common with the rungs of its stack only.
        stage: the row of its stage; itself, where it is in none.
        turn: its place in an order that is given; alike where none is.
    """

    row: int
    stack: int
    stage: int
    turn: int = 0


class Clock:
    """When each module comes in: in the order of registration, or in that of first use.

    What is never used comes in with what is registered before it.

    Attributes:
        runs: whether the order is that of first use.
    """

    def __init__(self, tree: Tree, uses: Sequence[int | None] | None) -> None:
        """Reads when parameters are used.

        Args:
            tree: the model's columns.
            uses: for each parameter, when it is first used; None: the order is registration's.
        """
        self.runs = uses is not None
        moments = [0] * len(tree.names) if uses is None else uses
        count = len(tree.prefixes)
        own: list[int | None] = [None] * count
        before, last = [-1] * count, -1
        waiting = 0
        for used, owner in zip(moments, tree.owners, strict=True):
            before[waiting : owner + 1] = [last] * (owner + 1 - waiting)
            waiting = owner + 1
            if used is not None:
                own[owner] = _earlier(own[owner], used)
                last = used
        before[waiting:] = [last] * (count - waiting)
        whole = own.copy()
        for row in range(count - 1, 0, -1):
            parent = tree.parents[row]
            whole[parent] = _earlier(whole[parent], whole[row])
        self._own = [then if at is None else at for at, then in zip(own, before, strict=True)]
        self._whole = [then if at is None else at for at, then in zip(whole, before, strict=True)]

    def own(self, row: int) -> tuple[int, int]:
        """Returns what to order a module by that stands for its own parameters."""
        return self._own[row], row

    def whole(self, row: int) -> tuple[int, int]:
        """Returns what to order a module by that stands for all below it."""
        return self._whole[row], row


def find_rungs(shape: Shape, by: str) -> tuple[list[Rung], bool]:
    """Returns the modules that are layers, and whether they are blocks of a deep model."""
    stacks, others = find_stacks(shape)
    rungs = [
        Rung(row, number, stage)
        for number, stack in enumerate(stacks)
        for stage, blocks in zip(*stack, strict=True)
        for row in ([stage] if by == "stage" else blocks)
    ]
    if rungs:
        return rungs, True
    whole = {block for stack in others for row in stack.blocks for block in row}
    return [Rung(row, 0, row) for row in _pieces(shape, whole)], False


def unsure(shape: Shape, rungs: Sequence[Rung]) -> list[tuple[int, int]]:
    """Returns pairs of modules of which structure does not say that the first one comes first.

    It does say so for neighbours in one container, and for siblings whose numbers go up.
    """
    found = []
    for one, two in pairwise(rungs):
        above = {one.row: one.row}
        row = one.row
        while row:
            above[shape.tree.parents[row]] = row
            row = shape.tree.parents[row]
        row = child = two.row
        while row not in above:
            row, child = shape.tree.parents[row], row
        if not (shape.is_plain(row) or shape.counts_up(above[row], child)):
            found.append((one.row, two.row))
    return found


def late_inputs(shape: Shape, rungs: Sequence[Rung]) -> list[tuple[int, int]]:
    """Returns what takes the model's input, by its looks, with what is registered before it.

    A convolution over three or four channels takes in images: behind the blocks, or behind a linear
    layer before them, it is a surprise.
    """
    tree = shape.tree
    if not rungs:
        return []
    rows = {rung.row for rung in rungs}
    first, last = min(rows), max(rows)
    inside = inside_of(tree, rungs)
    linear = [
        row
        for row in dict.fromkeys(tree.owners)
        if row < first and inside[row] < 0 and tree.class_names[row].endswith("Linear")
    ]
    found = []
    for owner, sizes in zip(tree.owners, tree.shapes, strict=True):
        images = sizes is not None and len(sizes) > 2 and sizes[1] in _CHANNELS
        if inside[owner] >= 0 or not images:
            continue
        if owner > last:
            found.append((last, owner))
        elif linear and linear[0] < owner < first:
            found.append((linear[0], owner))
    return found


def unconnected(
    tree: Tree, rungs: Sequence[Rung], behind: Sequence[int | None]
) -> list[tuple[int, int]]:
    """Returns the neighbours where nothing of the first had a part in what the second was used on.

    Args:
        tree: the model's columns.
        rungs: from input to output.
        behind: for each parameter, which others are behind what it was used with, a bit for each;
            None for one that was not used.
    """
    inside = inside_of(tree, rungs)
    own, met, used = [0] * len(rungs), [0] * len(rungs), [False] * len(rungs)
    for row, owner in enumerate(tree.owners):
        at, bits = inside[owner], behind[row]
        if at >= 0 and bits is not None:
            own[at] |= 1 << row
            met[at] |= bits
            used[at] = True
    return [
        (rungs[at].row, rungs[at + 1].row)
        for at in range(len(rungs) - 1)
        if used[at] and used[at + 1] and not met[at + 1] & own[at]
    ]


def inside_of(tree: Tree, rungs: Sequence[Rung]) -> list[int]:
    """Returns, for each module, the rung that it is or lies in, or -1."""
    inside = [-1] * len(tree.prefixes)
    for at, rung in enumerate(rungs):
        inside[rung.row] = at
    for row, parent in enumerate(tree.parents):
        if inside[row] < 0 <= parent:
            inside[row] = inside[parent]
    return inside


def holders_of(tree: Tree, rungs: Sequence[Rung]) -> set[int]:
    """Returns the rungs and the modules that hold them."""
    return {each for rung in rungs for each in (rung.row, *ancestors(tree, rung.row))}


def at_or_below(tree: Tree, tops: set[int]) -> list[int]:
    """Returns the rows of some modules and of all below them."""
    return [row for row in range(len(tree.prefixes)) if tops & {row, *ancestors(tree, row)}]


def _earlier(one: int | None, two: int | None) -> int | None:
    known = [at for at in (one, two) if at is not None]
    return min(known, default=None)


def _pieces(shape: Shape, whole: set[int]) -> list[int]:
    """Returns the layers of a model without blocks: its children, containers opened."""
    opened = set[int]()
    for row in range(len(shape.below) - 1, -1, -1):
        if row in whole or row in opened:
            opened.add(shape.tree.parents[row])
        elif shape.is_plain(row):
            opened.add(row)
    pieces = [0]
    while len(pieces) == 1 and shape.below[pieces[0]]:
        pieces = _children(shape, pieces[0], opened)
    return pieces


def _children(shape: Shape, row: int, opened: set[int]) -> list[int]:
    """Returns the children of a module, with those of opened ones in their place."""
    found = []
    for child in shape.below[row]:
        found += _children(shape, child, opened) if child in opened else [child]
    return found
