"""The parts of a model that recipes speak of: blocks, head, and patterns that select them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile

import torch

from ._automaton import Automaton
from ._glob import SPECIAL, class_name, literal
from ._layering import Layering
from ._layers import Layer, Layers, read_layers
from ._names import Tree, unwrap, walk
from ._plan import FreezePlan
from ._verbs import LayerProperties
from .errors import PlanError

_NUMBERED = re.compile(r"(|.*\.)(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Parts:
    """A model's names with its layers.

    Attributes:
        model: the model itself.
        tree: its columns.
        layers: its layers.
        layering: what is said about them.
    """

    model: torch.nn.Module
    tree: Tree
    layers: Layers
    layering: Layering

    @property
    def title(self) -> str:
        """The name of the model's class."""
        return class_name(type(unwrap(self.model)))

    @property
    def has_stem(self) -> bool:
        """Whether something stands before the first block."""
        return self.layers[:1] != self.layers.blocks[:1]

    @property
    def has_tail(self) -> bool:
        """Whether something stands after the last block."""
        return self.layers[-1:] != self.layers.blocks[-1:]

    @property
    def blocks(self) -> tuple[Layer, ...]:
        """The layers between stem and head; of a model without blocks, all."""
        return self.layers.blocks


def parts_of(model: torch.nn.Module, layers: LayerProperties | None = None) -> Parts:
    """Returns the parts of a model.

    Args:
        model: any module.
        layers: what is said about its layers.

    Raises:
        PlanError: `model` is no module, has no parameters, or `layers` does not fit it.
    """
    layering = Layering.read(layers or {})
    found = read_layers(model, layering)
    parts = Parts(model, walk(model, Automaton([], [])).tree, found, layering)
    if not found:
        raise PlanError(f"{parts.title} has no parameters, so there is nothing to train or freeze")
    return parts


def find_head(parts: Parts) -> list[str]:
    """Returns the names of the parameters that map features to a task; none without a head.

    The head is what stands after the last block and outside the module that holds the blocks
    together with other parts, the backbone: `classifier` in a BERT, all heads beside one backbone.
    Where no such module is, as in a ResNet, it is what comes after the last norm or pooler behind
    the blocks. In a model without blocks it is the last layer.
    """
    last, blocks = parts.layers[-1], parts.blocks
    if not parts.has_tail:
        return [] if _is_block(last) else list(last.parameter_names)
    start = _common(parts.tree.names)

    def child(name: str) -> str:
        return name[start:].partition(".")[0]

    holders = {child(block.name) for block in blocks}
    around = [
        name for layer in parts.layers if layer not in blocks for name in layer.parameter_names
    ]
    if any(child(name) in holders for name in around):
        return [name for name in last.parameter_names if child(name) not in holders]
    finishing = _finishing(parts.tree, start) if blocks else set()
    names = list(last.parameter_names)
    task = {child(name) for name in names if name not in finishing}
    cut = max((at for at, name in enumerate(names, 1) if child(name) not in task), default=0)
    # A norm in front of the classifier, in one module with it, is the backbone's last one too.
    return list(dropwhile(finishing.__contains__, names[cut:]))


def no_head(parts: Parts, way_out: str) -> PlanError:
    """Returns the error for a model in which no head is found.

    Args:
        parts: the parts of the model.
        way_out: what else the caller may do, as a clause.
    """
    last = parts.layers[-1]
    if parts.has_tail:
        tail = ", ".join(cover(parts.tree, last.parameter_names))
        after = f"only {tail}, which belongs to the backbone"
    else:
        after = "nothing"
    block = parts.blocks[-1].name if parts.blocks else parts.layers[0].name
    own = set(last.parameter_names)
    tied = [alias for alias in parts.tree.aliases if parts.tree.names[alias.row] not in own]
    tie = f"; {tied[-1].name!r} is {parts.tree.names[tied[-1].row]!r}, not its own" if tied else ""
    return PlanError(
        f"no head found in {parts.title}: after its last block, {block!r}, stands {after}{tie}; "
        f"name what is trained for the task, e.g. head='classifier'{way_out}"
    )


