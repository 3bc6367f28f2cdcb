"""The layers of a model, from input to output: stem, repeated blocks, head.

One idea: a deep model is a row of alike siblings with numbers in their names. The members of its
largest row are the blocks, what is registered before them the stem, what comes after the head.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._automaton import Automaton
from ._names import Tree, walk
from .errors import PlanError

_PLAIN = ("Sequential", "ModuleList")
_SIDE_STACK = 10


@dataclass(frozen=True, slots=True)
class Layer:
    """One rung of a model's input-to-output order.

    Attributes:
        index: its place, 0 next to the input.
        name: path of the block or child that it is, or "stem" or "head".
        modules: paths of the largest modules that lie in it with all their parameters.
        parameter_names: canonical names of its parameters; a tied one is in one layer only.
        numel: elements of these parameters; a lazy one without a shape counts 0.
    """

    index: int
    name: str
    modules: tuple[str, ...]
    parameter_names: tuple[str, ...]
    numel: int


def infer_layers(model: torch.nn.Module) -> tuple[Layer, ...]:
    """Returns the layers of a model, from input to output.

    They are read off names, classes and sizes, so the model may be on the `meta` device. The
    blocks are the members of the largest row of numbered siblings of one class (a `ModuleList`,
    a `Sequential`, or `layer1`, `layer2`, ...), and of every other such row that has at least a
    tenth of its parameters, as in an encoder with a decoder. Members that are rows of blocks
    themselves, the stages of a ResNet, give their own members. What stands before the first block
    is the layer "stem", what stands after the last one "head"; what stands between two blocks
    joins the one with which it shares more of its path. In a model without blocks each child of
    the root with parameters is a layer, those of a `Sequential` or `ModuleList` each by itself.
    Order is the order of registration.

    Args:
        model: any module; torch's wrappers (DDP, a compiled module, ...) are looked through.

    Returns:
        Layers in which every parameter is exactly once; none for a model without parameters.

    Raises:
        PlanError: `model` is no module.

    Example:
        >>> import torch
        >>> from freezekit import infer_layers
        >>> block = torch.nn.TransformerEncoderLayer(8, 2, 16)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Embedding(10, 8),
        ...     torch.nn.TransformerEncoder(block, num_layers=2, enable_nested_tensor=False),
        ...     torch.nn.Linear(8, 2),
        ... )
        >>> for layer in infer_layers(model):
        ...     print(layer.index, layer.name, layer.modules, layer.numel)
        0 stem ('0',) 80
        1 1.layers.0 ('1.layers.0',) 600
        2 1.layers.1 ('1.layers.1',) 600
        3 head ('2',) 18
    """
    if not isinstance(model, torch.nn.Module):
        raise PlanError(f"expected a torch.nn.Module, got {type(model).__name__}")
    tree = walk(model, Automaton([], [])).tree
    shape = _Shape(tree)
    names, places = _placed(shape)
    found: list[list[int]] = [[] for _ in names]
    for row, place in enumerate(places):
        found[place].append(row)
    paths = _whole_modules(tree, places, len(names))
    return tuple(
        Layer(
            index,
            name,
            tuple(paths[index]),
            tuple(tree.names[row] for row in found[index]),
            sum(shape.sizes[row] for row in found[index]),
        )
        for index, name in enumerate(names)
    )


def layer_ids(tree: Tree) -> list[int]:
    """Returns, for each parameter of a tree, the index of its layer."""
    return _placed(_Shape(tree))[1]


class _Shape:
    """What the rows of modules are judged by.

    Attributes:
        tree: the model's columns.
        sizes: elements of each parameter.
        numel: elements of the parameters at and below each module.
        below: for each module, its children that have parameters.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.sizes = [shape.numel() if shape is not None else 0 for shape in tree.shapes]
        self.numel = [0] * len(tree.prefixes)
        counts = [0] * len(tree.prefixes)
        for owner, size in zip(tree.owners, self.sizes, strict=True):
            self.numel[owner] += size
            counts[owner] += 1
        self.below: list[list[int]] = [[] for _ in tree.prefixes]
        for row in range(len(tree.prefixes) - 1, 0, -1):
            parent = tree.parents[row]
            self.numel[parent] += self.numel[row]
            counts[parent] += counts[row]
            if counts[row]:
                self.below[parent].append(row)
        for children in self.below:
            children.reverse()

    def is_plain(self, row: int) -> bool:
        """Returns whether a module only holds others in order."""
        return self.tree.class_names[row] in _PLAIN

    def composites(self, row: int) -> list[int]:
        """Returns the children of a module that have parts with parameters themselves."""
        return [child for child in self.below[row] if self._has_parts(child)]

    def twins(self, rows: Sequence[int]) -> list[int]:
        """Returns the modules whose class another of them has too."""
        counts = Counter(self.tree.class_names[row] for row in rows)
        return [row for row in rows if counts[self.tree.class_names[row]] > 1]

    def numbered(self, parent: int) -> list[list[int]]:
        """Returns the children with a number in their name, those of one name together."""
        found: dict[str, list[int]] = {}
        start = len(self.tree.prefixes[parent])
        for child in self.below[parent]:
            name = self.tree.prefixes[child][start:-1]
            stem = name.rstrip("0123456789")
            if stem != name:
                found.setdefault(stem, []).append(child)
        return list(found.values())

    def _has_parts(self, row: int) -> bool:
        start = len(self.tree.prefixes[row])
        return any(self.tree.prefixes[c][start:-1] != "parametrizations" for c in self.below[row])


