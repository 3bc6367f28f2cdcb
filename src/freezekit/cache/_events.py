"""What happens in a pass, and what is known of the tensors in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch.utils._pytree import TreeSpec, tree_flatten

from ._functions import is_tensor

Source = tuple[int, int]
"""An output of an event: the number of the event, and of the leaf among its outputs."""


class Known(NamedTuple):
    """What is known of a tensor in a pass.

    Attributes:
        hot: its values may be others in the next pass over the same inputs: they depend on what
            trains, or on random numbers.
        sources: which outputs of events it is, where a frozen call has a part in it.
        derived: a frozen call has a part in it.
        roots: the arguments of the pass that it depends on.
        behind: the events that it depends on.
        origin: where it comes from, for its name.
        mixed: something has a part in it that was made of all rows together, such as a maximum.
    """

    hot: bool = False
    sources: frozenset[Source] = frozenset()
    derived: bool = False
    roots: frozenset[int] = frozenset()
    behind: frozenset[int] = frozenset()
    origin: tuple[Any, ...] = ("unknown",)
    mixed: bool = False


@dataclass(slots=True, eq=False)
class Event:
    """A call of a frozen module, or of a function of torch outside of those.

    Attributes:
        kind: which of the two.
        name: path of the module, or name of the function.
        func: the function.
        skippable: whether its outputs can come from somewhere else.
        arguments: what it got: origins of tensors, and plain values, flat.
        given: which outputs of events are among that, in order.
        reads: the sources that its outputs depend on.
        roots: the arguments of the pass that they depend on.
        behind: the events that they depend on, its own number among them.
        spec: how the outputs are nested.
        leaves: the outputs, flat; tensors as copies.
        heavy: whether it multiplies matrices, convolves or the like.
        hot: whether it reads something that trains and is no argument.
        free: numbers of the outputs that depend on no argument of the pass.
        mixed: numbers of the outputs in which all rows together have a part.
    """

    kind: Literal["call", "function"]
    name: str
    func: object
    skippable: bool
    arguments: list[Any]
    given: tuple[Source, ...]
    reads: frozenset[Source]
    roots: frozenset[int]
    behind: frozenset[int]
    spec: TreeSpec | None = None
    leaves: list[Any] = field(default_factory=list)
    heavy: bool = False
    hot: bool = False
    free: set[int] = field(default_factory=set)
    mixed: set[int] = field(default_factory=set)


class Visit(NamedTuple):
    """A call of a module: its path, its event if it is one, the event within which it happened."""

    path: str
    event: int | None
    within: int | None


class Pass(NamedTuple):
    """What one forward pass is: a function of the leaves of its arguments.

    Attributes:
        entry: the module.
        run: calls it with these leaves.
        hot: identities of what trains.
        hot_paths: paths of the modules with something that trains at or below them.
        weighty: paths of those with parameters at or below them.
        boundary: path of the module after whose first call everything is computed; None if that is
            for the data flow to say.
    """

    entry: torch.nn.Module
    run: Callable[[Sequence[Any]], Any]
    hot: frozenset[int]
    hot_paths: frozenset[str]
    weighty: frozenset[str]
    boundary: str | None = None


def together(given: Sequence[Known]) -> Known:
    """Returns what is known of something that all of these have a part in."""
    return Known(
        hot=any(each.hot for each in given),
        sources=frozenset().union(*(each.sources for each in given)),
        derived=any(each.derived for each in given),
        roots=frozenset().union(*(each.roots for each in given)),
        behind=frozenset().union(*(each.behind for each in given)),
        mixed=any(each.mixed for each in given),
    )


def copied(result: object) -> tuple[list[Any], TreeSpec]:
    """Returns the leaves of an output, tensors as copies, and how they are nested."""
    leaves, spec = tree_flatten(result)
    return [leaf.detach().clone() if is_tensor(leaf) else leaf for leaf in leaves], spec