def patterns_for(parts: Parts, names: Iterable[str]) -> tuple[str, ...]:
    """Returns patterns that select the named parameters and no others."""
    return tuple(_joined(cover(parts.tree, names)))


def block_patterns(
    parts: Parts, blocks: Sequence[Layer], within: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns patterns for blocks alone, without what stands between two and joins one of them.

    Args:
        parts: the parts of the model.
        blocks: some of its blocks.
        within: patterns that start at each block; None: all of it.
    """
    if within is None:
        return tuple(_joined([block.name for block in blocks]))
    plain = [block.name for block in blocks if not SPECIAL.search(block.name)]
    found = [f"{path}.{inner}" for path in _joined(plain) for inner in within]
    for block in blocks:
        if SPECIAL.search(block.name):
            # A name that is no pattern: a wider pattern, of which the block's own names count.
            path = SPECIAL.sub(lambda found: "?" * len(found[0]), block.name)
            wide = [f"{path}.{inner}" for inner in within]
            selected = FreezePlan().freeze(*wide).resolve(parts.model).at().frozen
            found += [literal(name) for name in block.parameter_names if name in selected]
    return tuple(found)


def cover(tree: Tree, names: Iterable[str]) -> list[str]:
    """Returns the largest modules with no parameter but the named ones, and what is left of them.

    A further name of a tied parameter counts: a pattern for the module would reach it.
    """
    inside = set(names)
    whole = [True] * len(tree.prefixes)
    owned = [*zip(tree.names, tree.owners, strict=True)]
    owned += [(tree.names[alias.row], alias.owner) for alias in tree.aliases]
    for name, owner in owned:
        while name not in inside and owner >= 0 and whole[owner]:
            whole[owner] = False
            owner = tree.parents[owner]
    found: dict[str, None] = {}
    for name, row in zip(tree.names, tree.owners, strict=True):
        if name in inside:
            top = name
            while row >= 0 and whole[row]:
                top, row = tree.prefixes[row][:-1], tree.parents[row]
            found[top] = None
    return list(found)


def _is_block(layer: Layer) -> bool:
    """Returns whether a layer is one of a row of blocks: numbered, and with parts."""
    below = (name.removeprefix(f"{layer.name}.") for name in layer.parameter_names)
    return layer.name[-1:].isdecimal() and any("." in name for name in below)


def _common(names: Sequence[str]) -> int:
    """Returns the length of the path, with its dot, of the module that holds all parameters."""
    first, last = min(names), max(names)
    start = 0
    for dot in re.finditer(r"\.", first):
        if last.startswith(first[: dot.end()]):
            start = dot.end()
    return start


def _finishing(tree: Tree, start: int) -> set[str]:
    """Returns the parameters of norms and of all in poolers: what finishes the features."""
    found = set()
    for name, owner in zip(tree.names, tree.owners, strict=True):
        row, pools = owner, False
        while row >= 0 and len(tree.prefixes[row]) > start:
            pools = pools or "pool" in tree.class_names[row].lower()
            row = tree.parents[row]
        if pools or "norm" in tree.class_names[owner].lower():
            found.add(name)
    return found


def _joined(paths: Iterable[str]) -> Iterator[str]:
    """Yields a pattern for each path, one for neighbours that are numbered in a row."""
    run: list[str] = []
    for path in [*paths, None]:
        if run and (path is None or not _follows(run[-1], path)):
            yield _spelled(run)
            run = []
        if path is not None:
            run.append(path)


def _follows(before: str, path: str) -> bool:
    one, two = _NUMBERED.fullmatch(before), _NUMBERED.fullmatch(path)
    if one is None or two is None or SPECIAL.search(path):
        return False
    return one[1] == two[1] and int(one[2]) + 1 == int(two[2])


def _spelled(run: Sequence[str]) -> str:
    if len(run) == 1:
        return literal(run[0])
    start, number = run[0].rpartition(".")[::2]
    dot = "." if start else ""
    return f"{start}{dot}{{{number}..{run[-1].rpartition('.')[2]}}}"
