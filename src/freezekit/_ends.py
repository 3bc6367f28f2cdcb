"""Ends: which modules outside of the blocks are the stem's, the head's, or end the last block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ._names import Tree
from ._rungs import Clock, Rung, at_or_below, holders_of
from ._shape import Shape, ancestors, is_embedding, is_norm


def embeds(shape: Shape, piece: int) -> bool:
    """Returns whether a module embeds the input, or the first one of a container does."""
    while shape.is_plain(piece) and shape.below[piece]:
        piece = shape.below[piece][0]
    return is_embedding(shape.tree.class_names[piece])


def early_heads(shape: Shape, rungs: Sequence[Rung]) -> set[int]:
    """Returns the modules of heads that are registered before their backbone.

    A backbone with all blocks and a table of embeddings in front of them begins with a lookup, so
    what stands before it, and takes in as many features as the table gives, comes behind it; but
    not an output layer that is tied to the table.
    """
    tree = shape.tree
    if not rungs:
        return set()
    first, holders = rungs[0].row, holders_of(tree, rungs)
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
                if _takes_in(tree, each) in widths and not embeds(shape, each)
            }
            tied = {tree.owners[a.row] for a in tree.aliases if backbone < a.owner < first}
            heads |= {*at_or_below(tree, found)} - tied
    return heads


def closing_of(shape: Shape, last: Rung, clock: Clock, holders: set[int]) -> list[int]:
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
            return at_or_below(tree, {*found, row})
        found.append(row)
    return []


def _takes_in(tree: Tree, row: int) -> int | None:
    """Returns how many features the first matrix of a module takes in."""
    prefix = tree.prefixes[row]
    named = zip(tree.names, tree.shapes, strict=True)
    matrices = (s for name, s in named if s and len(s) == 2 and name.startswith(prefix))
    return next((sizes[1] for sizes in matrices), None)


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
