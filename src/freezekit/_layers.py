"""The layers of a model, from input to output: stem, repeated blocks, head.

One idea: a deep model repeats itself. The members of its stacks are the layers, what is registered
before them is the stem, what comes after them the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

from ._automaton import Automaton
from ._execution import Use, first_uses
from ._glob import parse
from ._layering import PARTS, Layering
from ._matches import Selection, check_matches
from ._names import Tree, Walk, walk
from ._placing import Clock, Rung, find_rungs, place, unconnected, unsure
from ._shape import Shape
from ._suggest import counted
from .errors import PlanError

_LISTED = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """One rung of a model's input-to-output order.

    Attributes:
        index: its place, 0 next to the input.
        name: path of the block or child that it is, or "stem" or "head", with " (rest)" behind it
            where a block has that path.
        modules: paths of the largest modules that lie in it with all their parameters.
        parameter_names: canonical names of its parameters; a tied one is in one layer only.
        numel: elements of these parameters; a lazy one without a shape counts 0.
    """

    index: int
    name: str
    modules: tuple[str, ...]
    parameter_names: tuple[str, ...]
    numel: int


class Layers(tuple[Layer, ...]):
    """The layers of a model, from input to output; `str` is a table.

    Attributes:
        notes: sentences about what could not be told, for example where the order is only that of
            registration.
    """

    notes: tuple[str, ...]

    def __new__(cls, layers: Iterable[Layer], notes: Iterable[str] = ()) -> Self:
        """Returns the layers with what there is to note."""
        made = super().__new__(cls, layers)
        made.notes = tuple(notes)
        return made

    def __str__(self) -> str:
        """Returns a line for each layer: its place, its name, its elements; then the notes."""
        lines = [("", "layer", "elements", "modules")]
        for layer in self:
            numel = f"{layer.numel:,}"
            lines.append((str(layer.index), layer.name, numel, ", ".join(layer.modules)))
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            f"{index:>{wide[0]}}  {name:<{wide[1]}}  {numel:>{wide[2]}}  {modules}".rstrip()
            for index, name, numel, modules in lines
        ]
        return "\n".join([*table, *(f"note: {note}" for note in self.notes)])


def infer_layers(
    model: torch.nn.Module,
    *,
    example_inputs: object = None,
    by: Literal["block", "stage"] = "block",
    final_norm: Literal["head", "last_block"] = "head",
    stem: str | Sequence[str] | None = None,
    blocks: str | Sequence[str] | None = None,
    head: str | Sequence[str] | None = None,
) -> Layers:
    """Returns the layers of a model, from input to output.

    They are read off names, classes and sizes, so the model may be on the `meta` device. The
    blocks are the members of rows of numbered siblings of one class (a `ModuleList`, a
    `Sequential`, or `layer1`, `layer2`, ...), or of siblings of one class without numbers where
    there is no such row. Of several rows those count whose members have parts with parts, as
    the layers of a transformer do, or that have at least a tenth of the parameters of the largest:
    an encoder and a decoder, a vision tower beside a language model. Members that are rows of
    blocks themselves, the stages of a ResNet, give their own members.

    What stands before the first block is the layer "stem", and so are embeddings further on,
    as those of a decoder; what stands after the last block is the layer "head"; what else stands
    between two blocks joins the one with which it shares more of its path. In a model without
    blocks each child of the root with parameters is a layer, those of a `Sequential` or
    `ModuleList` each by itself.

    Order is the order of registration; where structure does not say that it is the one in which
    the model runs, a note does. `example_inputs` gives the order in which the model first uses its
    parameters, and `stem`, `blocks` and `head` correct what is found. A plan can carry these
    corrections: `FreezePlan(layers={"blocks": "encoder.blocks.*"})`.

    Args:
        model: any module; torch's wrappers (DDP, a compiled module, ...) are looked through.
        example_inputs: what one forward pass needs, on the model's device: a tuple of positional
            arguments, a mapping of keyword arguments, or the only argument. The pass leaves no
            trace in the model: modes stay as they are, buffers and random generators are put back.
        by: "block", or "stage" for one layer per stage where a model has stages.
        final_norm: whether the norm behind the last block belongs to the "head", as in BEiT
            (https://arxiv.org/abs/2106.08254) and MAE, or with what leads to it to the
            "last_block", as in timm. A norm behind the pooling is the head's either way.
        stem: patterns of what belongs to the layer "stem".
        blocks: patterns of the modules that are the blocks. Those of the first pattern come first.
        head: patterns of what belongs to the layer "head".

    Returns:
        A tuple of layers in which every parameter is exactly once; none for a model without
        parameters. Its `notes` say what could not be told, its `str` is a table.

    Raises:
        PlanError: `model` is no module, an argument is none of its values, or parts contradict
            each other; `PatternError` for a pattern that selects nothing.
        FreezekitError: the model does not run on `example_inputs`.

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
    given = {"by": by, "final_norm": final_norm, "stem": stem, "blocks": blocks, "head": head}
    layering = Layering.read({key: value for key, value in given.items() if value is not None})
    return read_layers(model, layering, example_inputs)


def read_layers(
    model: torch.nn.Module, layering: Layering, example_inputs: object = None
) -> Layers:
    """Returns the layers of a model as a layering says; see `infer_layers`."""
    if not isinstance(model, torch.nn.Module):
        raise PlanError(f"expected a torch.nn.Module, got {type(model).__name__}")
    walked = walk(model, Automaton([], []))
    tree, shape = walked.tree, Shape(walked.tree)
    uses = None if example_inputs is None else _uses(walked, example_inputs)
    names, places, notes = _placed(walked, shape, layering, uses)
    found: list[list[int]] = [[] for _ in names]
    for row, at in enumerate(places):
        found[at].append(row)
    paths = _whole_modules(tree, places, len(names))
    layers = (
        Layer(
            index,
            name,
            tuple(paths[index]),
            tuple(tree.names[row] for row in found[index]),
            sum(shape.sizes[row] for row in found[index]),
        )
        for index, name in enumerate(names)
    )
    return Layers(layers, notes)


def layer_ids(walked: Walk, layering: Layering) -> tuple[list[int], list[str]]:
    """Returns, for each parameter of a model, the index of its layer; and what is to be noted."""
    return _placed(walked, Shape(walked.tree), layering, None)[1:]


def _uses(walked: Walk, example_inputs: object) -> list[Use | None]:
    """Returns when a pass over the example first uses each parameter."""
    tree, modules = walked
    parameters = []
    for name, owner in zip(tree.names, tree.owners, strict=True):
        parameter = modules[owner]._parameters[name[len(tree.prefixes[owner]) :]]
        assert parameter is not None
        parameters.append(parameter)
    return first_uses(modules[0], parameters, example_inputs)


def _placed(
    walked: Walk, shape: Shape, layering: Layering, uses: Sequence[Use | None] | None
) -> tuple[list[str], list[int], list[str]]:
    """Returns the names of the layers, the place of each parameter among them, and notes."""
    tree = walked.tree
    given = _Given(walked, layering)
    if not tree.names:
        return [], [], []
    found, are_blocks = (given.rungs, True) if layering.blocks else find_rungs(shape, layering.by)
    names, places, rungs = place(
        shape,
        found,
        Clock(tree, None if uses is None else [use and use.moment for use in uses]),
        closing=are_blocks and layering.final_norm == "last_block",
        parts=given.parts,
        open_ended=are_blocks,
    )
    if uses is not None:
        return names, places, _seen(tree, rungs, uses)
    return names, places, [] if layering.blocks else _guesses(shape, rungs)


class _Given:
    """What a layering names in a model.

    Attributes:
        rungs: the blocks.
        parts: which parameters are the stem's or the head's.
    """

    def __init__(self, walked: Walk, layering: Layering) -> None:
        """Looks up the patterns of a layering; a tied parameter goes by its first name first.

        Raises:
            PlanError: two parts name one parameter, or blocks names no module; `PatternError`
                for a pattern that selects nothing.
        """
        lists = {part: getattr(layering, part) for part in PARTS}
        labels = [f"layers, {part}" for part, texts in lists.items() for _ in texts]
        automaton = Automaton([parse(text) for texts in lists.values() for text in texts], labels)
        self.rungs: list[Rung] = []
        self.parts: dict[int, Literal["stem", "head"]] = {}
        if not labels:
            return
        walked = walk(walked.modules[0], automaton)
        start = len(layering.stem)
        blocks = range(start, start + len(layering.blocks))
        check_matches(automaton, walked, [True] * len(labels), blocks)
        selection = Selection([*lists.values()], automaton)
        self.parts = _ends(walked.tree, selection)
        self.rungs = _named_blocks(walked.tree, selection)
        if layering.blocks and not self.rungs:
            raise PlanError(
                f"blocks={layering.blocks!r} names no module with parameters; name the modules "
                "that are the blocks, e.g. blocks='encoder.blocks.*'"
            )


def _ends(tree: Tree, selection: Selection) -> dict[int, Literal["stem", "head"]]:
    """Returns which parameters are given to the stem or the head."""
    reached = [*enumerate(tree.accepts), *((alias.row, alias.accept) for alias in tree.aliases)]
    found: dict[int, Literal["stem", "head"]] = {}
    for row, accept in reached:
        stem = selection.selects(PARTS.index("stem"), accept)
        head = selection.selects(PARTS.index("head"), accept)
        if stem and head:
            raise PlanError(f"stem and head both name {tree.names[row]!r}; name it in one of them")
        if stem or head:
            found.setdefault(row, "stem" if stem else "head")
    return found


def _named_blocks(tree: Tree, selection: Selection) -> list[Rung]:
    """Returns the outermost modules with parameters that the patterns of the blocks name."""
    blocks = PARTS.index("blocks")
    filled = [False] * len(tree.prefixes)
    for row in tree.owners:
        while row >= 0 and not filled[row]:
            filled[row] = True
            row = tree.parents[row]
    named = [selection.selects(blocks, accept) for accept in tree.module_accepts]
    rungs, inside = [], set[int]()
    for row, parent in enumerate(tree.parents):
        if parent in inside or (named[row] and filled[row]):
            inside.add(row)
            if parent not in inside:
                turn = selection.first(blocks, tree.module_accepts[row])
                rungs.append(Rung(row, parent, row, turn))
    return rungs


def _seen(tree: Tree, rungs: Sequence[Rung], uses: Sequence[Use | None]) -> list[str]:
    """Returns what a pass has shown that an order of layers does not: what never ran, or beside."""
    notes = []
    unused = [name for name, use in zip(tree.names, uses, strict=True) if use is None]
    if unused:
        notes.append(
            "not used on example_inputs, and placed behind what is registered before: "
            f"{counted(unused, 'parameter')}"
        )
    beside = unconnected(tree, rungs, [use and use.behind for use in uses])
    if beside:
        notes.append(
            f"side by side, and counted one behind the other: {_pairs(tree, beside, 'and')}; no "
            "data was seen to flow from the first to the second"
        )
    return notes


def _guesses(shape: Shape, rungs: Sequence[Rung]) -> list[str]:
    """Returns a sentence that says which layers are in the order of registration only."""
    doubtful = unsure(shape, rungs)
    if not doubtful:
        return []
    return [
        "in the order of registration, as structure does not tell: "
        f"{_pairs(shape.tree, doubtful, 'before')}; infer_layers(model, example_inputs=...) shows "
        "the order of execution, and blocks=[...] says it"
    ]


def _pairs(tree: Tree, pairs: Sequence[tuple[int, int]], word: str) -> str:
    """Returns some pairs of modules as text."""
    paths = [[tree.prefixes[row][:-1] for row in pair] for pair in pairs[:_LISTED]]
    listed = ", ".join(f"{one!r} {word} {two!r}" for one, two in paths)
    return f"{listed} and {len(pairs) - _LISTED} more" if len(pairs) > _LISTED else listed


def _whole_modules(tree: Tree, places: Sequence[int], count: int) -> list[list[str]]:
    """Returns, for each layer, the paths of the largest modules with all parameters in it."""
    empty, mixed = -2, -1
    whole = [empty] * len(tree.prefixes)
    for owner, at in zip(tree.owners, places, strict=True):
        whole[owner] = at if whole[owner] in (empty, at) else mixed
    for row in range(len(whole) - 1, 0, -1):
        parent = tree.parents[row]
        if whole[row] != empty:
            whole[parent] = whole[row] if whole[parent] in (empty, whole[row]) else mixed
    found: list[list[str]] = [[] for _ in range(count)]
    for row, at in enumerate(whole):
        if at >= 0 and (row == 0 or whole[tree.parents[row]] != at):
            found[at].append(tree.prefixes[row][:-1])
    return found
