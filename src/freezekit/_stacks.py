"""Stacks: the rows of alike blocks in which deep models repeat themselves.

A stack is a row of siblings of one class with numbers in their names, or one after the other. Its
members are blocks, or stages that hold blocks. Judged by structure, classes and sizes; digits only
say that siblings form a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ._shape import Shape, ancestors, is_embedding
from ._stages import Stack, are_blocks, read_stages

_SIDE_STACK = 10


def find_stacks(shape: Shape) -> tuple[list[Stack], list[Stack]]:
    """Returns the outermost stacks of a model in the order of registration: those that count, all.

    Of several those count whose members have parts with parts as the layers of a transformer do,
    or that are large beside the largest; none inside of what is called a stem, unless its blocks
    are built as others that count: so is a U-Net's middle, too, however small.
    Shallow ones do not count where plain layers in a row hold more parameters than the largest.
    """
    stacks, runs = _numbered_stacks(shape)
    if not stacks:
        stacks = _runs(shape)
        return stacks, stacks
    stacks, largest_run = _with_single_blocks(shape, stacks, runs)
    outside = [stack for stack in stacks if not _in_stem(shape, stack)] or stacks
    bodies = [stack for stack in outside if not _in_head(shape, stack)] or outside
    largest = max(bodies, key=lambda stack: shape.total(stack.members))
    counting = [
        stack
        for stack in outside
        if _is_deep(shape, stack.members)
        or (shape.total(largest.members) >= largest_run and _is_large(shape, stack, largest))
    ]
    kinds = _kinds_of_blocks(shape, counting)
    alike = [stack for stack in stacks if _kinds_of_blocks(shape, [stack]) & kinds]
    alike = [stack for stack in alike if not _in_head(shape, stack)]
    return [stack for stack in stacks if stack in counting or stack in alike], stacks


def _in_stem(shape: Shape, stack: Stack) -> bool:
    """Returns whether a stack lies in what is called a stem."""
    return "stem" in shape.tree.prefixes[stack.members[0]].split(".")


def _is_large(shape: Shape, stack: Stack, largest: Stack) -> bool:
    """Returns whether a shallow stack counts beside the largest: with a tenth of its parameters.

    Layers of one weight in a row are no blocks beside blocks: those of a feature pyramid, or the
    branches of a pooling. Nor do rows in what is called a head count.
    """
    if stack is largest:
        return True
    single, body = (max(map(shape.weights.__getitem__, row.members)) for row in (stack, largest))
    return (
        shape.total(stack.members) * _SIDE_STACK >= shape.total(largest.members)
        and (single > 1 or body < 2)
        and not _in_head(shape, stack)
    )


def _in_head(shape: Shape, stack: Stack) -> bool:
    """Returns whether a stack lies in what is called a head."""
    path = shape.tree.prefixes[stack.members[0]].lower().split(".")
    return any(name.rstrip("s0123456789").endswith("head") for name in path)


def _with_single_blocks(
    shape: Shape, stacks: list[Stack], runs: Sequence[tuple[int, int]]
) -> tuple[list[Stack], int]:
    """Returns the stacks with the blocks that stand alone, and the size of the largest run.

    A U-Net's bottleneck is built as its blocks are: what is numbered in it is no stack, and nor is
    what is numbered in a module that the blocks hold, too.
    """
    names = shape.tree.class_names
    held = {shape.kinds[row] for row in _below(shape, _blocks(stacks))}
    alike = {row for row, kind in enumerate(shape.kinds) if kind in held}
    inside = {row for row in alike if names[row] != "ModuleList"}
    holders = {shape.tree.parents[stack.members[0]] for stack in stacks}
    inside.update(_below(shape, _single_blocks(shape, stacks, holders)))
    kept = [stack for stack in stacks if shape.tree.parents[stack.members[0]] not in inside]
    largest = max((size for parent, size in runs if parent not in inside), default=0)
    singles = _single_blocks(shape, kept, holders)
    return kept + _unstaged([[row] for row in singles]), largest


def _single_blocks(shape: Shape, stacks: Sequence[Stack], holders: set[int]) -> list[int]:
    """Returns the modules outside of the stacks, but beside one, that are built as its blocks.

    For a holder of numbered parts it is enough to be of their class: the middle of a U-Net may
    have other parts than its blocks.
    """
    names = shape.tree.class_names
    kinds = _kinds_of_blocks(shape, stacks)
    blocks = [block for block in _blocks(stacks) if shape.kinds[block] in kinds]
    classes = {names[block] for block in blocks if not shape.is_plain(block)}
    least = min((shape.numel[block] for block in blocks), default=0)
    taken = {row for stack in stacks for row in (*stack.members, *_blocks([stack]))}
    above = {row for stack in stacks for row in ancestors(shape.tree, stack.members[0])}
    found = []
    for row, parent in enumerate(shape.tree.parents):
        if row in taken or parent in taken:
            taken.add(row)
            continue
        alike = shape.kinds[row] in kinds or (row in holders and names[row] in classes)
        if alike and parent in above and shape.numel[row] >= least:
            found.append(row)
            taken.add(row)
    return found


def _kinds_of_blocks(shape: Shape, stacks: Iterable[Stack]) -> set[int]:
    """Returns how the blocks are built that have several weights and norms."""
    rows = _blocks(stacks)
    return {shape.kinds[row] for row in rows if shape.norms[row] and shape.weights[row] > 1}


def _blocks(stacks: Iterable[Stack]) -> list[int]:
    """Returns the blocks of all stacks."""
    return [block for stack in stacks for row in stack.blocks for block in row]


def _below(shape: Shape, rows: Iterable[int]) -> list[int]:
    """Returns some modules and all that lie below them."""
    found = list(rows)
    for row in found:
        found += shape.below[row]
    return found


def _numbered_stacks(shape: Shape) -> tuple[list[Stack], list[tuple[int, int]]]:
    """Returns the stacks of numbered siblings, and the rows of plain layers: parent and size."""
    stacks: list[Stack] = []
    sized: list[tuple[int, int]] = []
    inside, beside = set[int](), set[int]()
    for row, parent in enumerate(shape.tree.parents):
        if parent in inside:
            inside.add(row)
        if row in inside:
            continue
        if parent in beside:
            beside.add(row)
        runs = shape.numbered(row)
        found = [
            read_stages(shape, parts)
            for parts in map(shape.composites, runs)
            if _repeats(shape, row, parts) and not _embed(shape, parts)
        ]
        found = _without_links(_on_one_level(shape, found))
        taken = {member for stack in found for member in stack.members}
        if not any(stack.staged for stack in found):
            sized += [(row, shape.total(shape.twins(run))) for run in runs if not taken & {*run}]
            if row not in beside:
                rest = [each for each in shape.below[row] if each not in taken]
                found += _unstaged([_branched(shape, rest)])
        for stack in found:
            stacks.append(stack)
            inside.update(stack.members)
        if found:
            beside.add(row)
    return stacks, sized


def _on_one_level(shape: Shape, stacks: list[Stack]) -> list[Stack]:
    """Returns the stacks beside each other, as one without stages if blocks of these stand there.

    In a small ResNet do so convolutions, and residual blocks of two such, in turn.
    """
    flat = {shape.kinds[row] for stack in stacks if not stack.staged for row in stack.members}
    for stack in stacks:
        if stack.staged and any(shape.kinds[row] in flat for row in _blocks([stack])):
            return _unstaged([sorted(row for each in stacks for row in each.members)])
    return stacks


def _without_links(stacks: list[Stack]) -> list[Stack]:
    """Returns the stacks beside each other without the rows that only lead from stage to stage."""
    last = max((stack.members[-1] for stack in stacks if stack.staged), default=-1)
    return [stack for stack in stacks if stack.staged or stack.members[0] > last]


def _unstaged(rows: Iterable[Sequence[int]]) -> list[Stack]:
    """Returns stacks with the members of rows as blocks."""
    return [Stack([*row], [[member] for member in row]) for row in rows if row]


def _branched(shape: Shape, siblings: Sequence[int]) -> list[int]:
    """Returns the siblings that are blocks of branches, if three are of one class.

    The modules of an Inception network have names without numbers, but their branches are rows of
    numbered convolutions: these are no blocks, and those that hold them no towers.
    """
    named = [each for each in siblings if not shape.is_plain(each)]
    if len(shape.twins(named)) < 3:
        return []
    found = [each for each in named if _has_branches(shape, each)]
    counts = Counter(shape.tree.class_names[each] for each in found)
    return found if max(counts.values(), default=0) > 2 else []


def _has_branches(shape: Shape, row: int) -> bool:
    rows = _rows_below(shape, row)
    return bool(rows) and not any(are_blocks(shape, each) for each in rows)


def _rows_below(shape: Shape, row: int) -> list[list[int]]:
    """Returns the rows of numbered siblings with twins among them that lie below a module."""
    found = [shape.composites(run) for run in shape.numbered(row)]
    found = [run for run in found if shape.twins(run)]
    return found + [each for child in shape.below[row] for each in _rows_below(shape, child)]


def _repeats(shape: Shape, parent: int, run: Sequence[int]) -> bool:
    """Returns whether siblings are blocks: several of one class, or a stack of one block."""
    if len(run) == 1 and shape.is_plain(parent) and len(shape.below[parent]) == 1:
        return _is_block(shape, run[0])
    return bool(shape.twins(run))


def _is_block(shape: Shape, row: int) -> bool:
    """Returns whether a module by itself is a block: deep, or a container of its several parts.

    The parts differ in what they are made of, also where all stand in wrappers of one class.
    """
    if not shape.is_plain(row):
        return shape.depth[row] > 1 and _is_last(shape, row)
    parts = shape.below[row]
    kinds = {shape.kinds[part] for part in parts}
    classes = {shape.tree.class_names[part] for part in parts}
    built = {(shape.tree.class_names[part], *map(shape.leaf, shape.below[part])) for part in parts}
    return (
        len(kinds) == len(parts) > 1
        and len(built) == len(classes)  # Else they are blocks, with and without a further part.
        and are_blocks(shape, parts)
        and all(_is_last(shape, part) for part in parts)
    )


def _is_last(shape: Shape, row: int) -> bool:
    """Returns whether no stack of blocks lies below a module.

    Parts of a block may be of one class, too, in a list, or two with numbers in their names as
    the halves of a Conformer's: only deep ones count in the one, only three in the other.
    """
    runs = [shape.composites(run) for run in shape.numbered(row)]
    runs = [run for run in runs if shape.twins(run)]
    if shape.tree.class_names[row] == "Sequential":
        last = not any(_is_deep(shape, run) or are_blocks(shape, run) for run in runs)
    else:
        least = 2 if shape.is_plain(row) else 3
        last = not any(_is_deep(shape, run) and len(run) >= least for run in runs)
    return last and all(_is_last(shape, child) for child in shape.below[row])


def _is_deep(shape: Shape, rows: Iterable[int]) -> bool:
    return any(shape.depth[row] > 1 for row in rows)


def _embed(shape: Shape, rows: Iterable[int]) -> bool:
    return all(is_embedding(shape.tree.class_names[row]) for row in rows)


def _runs(shape: Shape) -> list[Stack]:
    """Returns the outermost rows of modules of one class that no number ties together."""
    stacks: list[Stack] = []
    inside = set[int]()
    for row, parent in enumerate(shape.tree.parents):
        if parent in inside:
            inside.add(row)
        if row in inside or shape.is_plain(row):
            continue
        parts = [each for each in shape.composites(shape.below[row]) if not shape.is_plain(each)]
        run = [each for each in shape.twins(parts) if shape.norms[each] or shape.depth[each] > 1]
        if run and not _embed(shape, run):
            stacks.append(Stack(run, [[each] for each in run]))
            inside.update(run)
    return stacks
