"""Placing: which layer each parameter belongs to, once it is known what the blocks are."""

from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from ._ends import closing_of, early_heads, embeds
from ._names import Tree
from ._rungs import Clock, Rung, holders_of, inside_of
from ._shape import Shape, ancestors, is_norm
from .errors import PlanError


class Placed(NamedTuple):
    """Where the parameters of a model belong.

    Attributes:
        names: of the layers, from input to output.
        places: for each parameter, which layer is its own.
        rungs: the modules that are layers, in the same order.
        blocks: where these stand among the layers.
        astray: rows of modules beside rungs that are given in another order than registered.
    """

    names: list[str]
    places: list[int]
    rungs: list[Rung]
    blocks: range
    astray: list[int]


def place(
    shape: Shape,
    rungs: Sequence[Rung],
    clock: Clock,
    *,
    closing: bool,
    parts: Mapping[int, Literal["stem", "head"]],
    open_ended: bool,
) -> Placed:
    """Returns where the parameters of a model belong.

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
    stem, head = -1, len(timed)
    homes = _homes(shape, timed, clock)
    if open_ended and not clock.runs:
        homes |= dict.fromkeys(early_heads(shape, timed), head)
    if not open_ended and timed:
        homes = {owner: min(max(at, 0), head - 1) for owner, at in homes.items()}
    if closing and timed:
        ending = closing_of(shape, timed[order[-1]], clock, holders_of(tree, timed))
        homes |= dict.fromkeys(ending, order[-1])
    turns = {at: turn for turn, at in enumerate(order)} | {stem: stem, head: head}
    ends = {"stem": stem, "head": head}
    raw = [
        ends[parts[row]] if row in parts else turns[homes[owner]]
        for row, owner in enumerate(tree.owners)
    ]
    ordered = [timed[at] for at in order]
    labels = {at: tree.prefixes[rung.row][:-1] for at, rung in enumerate(ordered)}
    for label, at in ends.items():
        labels[at] = f"{label} (rest)" if label in labels.values() else label
    places = {at: place for place, at in enumerate(sorted(set(raw)))}
    blocks = range(stem in places, len(places) - (head in places))
    inside, given = inside_of(tree, timed), {tree.owners[row] for row in parts}
    outside = [owner for owner in homes if inside[owner] < 0 and owner not in given]
    return Placed(
        [labels[at] for at in places],
        [places[at] for at in raw],
        ordered,
        blocks,
        [] if order == sorted(order) else outside,
    )


def _whole_rungs(tree: Tree, rungs: Sequence[Rung], parts: Mapping[int, str]) -> list[Rung]:
    """Returns the rungs without those that belong to the stem or the head as a whole."""
    given: list[list[str | None]] = [[] for _ in rungs]
    inside = inside_of(tree, rungs)
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


def _homes(shape: Shape, rungs: Sequence[Rung], clock: Clock) -> dict[int, int]:
    """Returns the rung that takes the own parameters of each module.

    -1 is what comes before the first one, the number of rungs what comes behind the last.
    """
    tree = shape.tree
    inside = inside_of(tree, rungs)
    holders = holders_of(tree, rungs)
    starts = [clock.whole(rung.row) for rung in rungs]
    homes = {}
    for owner in dict.fromkeys(tree.owners):
        homes[owner] = inside[owner]
        if inside[owner] < 0:
            before = bisect(starts, clock.own(owner))
            homes[owner] = _gap(shape, rungs, owner, _piece(tree, holders, owner), before)
    return homes


def _gap(shape: Shape, rungs: Sequence[Rung], owner: int, piece: int, before: int) -> int:
    """Returns the rung that takes the own parameters of a module outside of all rungs.

    What stands in a stage stays in it, but for what begins the model or normalises for the head.

    Args:
        shape: what the model is judged by.
        rungs: in the order of the clock.
        owner: the module.
        piece: the largest module around it that holds no rung.
        before: how many rungs come before it.
    """
    tree = shape.tree
    above = {owner, *ancestors(tree, owner)}
    is_last = before == len(rungs)
    ends_stack = is_last or before == 0 or rungs[before - 1].stack != rungs[before].stack
    if ends_stack and embeds(shape, piece):
        return -1
    if before == 0:
        in_stage = bool(rungs) and rungs[0].stage in above and tree.owners[0] < rungs[0].stage
        return 0 if in_stage else -1
    if is_last:
        in_stage = rungs[-1].stage in above and not is_norm(tree.class_names[piece])
        return before - 1 if in_stage else before
    shared = []
    for rung in rungs[before - 1 : before + 1]:
        row = rung.row
        while row not in above:
            row = tree.parents[row]
        shared.append(row)
    return before if shared[1] > shared[0] else before - 1


def _piece(tree: Tree, holders: set[int], row: int) -> int:
    """Returns the largest module around one that holds no rung."""
    while row and row not in holders and tree.parents[row] not in holders:
        row = tree.parents[row]
    return row