def _placed(shape: _Shape) -> tuple[list[str], list[int]]:
    """Returns the names of the layers, and the place of each parameter among them."""
    rungs, has_blocks = _rungs(shape)
    tree = shape.tree
    if not tree.names:
        return [], []
    inside = [-1] * len(tree.prefixes)
    for at, rung in enumerate(rungs):
        inside[rung] = at
    for row, parent in enumerate(tree.parents):
        if inside[row] < 0 <= parent:
            inside[row] = inside[parent]
    raw = [inside[owner] for owner in tree.owners]
    gaps = {owner: _gap(tree, rungs, owner) for owner in tree.owners if inside[owner] < 0}
    raw = [gaps.get(owner, at) for owner, at in zip(tree.owners, raw, strict=True)]
    if not has_blocks:
        raw = [min(max(at, 0), len(rungs) - 1) for at in raw]
    labels = {-1: "stem", len(rungs): "head"}
    labels.update((at, tree.prefixes[rung][:-1]) for at, rung in enumerate(rungs))
    order = {at: place for place, at in enumerate(sorted(set(raw)))}
    return [labels[at] for at in order], [order[at] for at in raw]


def _whole_modules(tree: Tree, places: Sequence[int], count: int) -> list[list[str]]:
    """Returns, for each layer, the paths of the largest modules with all parameters in it."""
    empty, mixed = -2, -1
    whole = [empty] * len(tree.prefixes)
    for owner, place in zip(tree.owners, places, strict=True):
        whole[owner] = place if whole[owner] in (empty, place) else mixed
    for row in range(len(whole) - 1, 0, -1):
        parent = tree.parents[row]
        if whole[row] != empty:
            whole[parent] = whole[row] if whole[parent] in (empty, whole[row]) else mixed
    found: list[list[str]] = [[] for _ in range(count)]
    for row, place in enumerate(whole):
        if place >= 0 and (row == 0 or whole[tree.parents[row]] != place):
            found[place].append(tree.prefixes[row][:-1])
    return found


