"""Stacks: the rows of alike blocks in which deep models repeat themselves.

A stack is a row of siblings of one class with numbers in their names, or one after the other. Its
members are blocks, or stages that hold blocks. Judged by structure, classes and sizes; digits only
say that siblings form a row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import compress
from operator import not_
from typing import NamedTuple

from ._names import Tree

_PLAIN = ("Sequential", "ModuleList")
_SIDE_STACK = 10
_DIGITS = "0123456789"
_EMBEDDING = re.compile(r"embed(d?ing|der)?s?(bag|table|with\w+|\d?d)?$")


Kind = tuple[str, tuple[str, ...]]


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


class Shape:
    """What the rows of modules are judged by.

    Attributes:
        tree: the model's columns.
        sizes: elements of each parameter.
        numel: elements of the parameters at and below each module.
        below: for each module, its children that have parameters.
        depth: how many modules with parts lie in each other there, containers not counted.
        weights: tensors of rank 2 and more at and below each module.
        norms: whether each module is or holds a normalisation layer.
    """

    def __init__(self, tree: Tree) -> None:
        """Adds up what lies below each module."""
        self.depth: list[int] = []
        self._add_up(tree)
        moved = self._split_layers()
        if moved:
            parents = [moved.get(row, parent) for row, parent in enumerate(tree.parents)]
            depth = self.depth
            self._add_up(replace(tree, parents=parents))
            self.depth = depth  # What was regrouped is no deeper for it.

    def _add_up(self, tree: Tree) -> None:
        count = len(tree.prefixes)
        self.tree = tree
        self.sizes = [shape.numel() if shape is not None else 0 for shape in tree.shapes]
        self.numel = [0] * count
        self.weights = [0] * count
        self.depth = [0] * count
        derived = [".parametrizations." in f".{prefix}" for prefix in tree.prefixes]
        self.norms = [
            is_norm(name) and not each for name, each in zip(tree.class_names, derived, strict=True)
        ]
        counts = [0] * count
        for owner, size, shape in zip(tree.owners, self.sizes, tree.shapes, strict=True):
            self.numel[owner] += size
            if not (derived[owner] and self.weights[owner]):  # One weight, of several parts.
                self.weights[owner] += shape is None or len(shape) > 1
            counts[owner] += 1
        self.below: list[list[int]] = [[] for _ in tree.prefixes]
        for row in range(count - 1, -1, -1):
            self.below[row].reverse()
            if self._has_parts(row) and not (self.is_plain(row) or derived[row]):
                self.depth[row] += 1
            parent = tree.parents[row]
            if parent < 0:
                continue
            self.numel[parent] += self.numel[row]
            self.weights[parent] += self.weights[row]
            self.norms[parent] |= self.norms[row]
            self.depth[parent] = max(self.depth[parent], self.depth[row])
            counts[parent] += counts[row]
            if counts[row]:
                self.below[parent].append(row)

    def _split_layers(self) -> dict[int, int]:
        """Returns a new parent for each part of the layers that a model holds in several lists.

        XLM has `attentions`, `layer_norm1`, `ffns` and `layer_norm2`, graph networks `convs` and
        `norms`. What stands in lists of one length side by side is one layer where only one list
        has parts with norms, or none and a list of norms stands beside. The rest of a layer is
        then taken as if it lay in its first part.
        """
        moved: dict[int, int] = {}
        for row in range(len(self.below)):
            lengths: dict[int, list[list[int]]] = {}
            for child in self.below[row]:
                if self.tree.class_names[child] == "ModuleList" and len(self.below[child]) > 1:
                    lengths.setdefault(len(self.below[child]), []).append(self.below[child])
            for lists in lengths.values():
                moved.update(self._rest_of_layers(lists))
        return moved

    def _rest_of_layers(self, lists: list[list[int]]) -> dict[int, int]:
        parts = [each for each in lists if len(self.composites(each)) == len(each)]
        norms = [each for each in lists if all(is_norm(self.tree.class_names[row]) for row in each)]
        whole = sum(any(self.norms[row] for row in each) for each in parts)
        plain = any(self.is_plain(row) for each in parts for row in each)
        if not parts or plain or whole > 1 or not (whole or norms):
            return {}
        first, *rest = [each for each in lists if each in parts or each in norms]
        return {row: block for each in rest for row, block in zip(each, first, strict=True)}

    def is_plain(self, row: int) -> bool:
        """Returns whether a module only holds others in order."""
        return self.tree.class_names[row] in _PLAIN

    def leaf(self, row: int) -> str:
        """Returns the name that a module has in its parent."""
        return self.tree.prefixes[row][:-1].rpartition(".")[2]

    def kind(self, row: int) -> Kind:
        """Returns what modules built alike share: their class and the names of their parts."""
        return self.tree.class_names[row], tuple(map(self.leaf, self.below[row]))

    def composites(self, rows: Iterable[int]) -> list[int]:
        """Returns the modules that have parts with parameters themselves."""
        return [row for row in rows if self._has_parts(row)]

    def twins(self, rows: Sequence[int]) -> list[int]:
        """Returns the modules whose class another of them has too."""
        counts = Counter(self.tree.class_names[row] for row in rows)
        return [row for row in rows if counts[self.tree.class_names[row]] > 1]

    def numbered(self, parent: int) -> list[list[int]]:
        """Returns the children with a number in their name, those of one name together."""
        found: dict[str, list[int]] = {}
        for child in self.below[parent]:
            name = self.leaf(child)
            stem = name.rstrip(_DIGITS)
            if stem != name:
                found.setdefault(stem, []).append(child)
        return list(found.values())

    def counts_up(self, one: int, two: int) -> bool:
        """Returns whether two siblings have one name with a number that grows."""
        names = [self.leaf(one), self.leaf(two)]
        stems = [name.rstrip(_DIGITS) for name in names]
        numbers = [name[len(stem) :] for name, stem in zip(names, stems, strict=True)]
        return stems[0] == stems[1] and all(numbers) and int(numbers[0]) < int(numbers[1])

    def total(self, rows: Iterable[int]) -> int:
        """Returns the elements of the parameters in some modules."""
        return sum(self.numel[row] for row in rows)

    def _has_parts(self, row: int) -> bool:
        return any(self.leaf(child) != "parametrizations" for child in self.below[row])


def is_norm(class_name: str) -> bool:
    """Returns whether a class is a normalisation layer, by its name."""
    return "norm" in class_name.lower()


def find_stacks(shape: Shape) -> tuple[list[Stack], list[Stack]]:
    """Returns the outermost stacks of a model in the order of registration: those that count, all.

    Of several those count whose members have parts with parts as the layers of a transformer do,
    or that are large beside the largest; none inside of what is called a stem.
    Shallow ones do not count where plain layers in a row hold more parameters than the largest.
    """
    stacks, largest_run = _numbered_stacks(shape)
    if not stacks:
        stacks = _runs(shape)
        return stacks, stacks
    outside = _outside_stem(shape, stacks)
    bodies = [stack for stack in outside if not _in_head(shape, stack)] or outside
    largest = max(bodies, key=lambda stack: shape.total(stack.members))
    counting = [
        stack
        for stack in outside
        if _is_deep(shape, stack.members)
        or (shape.total(largest.members) >= largest_run and _is_large(shape, stack, largest))
    ]
    return counting, stacks


def _outside_stem(shape: Shape, stacks: list[Stack]) -> list[Stack]:
    """Returns the stacks that do not lie in what is called a stem, or hold the body's blocks."""
    in_stem = ["stem" in shape.tree.prefixes[stack.members[0]].split(".") for stack in stacks]
    kinds = [
        set(map(shape.kind, (row for each in stack.blocks for row in each))) for stack in stacks
    ]
    body = set[Kind]().union(*compress(kinds, map(not_, in_stem)))
    return [
        stack
        for stack, inside, kind in zip(stacks, in_stem, kinds, strict=True)
        if not inside or kind & body
    ] or stacks


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
    path = shape.tree.prefixes[stack.members[0]].lower().split(".")
    return any(name.rstrip("s0123456789").endswith("head") for name in path)


