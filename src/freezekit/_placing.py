"""Placing: which layer each parameter belongs to, once it is known what the blocks are."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from ._names import Tree
from ._shape import Shape, ancestors, is_embedding, is_norm
from ._stacks import find_stacks
from .errors import PlanError


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


def place(
    shape: Shape,
    rungs: Sequence[Rung],
    clock: Clock,
    *,
    closing: bool,
    parts: Mapping[int, Literal["stem", "head"]],
    open_ended: bool,
) -> tuple[list[str], list[int], list[Rung]]:
    """Returns the names of the layers, the place of each parameter among them, and the rungs left.

    Args:
        shape: what the model is judged by.
        rungs: the modules that are layers.
        clock: their order, and that of all around them.
        closing: whether the norm behind the last block belongs to it.
        parts: which parameters are the stem's or the head's, whatever stands where.
        open_ended: whether there may be a stem and a head beside those given.

    Raises:
        PlanError: some parameters of a rung are given to the stem or the head, others are not.
    """
    tree = shape.tree
    timed = sorted(rungs, key=lambda rung: clock.whole(rung.row))
    timed = _whole_rungs(tree, timed, parts)
    order = sorted(range(len(timed)), key=lambda at: timed[at].turn)
    count = len(timed)
    goes = _ends(order, open_ended)
    homes = _homes(shape, timed, clock, goes)
    if open_ended and not clock.runs:
        homes |= dict.fromkeys(_early_heads(shape, timed), goes.behind)
    if closing and timed:
        ending = _closing(shape, timed[order[-1]], clock, _holders(tree, timed))
        homes |= dict.fromkeys(ending, order[-1])
    turns = {at: turn for turn, at in enumerate(order)} | {-1: -1, count: count}
    ends = {"stem": -1, "head": count}
    raw = [
        ends[parts[row]] if row in parts else turns[homes[owner]]
        for row, owner in enumerate(tree.owners)
    ]
    ordered = [timed[at] for at in order]
    labels = {at: tree.prefixes[rung.row][:-1] for at, rung in enumerate(ordered)}
    for label, at in ends.items():
        labels[at] = f"{label} (rest)" if label in labels.values() else label
    places = {at: place for place, at in enumerate(sorted(set(raw)))}
    return [labels[at] for at in places], [places[at] for at in raw], ordered


def unsure(shape: Shape, rungs: Sequence[Rung]) -> list[tuple[int, int]]:
    """Returns the neighbours of which structure does not say that one comes before the other.

    It does say so for what stands in one container, and for siblings whose numbers go up.
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
    inside = _inside(tree, rungs)
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


def _earlier(one: int | None, two: int | None) -> int | None:
    known = [at for at in (one, two) if at is not None]
    return min(known, default=None)


def _inside(tree: Tree, rungs: Sequence[Rung]) -> list[int]:
    """Returns, for each module, the rung that it is or lies in, or -1."""
    inside = [-1] * len(tree.prefixes)
    for at, rung in enumerate(rungs):
        inside[rung.row] = at
    for row, parent in enumerate(tree.parents):
        if inside[row] < 0 <= parent:
            inside[row] = inside[parent]
    return inside


def _whole_rungs(tree: Tree, rungs: Sequence[Rung], parts: Mapping[int, str]) -> list[Rung]:
    """Returns the rungs without those that belong to the stem or the head as a whole."""
    given: list[list[str | None]] = [[] for _ in rungs]
    inside = _inside(tree, rungs)
    for row, owner in enumerate(tree.owners):
        if inside[owner] >= 0:
            given[inside[owner]].append(parts.get(row))
    for rung, found in zip(rungs, given, strict=True):
        if len(set(found)) > 1:
            label = next(each for each in found if each)
            raise PlanError(
                f"{label} names {found.count(label)} of the {len(found)} parameters of "
                f"{tree.prefixes[rung.row][:-1]!r}, which is one layer; name all of it, or say "
                "with blocks= what the layers are"
            )
    return [rung for rung, found in zip(rungs, given, strict=True) if set(found) == {None}]


class _Ends(NamedTuple):
    """Where goes what stands before the first rung, behind the last one, or embeds the input."""

    before: int
    behind: int
    embeds: int


def _ends(order: Sequence[int], open_ended: bool) -> _Ends:
    """Returns the ends, given which rung comes first, second, ...

    What stands before the first block or behind the last one is stem or head, but not what stands
    beside another one where the order is given.
    """
    count = len(order)
    if not order:
        return _Ends(-1, -1, -1)
    if not open_ended:
        return _Ends(0, count - 1, 0)
    return _Ends(
        -1 if order[0] == 0 else 0, count if order[-1] == count - 1 else count - 1, embeds=-1
    )


def _homes(shape: Shape, rungs: Sequence[Rung], clock: Clock, ends: _Ends) -> dict[int, int]:
    """Returns the rung that takes the own parameters of each module, -1 and up to their count."""
    tree = shape.tree
    inside = _inside(tree, rungs)
    holders = _holders(tree, rungs)
    starts = [clock.whole(rung.row) for rung in rungs]
    homes = {}
    for owner in dict.fromkeys(tree.owners):
        homes[owner] = inside[owner]
        if inside[owner] < 0:
            before = bisect(starts, clock.own(owner))
            homes[owner] = _gap(shape, rungs, owner, _piece(tree, holders, owner), before, ends)
    return homes