def _gap(tree: Tree, rungs: Sequence[int], owner: int) -> int:
    """Returns the rung that takes the own parameters of a module outside of all rungs.

    -1 stands for what is before the first one, `len(rungs)` for what is after the last one.
    """
    after = bisect(rungs, owner)
    if after in (0, len(rungs)):
        return after - (after == 0)
    above = {owner}
    while owner:
        owner = tree.parents[owner]
        above.add(owner)
    shared = []
    for rung in rungs[after - 1 : after + 1]:
        while rung not in above:
            rung = tree.parents[rung]
        shared.append(rung)
    return after if shared[1] > shared[0] else after - 1


def _rungs(shape: _Shape) -> tuple[list[int], bool]:
    """Returns the modules that are layers, and whether they are blocks of a deep model."""
    stacks, largest_run = _stacks(shape)
    heaviest = max((numel for numel, _ in stacks), default=0)
    blocks = sorted(
        block
        for numel, members in stacks
        if numel * _SIDE_STACK >= heaviest
        for block in _unstaged(shape, members)
    )
    if blocks and heaviest >= largest_run:
        return blocks, True
    closed, opened = set(blocks), set[int]()
    for row in range(len(shape.below) - 1, -1, -1):
        if row in closed or row in opened:
            opened.add(shape.tree.parents[row])
        elif shape.is_plain(row):
            opened.add(row)
    pieces = [0]
    while len(pieces) == 1 and shape.below[pieces[0]]:
        pieces = _children(shape, pieces[0], opened)
    return pieces, False


def _stacks(shape: _Shape) -> tuple[list[tuple[int, list[int]]], int]:
    """Finds the rows of numbered siblings of one class, the outermost ones.

    Returns:
        The rows of modules with parts, each with its size in elements, and the size of the
        largest row of modules without.
    """
    stacks, largest_run, inside = [], 0, set()
    for row, parent in enumerate(shape.tree.parents):
        if parent in inside:
            inside.add(row)
        if row in inside:
            continue
        runs = shape.numbered(row)
        parts = set(shape.composites(row)) if runs else set()
        deep = [[child for child in run if child in parts] for run in runs]
        deep = [run for run in deep if shape.twins(run)]
        if deep:
            members = [child for run in deep for child in run]
            stacks.append((sum(shape.numel[child] for child in members), members))
            inside.update(members)
            continue
        for run in runs:
            largest_run = max(largest_run, sum(shape.numel[child] for child in shape.twins(run)))
    return stacks, largest_run


def _unstaged(shape: _Shape, members: Sequence[int]) -> list[int]:
    """Returns the members of a row, or their own blocks where they are stages.

    Stages repeat blocks and differ in size. Plain containers of one size are stages where their
    blocks are of one size too: a block of two parts in like wrappers stays whole.
    """
    inner = [_inner_row(shape, member) for member in members]
    repeated = [row for row in inner if shape.twins(row)]
    sizes = [{shape.numel[block] for block in row} for row in (members, *repeated)]
    copies = all(map(shape.is_plain, members)) and all(len(each) == 1 for each in sizes)
    if not repeated or (len(sizes[0]) == 1 and not copies):
        return list(members)
    return [b for member, row in zip(members, inner, strict=True) for b in row or [member]]


def _inner_row(shape: _Shape, member: int) -> list[int]:
    """Returns the blocks of a member of a row, if it can be a stage.

    A plain container can; a module of a class of its own can if one container in it has more than
    half of its parameters, all in blocks of one class.
    """
    if shape.is_plain(member):
        return shape.composites(member)
    for child in shape.below[member]:
        if shape.is_plain(child) and 2 * shape.numel[child] > shape.numel[member]:
            blocks = shape.composites(child)
            classes = {shape.tree.class_names[block] for block in blocks}
            return blocks if blocks == shape.below[child] and len(classes) == 1 else []
    return []


def _children(shape: _Shape, row: int, opened: set[int]) -> list[int]:
    """Returns the children of a module, with those of opened ones in their place."""
    found = []
    for child in shape.below[row]:
        found += _children(shape, child, opened) if child in opened else [child]
    return found
