"""Stages: whether the members of a row are blocks, or stages that hold the blocks."""

from collections.abc import Sequence
from typing import NamedTuple

from ._shape import Shape, is_embedding


class Stack(NamedTuple):
    """A row of siblings.

    Attributes:
        members: rows of the siblings, as registered.
        blocks: for each of them the rows of its blocks: itself, where it is no stage.
    """

    members: list[int]
    blocks: list[list[int]]

    @property
    def staged(self) -> bool:
        """Whether the members are stages that hold the blocks."""
        return any(blocks != [member] for member, blocks in zip(*self, strict=True))


def read_stages(shape: Shape, members: list[int]) -> Stack:
    """Returns a row with its members as they are, or with their blocks where they are stages.

    Stages repeat blocks, and most of them differ in size. Of one size they are stages where their
    blocks are deep, normalised and built alike, or where all are plain containers and their blocks
    of one size: a block with a list of experts stays whole, and one of two parts in like wrappers.
    """
    names = shape.tree.class_names
    kin: dict[str, list[int]] = {}
    for member in members:
        kin.setdefault(names[member], []).append(member)
    inner = [_inner_blocks(shape, member, kin[names[member]]) for member in members]
    if any(inner):
        kept = [
            (member, row)
            for member, row in zip(members, inner, strict=True)
            if row or not is_embedding(names[member])
        ]
        members, inner = [member for member, _ in kept], [row for _, row in kept]
    repeated = [row for row in inner if shape.twins(row)]
    sizes = [{shape.numel[block] for block in row} for row in (members, *repeated)]
    differ = len(sizes[0]) > 1 and 2 * len(sizes[0]) > len(members)
    copies = all(map(shape.is_plain, members)) and all(len(each) == 1 for each in sizes)
    nested = all(row and len({shape.kinds[block] for block in row}) == 1 for row in inner) and all(
        shape.norms[block] and shape.depth[block] > 1 and not shape.is_plain(block)
        for row in inner
        for block in row
    )
    if not repeated or not (differ or copies or nested):
        return _without_ends(shape, Stack(members, [[member] for member in members]))
    blocks = [row or [each] for each, row in zip(members, inner, strict=True)]
    return _without_ends(shape, Stack(members, blocks))


def _without_ends(shape: Shape, stack: Stack) -> Stack:
    """Returns a row without the layers of one weight that lead to its blocks and from them.

    In an EfficientNet so do a convolution with its norm each, all in one container. Stages apart,
    they are of a class that no block has.
    """
    names = shape.tree.class_names
    pairs = [*zip(*stack, strict=True)]
    heavy = [
        at for at, (member, row) in enumerate(pairs) if row != [member] or shape.weights[member] > 1
    ]
    start, stop = (heavy[0], heavy[-1] + 1) if heavy else (0, len(pairs))
    classes = set() if stack.staged else {names[member] for member, _ in pairs[start:stop]}
    while start and names[pairs[start - 1][0]] in classes:
        start -= 1
    while stop < len(pairs) and names[pairs[stop][0]] in classes:
        stop += 1
    return Stack(stack.members[start:stop], stack.blocks[start:stop])


def _inner_blocks(shape: Shape, member: int, kin: Sequence[int]) -> list[int]:
    """Returns the blocks of a member of a row, if it can be a stage; its kin are of its class.

    A plain container can. A module of a class of its own can if more than half of its parameters
    are in blocks in one container, or if it is nothing but numbered ones; half of the members of
    its class decide for all: what leads from stage to stage may outweigh the blocks of one.
    """
    if shape.is_plain(member):
        single = all(len(shape.below[each]) == 1 for each in kin)
        deeper = _blocks_deeper(shape, member) if single else []
        parts = shape.composites(shape.below[member])
        return _blocks_behind(shape, member) or deeper or parts
    for name, row in _contained(shape, member).items():
        inner = [_contained(shape, each).get(name, []) for each in kin]
        heavy = sum(
            2 * shape.total(blocks) > shape.numel[each]
            for blocks, each in zip(inner, kin, strict=True)
        )
        held = 2 * sum(map(shape.total, inner)) > shape.total(kin)
        if held or 2 * heavy >= len(kin):
            return row if are_blocks(shape, row) else []
    return _blocks_deeper(shape, member)


def _blocks_deeper(shape: Shape, member: int) -> list[int]:
    """Returns the blocks in a list further down in a stage, in what holds most of its parameters.

    A stage of a SwinIR holds a group that holds the blocks, and a convolution. The blocks are
    several, built alike; what leads to them and from them has one weight, and is no embedding, as
    in a tower.
    """
    names = shape.tree.class_names
    sides = [child for child in shape.below[member] if 2 * shape.numel[child] < shape.numel[member]]
    if any(shape.weights[side] > 1 or is_embedding(names[side]) for side in sides):
        return []
    row, rows = member, list[int]()
    while len(rows) < 2 or not shape.is_plain(row):
        heavy = [
            child for child in shape.below[row] if 2 * shape.numel[child] > shape.numel[member]
        ]
        if not heavy or (row == member and shape.is_plain(heavy[0])):
            return []
        row, rows = heavy[0], shape.below[heavy[0]]
    alike = len({shape.kinds[row] for row in rows}) == 1
    return rows if alike and shape.norms[rows[0]] and are_blocks(shape, rows) else []


def _contained(shape: Shape, member: int) -> dict[str, list[int]]:
    """Returns the rows that a module holds: by the names of containers, "" for its own children."""
    found = {
        shape.leaf(child): shape.below[child]
        for child in shape.below[member]
        if shape.is_plain(child)
    }
    own = [run for run in shape.numbered(member) if run == shape.below[member]]
    return found | dict.fromkeys([""] if own else [], shape.below[member])


def _blocks_behind(shape: Shape, member: int) -> list[int]:
    """Returns the blocks in a plain container of a module with blocks and of what leads to it.

    So are the stages of a CSPNet: a convolution, and a module with a list of blocks. One with a
    single block, or with most parameters outside of the blocks, stays whole. Where a block leads
    to it, as in a MobileViT, the parts are blocks themselves.
    """
    parts = shape.composites(shape.below[member])
    if shape.twins(parts) or len(parts) < 2 or shape.weights[parts[0]] > 1:
        return []
    for part in parts:
        lists = [child for child in shape.below[part] if shape.is_plain(child)]
        if not shape.is_plain(part) and any(are_blocks(shape, shape.below[row]) for row in lists):
            blocks = _inner_blocks(shape, part, [part])
            return blocks if shape.twins(blocks) else [member]
    return []


def are_blocks(shape: Shape, rows: Sequence[int]) -> bool:
    """Returns whether modules can be blocks: with parts, and several weights and norms, or deep."""
    return len(shape.composites(rows)) == len(rows) and (
        all(shape.depth[row] > 1 for row in rows)
        or all(shape.weights[row] > 1 and shape.norms[row] for row in rows)
    )