def _gap(
    shape: Shape, rungs: Sequence[Rung], owner: int, piece: int, before: int, ends: _Ends
) -> int:
    """Returns the rung that takes the own parameters of a module outside of all rungs.

    What stands in a stage stays in it, but for what begins the model or normalises for the head.

    Args:
        shape: what the model is judged by.
        rungs: in the order of the clock.
        owner: the module.
        piece: the largest module around it that holds no rung.
        before: how many rungs come before it.
        ends: where goes what is not between two rungs.
    """
    tree = shape.tree
    above = {owner, *ancestors(tree, owner)}
    is_last = before == len(rungs)
    ends_stack = is_last or before == 0 or rungs[before - 1].stack != rungs[before].stack
    if ends_stack and _embeds(shape, piece):
        return ends.embeds if before else ends.before
    if before == 0:
        in_stage = bool(rungs) and rungs[0].stage in above and tree.owners[0] < rungs[0].stage
        return 0 if in_stage else ends.before
    if is_last:
        in_stage = rungs[-1].stage in above and not is_norm(tree.class_names[piece])
        return before - 1 if in_stage else ends.behind
    shared = []
    for rung in rungs[before - 1 : before + 1]:
        row = rung.row
        while row not in above:
            row = tree.parents[row]
        shared.append(row)
    return before if shared[1] > shared[0] else before - 1


def _early_heads(shape: Shape, rungs: Sequence[Rung]) -> set[int]:
    """Returns the modules of heads that are registered before their backbone.

    A backbone with all blocks and a table of embeddings in front of them begins with a lookup, so
    what stands before it, and takes in as many features as the table gives, comes behind it; but
    not an output layer that is tied to the table.
    """
    tree = shape.tree
    if not rungs:
        return set()
    first, holders = rungs[0].row, _holders(tree, rungs)
    heads = set[int]()
    for backbone, parent in pairwise([first, *ancestors(tree, first)]):
        alone = all(backbone in (rung.row, *ancestors(tree, rung.row)) for rung in rungs)
        early = [each for each in shape.below[parent] if each < backbone and each not in holders]
        if alone and early:
            widths = {
                sizes[-1]
                for sizes, owner in zip(tree.shapes, tree.owners, strict=True)
                if backbone < owner < first and sizes and is_embedding(tree.class_names[owner])
            }
            found = {
                each
                for each in early
                if _takes_in(tree, each) in widths and not _embeds(shape, each)
            }
            tied = {tree.owners[a.row] for a in tree.aliases if backbone < a.owner < first}
            heads |= {*_at_or_below(tree, found)} - tied
    return heads


def _takes_in(tree: Tree, row: int) -> int | None:
    """Returns how many features the first matrix of a module takes in."""
    prefix = tree.prefixes[row]
    named = zip(tree.names, tree.shapes, strict=True)
    matrices = (s for name, s in named if s and len(s) == 2 and name.startswith(prefix))
    return next((sizes[1] for sizes in matrices), None)


def _at_or_below(tree: Tree, tops: set[int]) -> list[int]:
    """Returns the rows of some modules and of all below them."""
    return [row for row in range(len(tree.prefixes)) if tops & {row, *ancestors(tree, row)}]


def _embeds(shape: Shape, piece: int) -> bool:
    """Returns whether a module embeds the input, or the first one of a container does."""
    while shape.is_plain(piece) and shape.below[piece]:
        piece = shape.below[piece][0]
    return is_embedding(shape.tree.class_names[piece])


def _holders(tree: Tree, rungs: Sequence[Rung]) -> set[int]:
    """Returns the rungs and the modules that hold them."""
    return {each for rung in rungs for each in (rung.row, *ancestors(tree, rung.row))}


def _piece(tree: Tree, holders: set[int], row: int) -> int:
    """Returns the largest module around one that holds no rung."""
    while row not in holders and tree.parents[row] not in holders:
        row = tree.parents[row]
    return row


def _closing(shape: Shape, last: Rung, clock: Clock, holders: set[int]) -> list[int]:
    """Returns the modules from the last block to the norm that ends it, before any pooling.

    They must stand beside what holds the blocks, as in a ViT or an EfficientNet, and give the width
    of the norm, or the last block must: in a DenseNet the norm takes in more than the last block,
    so it normalises for the head, as one behind a placeholder for the norm does. What gives another
    width right before the norm is a head by itself.
    """
    tree = shape.tree
    above = {*ancestors(tree, last.row)}
    found: list[int] = []
    later = [row for row in range(len(tree.prefixes)) if clock.whole(row) > clock.whole(last.row)]
    for row in sorted(later, key=clock.whole):
        if tree.parents[row] not in above or row in holders:
            continue
        name = tree.class_names[row]
        if "pool" in name.lower() or (name == "Identity" and "norm" in shape.leaf(row)):
            return []
        if shape.numel[row] and _is_norm(shape, row):
            if not shape.weights[row]:  # What ends in a norm gives its width itself.
                width = _widths(tree, row)
                while found and not width & _widths(tree, found[-1]):
                    found.pop()
                if not found and not width & _widths(tree, last.row):
                    return []
            tops = {*found, row}
            return [
                each for each in range(len(tree.prefixes)) if tops & {each, *ancestors(tree, each)}
            ]
        found.append(row)
    return []


def _widths(tree: Tree, row: int) -> set[int]:
    """Returns the first sizes of the parameters of a module: weights give that width."""
    prefix = tree.prefixes[row]
    named = zip(tree.names, tree.shapes, strict=True)
    return {sizes[0] for name, sizes in named if sizes and name.startswith(prefix)}


def _is_norm(shape: Shape, row: int) -> bool:
    """Returns whether a module is or ends in a normalisation layer, and is not the head."""
    if shape.is_plain(row):
        return all(_is_norm(shape, child) for child in shape.below[row])
    name = shape.tree.class_names[row]
    return is_norm(name) and "head" not in f"{name} {shape.leaf(row)}".lower()


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