def _numbered_stacks(shape: Shape) -> tuple[list[Stack], int]:
    """Returns the stacks of numbered siblings, and the size of the largest row of plain layers."""
    stacks: list[Stack] = []
    largest_run, inside, beside = 0, set[int](), set[int]()
    for row, parent in enumerate(shape.tree.parents):
        if parent in inside:
            inside.add(row)
        if row in inside:
            continue
        if parent in beside:
            beside.add(row)
        runs = shape.numbered(row)
        found = [
            _staged(shape, parts)
            for parts in map(shape.composites, runs)
            if _repeats(shape, row, parts) and not _embed(shape, parts)
        ]
        if any(stack.staged for stack in found):  # What else is numbered only connects the stages.
            found = [stack for stack in found if stack.staged]
        elif row not in beside:
            taken = {member for stack in found for member in stack.members}
            branched = _branched(shape, [each for each in shape.below[row] if each not in taken])
            found += [Stack(branched, [[each] for each in branched])] if branched else []
        for stack in found:
            stacks.append(stack)
            inside.update(stack.members)
        if found:
            beside.add(row)
        else:
            sizes = (shape.total(shape.twins(run)) for run in runs)
            largest_run = max(largest_run, *sizes, 0)
    return stacks, largest_run


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
    return bool(rows) and not any(_are_blocks(shape, each) for each in rows)


