"""Shapes: what the modules of a model are judged by: classes, sizes, and what lies in what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy

from ._names import Tree

_PLAIN = ("Sequential", "ModuleList")
_DIGITS = "0123456789"
_EMBEDDING = r"embed(d?ing|der)?s?(bag|table|with\w+|\d?d)?$"


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
        kinds: a number for each module; modules built alike, of one class from parts of one kind,
            share it.
    """

    def __init__(self, tree: Tree) -> None:
        """Adds up what lies below each module."""
        self.depth: list[int] = []
        self._add_up(tree)
        moved = self._split_layers()
        if moved:
            parents = [moved.get(row, parent) for row, parent in enumerate(tree.parents)]
            depth = self.depth
            regrouped = copy(tree)
            regrouped.parents = parents
            self._add_up(regrouped)
            self.depth = depth  # What was regrouped is no deeper for it.
        self.kinds = self._number_kinds()

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

    def _number_kinds(self) -> list[int]:
        """Returns the number of the kind of each module."""
        known: dict[tuple[str, tuple[int, ...]], int] = {}
        kinds = [0] * len(self.below)
        for row in range(len(kinds) - 1, -1, -1):
            kind = self.tree.class_names[row], tuple(kinds[child] for child in self.below[row])
            kinds[row] = known.setdefault(kind, len(known))
        return kinds

    def _split_layers(self) -> dict[int, int]:
        """Returns a new parent for each part of the layers that a model holds in several lists.

        XLM has `attentions`, `layer_norm1`, `ffns` and `layer_norm2`, graph networks `convs` and
        `norms`. What stands in lists of one length side by side is one layer where only one list
        has parts with norms, or none and a list of norms stands beside; in a stage, as in those of
        a diffusion U-Net, all may have: there they are no towers. The rest of a layer is then taken
        as if it lay in its first part.
        """
        moved: dict[int, int] = {}
        for row in range(len(self.below)):
            lengths: dict[int, list[list[int]]] = {}
            for child in self.below[row]:
                if self.tree.class_names[child] == "ModuleList" and len(self.below[child]) > 1:
                    lengths.setdefault(len(self.below[child]), []).append(self.below[child])
            above = self.tree.parents[row]
            listed = row > 0 and self.is_plain(above) and len(self.below[above]) > 1
            in_stage = listed and not self.is_plain(row)
            for lists in lengths.values():
                moved.update(self._rest_of_layers(lists, in_stage=in_stage))
        return moved

    def _rest_of_layers(self, lists: list[list[int]], *, in_stage: bool) -> dict[int, int]:
        lists = [each for each in lists if not is_embedding(self.tree.class_names[each[0]])]
        parts = [each for each in lists if len(self.composites(each)) == len(each)]
        norms = [each for each in lists if all(is_norm(self.tree.class_names[row]) for row in each)]
        whole = sum(any(self.norms[row] for row in each) for each in parts)
        plain = any(self.is_plain(row) for each in parts for row in each)
        if in_stage and whole == len(parts) > 1:
            first, *rest = parts
            return {row: block for each in rest for row, block in zip(each, first, strict=True)}
        if not parts or plain or whole > 1 or not (whole or norms):
            return {}
        if not norms:  # Shallow parts without norms are heads, one for what each block gives.
            parts = [
                each
                for each in parts
                if any(self.norms[row] for row in each) or all(self.depth[row] > 1 for row in each)
            ]
        first, *rest = [each for each in lists if each in parts or each in norms]
        return {row: block for each in rest for row, block in zip(each, first, strict=True)}

    def is_plain(self, row: int) -> bool:
        """Returns whether a module only holds others in order."""
        return self.tree.class_names[row] in _PLAIN

    def leaf(self, row: int) -> str:
        """Returns the name that a module has in its parent."""
        return self.tree.prefixes[row][:-1].rpartition(".")[2]

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


def ancestors(tree: Tree, row: int) -> list[int]:
    """Returns the modules above one, nearest first."""
    found = []
    while row:
        row = tree.parents[row]
        found.append(row)
    return found


def is_norm(class_name: str) -> bool:
    """Returns whether a class is a normalisation layer, by its name."""
    return "norm" in class_name.lower()


def is_embedding(class_name: str) -> bool:
    """Returns whether a class embeds the model's input, by what its name ends with.

    A model of embeddings has the word in the names of all its classes.
    """
    return re.search(_EMBEDDING, class_name.lower()) is not None
