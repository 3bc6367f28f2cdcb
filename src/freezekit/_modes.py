"""Which modules are held in eval mode, and the view of a model module by module."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from ._names import Tree

State = Literal["trainable", "frozen", "partial", "none"]


class Fate(NamedTuple):
    """What one phase means for the mode of what a parameter or buffer stands in.

    Attributes:
        trains: it trains, or would (a buffer's module that no rule freezes).
        decided: a rule froze it.
        leave: its `frozen_mode` is "train".
    """

    trains: bool
    decided: bool
    leave: bool


class ModuleRow(NamedTuple):
    """One module of a model in one phase.

    Attributes:
        path: canonical path, "" for the root.
        class_name: name of its class.
        parent: row of its parent, -1 for the root.
        depth: nesting, 0 for the root.
        own: elements in its own parameters.
        numel: elements at or below it; a tied tensor counts where its canonical name stands.
        trainable: of those, how many train.
        tensors: parameters at or below it.
        trainable_tensors: of those, how many train.
        state: trainable, frozen, partial (both), or none (no parameter at or below).
        mode: the mode it has after `model.train()`.
        held: whether freezekit holds it in eval mode.
        tied_to: canonical name of its own tied parameter, where that is all it has.
        uninitialized: a lazy parameter stands at or below it, so counts are lower bounds.
    """

    path: str
    class_name: str
    parent: int
    depth: int
    own: int
    numel: int
    trainable: int
    tensors: int
    trainable_tensors: int
    state: State
    mode: Literal["train", "eval"]
    held: bool
    tied_to: str | None
    uninitialized: bool


def held_modules(
    tree: Tree, parameters: Sequence[Fate], buffers: Mapping[int, Fate]
) -> tuple[list[bool], set[int]]:
    """Returns which modules are held in eval, and which held RNNs must stay in train mode.

    A module with parameters at or below it is held when all of them are frozen, one at least by
    a rule; a module with buffers and no parameter, when the last rule on its path freezes it;
    others with their parent, with all of them where they are shared. Only whole subtrees are held.
    An RNN with a trainable parameter before it keeps train mode, which cuDNN needs for its
    backward pass.

    Args:
        tree: the model's structure.
        parameters: the fate of each parameter.
        buffers: the fate of each module with buffers and no parameter at or below it, by row.
    """
    has, decided, open_ = _gather(tree, parameters, buffers)
    places: dict[int, list[int]] = {}
    for above, row in tree.shared:
        places.setdefault(row, [tree.parents[row]]).append(above)
    while True:
        own = [
            (has[row] or row in buffers) and decided[row] and not open_[row]
            for row in range(len(has))
        ]
        held = own.copy()
        for row, parent in enumerate(tree.parents):
            held[row] |= parent >= 0 and held[parent]
        torn = [
            place
            for row, around in places.items()
            if not own[row] and not all(held[place] for place in around)
            for place in around
            if held[place]
        ]
        if not torn:
            return held, _kept_in_train(tree, parameters, held)
        for row in torn:
            while row >= 0:
                open_[row], row = True, tree.parents[row]


def _gather(
    tree: Tree, parameters: Sequence[Fate], buffers: Mapping[int, Fate]
) -> tuple[list[bool], list[bool], list[bool]]:
    """Returns what stands at or below each module: parameters, a freeze, what forbids a hold."""
    count = len(tree.prefixes)
    has, decided, open_ = [False] * count, [False] * count, [False] * count
    standing = [*zip(tree.owners, range(len(tree.names)), strict=True)]
    standing += [(alias.owner, alias.row) for alias in tree.aliases]
    for owner, row in standing:
        fate = parameters[row]
        has[owner] = True
        decided[owner] |= fate.decided
        open_[owner] |= fate.trains or fate.leave
    for row in range(count - 1, -1, -1):
        if row in buffers:
            decided[row] = buffers[row].decided
            open_[row] |= buffers[row].trains or buffers[row].leave
        parent = tree.parents[row]
        if parent >= 0:
            has[parent] |= has[row]
            decided[parent] |= has[row] and decided[row]
            open_[parent] |= open_[row]
    return has, decided, open_


def _kept_in_train(tree: Tree, parameters: Sequence[Fate], held: Sequence[bool]) -> set[int]:
    recurrent = [row for row in tree.recurrent if held[row]]
    if not recurrent:
        return set()
    trainable = (owner for owner, fate in zip(tree.owners, parameters, strict=True) if fate.trains)
    first = next(trainable, len(held))
    return {row for row in recurrent if row > first}


def module_rows(
    tree: Tree,
    trainable: Sequence[bool],
    held: Sequence[bool],
    kept: set[int],
    partly: Mapping[int, int],
) -> list[ModuleRow]:
    """Returns one row per module, in the order of `named_modules()`.

    Args:
        tree: the model's structure.
        trainable: which parameters train.
        held: which modules are held.
        kept: which of those stay in train mode.
        partly: how many elements train of the parameters of which not all do.
    """
    count = len(tree.prefixes)
    own, numel, live = [0] * count, [0] * count, [0] * count
    tensors, live_tensors = [0] * count, [0] * count
    lazy, cut = [False] * count, [False] * count
    for owner, shape, trains in zip(tree.owners, tree.shapes, trainable, strict=True):
        size = 0 if shape is None else shape.numel()
        lazy[owner] |= shape is None
        own[owner] += size
        tensors[owner] += 1
        live[owner] += size * trains
        live_tensors[owner] += trains
    for at, elements in partly.items():
        live[tree.owners[at]] -= (tree.shapes[at] or torch.Size()).numel() - elements
        cut[tree.owners[at]] = True
    numel[:] = own
    for row in range(count - 1, 0, -1):
        parent = tree.parents[row]
        for column in (numel, live, tensors, live_tensors):
            column[parent] += column[row]
        lazy[parent] |= lazy[row]
        cut[parent] |= cut[row]
    tied = {alias.owner: alias.row for alias in tree.aliases}
    depths: list[int] = []
    rows = []
    for row, parent in enumerate(tree.parents):
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
        second = tied.get(row) if not tensors[row] else None
        rows.append(
            ModuleRow(
                path=tree.prefixes[row][:-1],
                class_name=tree.class_names[row],
                parent=parent,
                depth=depths[row],
                own=own[row],
                numel=numel[row],
                trainable=live[row],
                tensors=tensors[row],
                trainable_tensors=live_tensors[row],
                state=(
                    _state(tensors[row], live_tensors[row], cut[row])
                    if second is None
                    else _state(1, trainable[second], second in partly)
                ),
                mode="eval" if held[row] and row not in kept else "train",
                held=held[row] and row not in kept,
                tied_to=None if second is None else tree.names[second],
                uninitialized=lazy[row],
            )
        )
    return rows


def _state(tensors: int, live: int, cut: bool) -> State:
    if not tensors:
        return "none"
    if not live:
        return "frozen"
    return "trainable" if live == tensors and not cut else "partial"