def _rows_below(shape: Shape, row: int) -> list[list[int]]:
    """Returns the rows of numbered siblings with twins among them that lie below a module."""
    found = [shape.composites(run) for run in shape.numbered(row)]
    found = [run for run in found if shape.twins(run)]
    return found + [each for child in shape.below[row] for each in _rows_below(shape, child)]


def _repeats(shape: Shape, parent: int, run: Sequence[int]) -> bool:
    """Returns whether siblings are blocks: several of one class, or a stack of one block."""
    if len(run) == 1 and shape.is_plain(parent) and len(shape.below[parent]) == 1:
        return shape.depth[run[0]] > 1 and not shape.is_plain(run[0]) and _is_last(shape, run[0])
    return bool(shape.twins(run))


def _is_last(shape: Shape, row: int) -> bool:
    """Returns whether no stack of deep blocks lies below a module."""
    runs = [shape.composites(run) for run in shape.numbered(row)]
    if any(shape.twins(run) and _is_deep(shape, run) for run in runs):
        return False
    return all(_is_last(shape, child) for child in shape.below[row])


def _is_deep(shape: Shape, rows: Iterable[int]) -> bool:
    return any(shape.depth[row] > 1 for row in rows)


def _embed(shape: Shape, rows: Iterable[int]) -> bool:
    return all(is_embedding(shape.tree.class_names[row]) for row in rows)


def is_embedding(class_name: str) -> bool:
    """Returns whether a class embeds the model's input, by what its name ends with.

    A model of embeddings has the word in the names of all its classes.
    """
    return _EMBEDDING.search(class_name.lower()) is not None


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


def _staged(shape: Shape, members: list[int]) -> Stack:
    """Returns a row with its members as they are, or with their blocks where they are stages.

    Stages repeat blocks, and most of them differ in size. Of one size they are stages where their
    blocks are deep and normalised, or where all are plain containers and their blocks
    of one size: a block with a list of experts stays whole, and one of two parts in like wrappers.
    """
    inner = [_inner_blocks(shape, member, _kin(shape, member, members)) for member in members]
    if any(inner):
        kept = [
            (member, row)
            for member, row in zip(members, inner, strict=True)
            if row or not is_embedding(shape.tree.class_names[member])
        ]
        members, inner = [member for member, _ in kept], [row for _, row in kept]
    repeated = [row for row in inner if shape.twins(row)]
    sizes = [{shape.numel[block] for block in row} for row in (members, *repeated)]
    differ = len(sizes[0]) > 1 and 2 * len(sizes[0]) > len(members)
    copies = all(map(shape.is_plain, members)) and all(len(each) == 1 for each in sizes)
    nested = all(row and shape.twins(row) == row for row in inner) and all(
        shape.norms[block] and shape.depth[block] > 1 and not shape.is_plain(block)
        for row in inner
        for block in row
    )
    if not repeated or not (differ or copies or nested):
        return Stack(members, [[member] for member in members])
    return Stack(members, [row or [each] for each, row in zip(members, inner, strict=True)])


def _kin(shape: Shape, member: int, members: Sequence[int]) -> list[int]:
    """Returns the members of a row that are of one class with one of them."""
    names = shape.tree.class_names
    return [each for each in members if names[each] == names[member]]


def _inner_blocks(shape: Shape, member: int, kin: Sequence[int]) -> list[int]:
    """Returns the blocks of a member of a row, if it can be a stage.

    A plain container can. A module of a class of its own can if more than half of its parameters
    are in blocks in one container, or if it is nothing but numbered ones; half of the members of
    its class decide for all: what leads from stage to stage may outweigh the blocks of one.
    """
    if shape.is_plain(member):
        return _blocks_behind(shape, member) or shape.composites(shape.below[member])
    for name, row in _contained(shape, member).items():
        inner = [_contained(shape, each).get(name, []) for each in kin]
        heavy = sum(
            2 * shape.total(blocks) > shape.numel[each]
            for blocks, each in zip(inner, kin, strict=True)
        )
        if 2 * heavy >= len(kin):
            return row if _are_blocks(shape, row) else []
    return []


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
        if not shape.is_plain(part) and any(_are_blocks(shape, shape.below[row]) for row in lists):
            blocks = _inner_blocks(shape, part, [part])
            return blocks if shape.twins(blocks) else [member]
    return []


def _are_blocks(shape: Shape, rows: Sequence[int]) -> bool:
    """Returns whether modules can be blocks: with parts, and several weights and norms, or deep."""
    return len(shape.composites(rows)) == len(rows) and (
        all(shape.depth[row] > 1 for row in rows)
        or all(shape.weights[row] > 1 and shape.norms[row] for row in rows)
    )
