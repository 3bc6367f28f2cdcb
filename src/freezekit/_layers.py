"""The layers of a model, from input to output: stem, repeated blocks, head.

One idea: a deep model repeats itself. The members of its stacks are the layers, what is registered
before them is the stem, what comes after them the head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

from ._automaton import Automaton
from ._corrections import Corrections
from ._execution import Use, first_uses
from ._layering import Layering
from ._names import Tree, Walk, walk
from ._placing import Placed, place
from ._rungs import Clock, Rung, find_rungs, late_inputs, unconnected, unsure
from ._shape import Shape
from ._verbs import counted
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
        blocks: those between stem and head; all of a model without blocks.
        notes: sentences about what could not be told, for example where the order is only that of
            registration.
    """

    blocks: tuple[Layer, ...]
    notes: tuple[str, ...]

    def __new__(
        cls, layers: Iterable[Layer], blocks: range = range(0), notes: Iterable[str] = ()
    ) -> Self:
        """Returns the layers with where the blocks stand, and what there is to note."""
        made = super().__new__(cls, layers)
        made.blocks = made[blocks.start : blocks.stop]
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
            arguments, a mapping of keyword arguments, or the only argument. The pass runs in the
            modes that are set; buffers, attributes and random generators are put back, and only
            what a model writes to its own parameters stays.
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
    uses = None if example_inputs is None else _uses(walked, example_inputs)
    return layers_of(walked.tree, *place_layers(walked, layering, uses))


def layers_of(tree: Tree, placed: Placed, notes: Sequence[str]) -> Layers:
    """Returns the layers of a model whose parameters have been placed, with what is to be noted."""
    found: list[list[int]] = [[] for _ in placed.names]
    for row, at in enumerate(placed.places):
        found[at].append(row)
    sizes = [0 if shape is None else shape.numel() for shape in tree.shapes]
    paths = _whole_modules(tree, placed.places, len(placed.names))
    layers = (
        Layer(
            index,
            name,
            tuple(paths[index]),
            tuple(tree.names[row] for row in found[index]),
            sum(sizes[row] for row in found[index]),
        )
        for index, name in enumerate(placed.names)
    )
    return Layers(layers, placed.blocks, notes)


def place_layers(
    walked: Walk, layering: Layering, uses: Sequence[Use | None] | None = None
) -> tuple[Placed, list[str]]:
    """Returns where the parameters of a model belong, and what is to be noted.

    Args:
        walked: the model; its modules matter only where the layering has patterns.
        layering: what is said about the layers.
        uses: when a pass has first used each parameter, if one was made.
    """
    tree, shape = walked.tree, Shape(walked.tree)
    given = Corrections(walked, layering)
    found, are_blocks = (given.rungs, True) if layering.blocks else find_rungs(shape, layering.by)
    placed = place(
        shape,
        found,
        Clock(tree, None if uses is None else [use and use.moment for use in uses]),
        closing=are_blocks and layering.final_norm == "last_block",
        parts=given.parts,
        open_ended=are_blocks,
    )
    if uses is not None:
        return placed, _seen(tree, placed.rungs, uses)
    if layering.blocks:
        return placed, _astray(tree, placed.astray)
    late = late_inputs(shape, placed.rungs) if are_blocks else []
    return placed, _guesses(tree, [*unsure(shape, placed.rungs), *late])


def _uses(walked: Walk, example_inputs: object) -> list[Use | None]:
    """Returns when a pass over the example first uses each parameter."""
    tree, modules = walked
    parameters = []
    for name, owner in zip(tree.names, tree.owners, strict=True):
        parameter = modules[owner]._parameters[name[len(tree.prefixes[owner]) :]]
        assert parameter is not None
        parameters.append(parameter)
    return first_uses(modules[0], parameters, example_inputs)


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


def _astray(tree: Tree, rows: Sequence[int]) -> list[str]:
    """Returns a sentence that says what stands beside blocks that are given in another order."""
    if not rows:
        return []
    paths = [tree.prefixes[row][:-1] or "the model's own" for row in rows]
    return [
        "blocks are given in another order than registered, and by registration alone is placed "
        f"{counted(paths, 'module')}; name them in stem or head"
    ]


def _guesses(tree: Tree, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Returns a sentence that says which modules are in the order of registration only."""
    if not pairs:
        return []
    return [
        "in the order of registration, as structure does not tell: "
        f"{_pairs(tree, pairs, 'before')}; infer_layers(model, example_inputs=...) shows the order "
        "of execution, and stem, blocks and head say it"
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
