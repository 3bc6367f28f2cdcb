"""What passes that were answered leave for later ones: placeholders, and the shape of outputs."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import TreeSpec, tree_unflatten

from ._events import Source
from ._program import Dim, Hole

_MOST_HOLES = 1024


class _Mold(NamedTuple):
    """How an output looks that is a dict with fields.

    Attributes:
        kind: its class.
        keys: what its leaves stand under.
        fields: its attributes that are no leaves.
        places: the others, with the number of the leaf.
    """

    kind: type[OrderedDict[Any, Any]]
    keys: list[Any]
    fields: dict[str, Any]
    places: list[tuple[str, int]]

    def cast(self, leaves: Sequence[Any]) -> OrderedDict[Any, Any]:
        made = OrderedDict.__new__(self.kind)
        own = vars(made)
        own.update(self.fields)
        for name, number in self.places:
            own[name] = leaves[number]
        for key, leaf in zip(self.keys, leaves, strict=True):
            OrderedDict.__setitem__(made, key, leaf)
        return made


class Spares:
    """Placeholders, and molds for outputs, of the passes that go one way."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._holes: dict[tuple[Source, int | None, int | None], torch.Tensor] = {}
        self._molds: dict[int, _Mold | None] = {}

    def hole(self, hole: Hole, source: Source, sizes: Mapping[Dim, int | None]) -> torch.Tensor:
        """Returns a tensor of some shape that takes no memory, and that nothing may read.

        Args:
            hole: the shape.
            source: the output it stands for.
            sizes: of the dimensions that differ from batch to batch.
        """
        key = (source, sizes["B"], sizes["L"])
        known = self._holes.get(key)
        if known is None or known.requires_grad or known._version:
            if len(self._holes) > _MOST_HOLES:
                self._holes.clear()
            known = self._holes[key] = _empty(hole, sizes)
        return known

    def output(self, at: int, spec: TreeSpec, leaves: list[Any]) -> Any:  # noqa: ANN401
        """Returns leaves as they are nested in the output of an event.

        The outputs of transformers take long to make, since they check themselves: after the first
        they are copied from it.

        Args:
            at: the number of the event.
            spec: how they are nested.
            leaves: what it holds, flat.
        """
        if at not in self._molds:
            made = tree_unflatten(leaves, spec)
            self._molds[at] = _mold_of(made, leaves)
            return made
        mold = self._molds[at]
        return tree_unflatten(leaves, spec) if mold is None else mold.cast(leaves)


def _empty(hole: Hole, sizes: Mapping[Dim, int | None]) -> torch.Tensor:
    with torch.inference_mode(False):  # it may be for passes in other modes too
        one = torch.full((), _filling(hole.dtype), dtype=hole.dtype, device=hole.device)
        return one.expand([sizes[dim] if isinstance(dim, str) else dim for dim in hole.dims])  # type: ignore[misc]


def _filling(dtype: torch.dtype) -> float:
    """Returns a value that shows, where something reads it all the same."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return dtype is torch.bool or torch.iinfo(dtype).max


def _mold_of(made: object, leaves: Sequence[Any]) -> _Mold | None:
    """Returns the mold of an output; None if it is no dict of leaves with fields."""
    if not isinstance(made, OrderedDict) or not hasattr(made, "__dict__"):
        return None
    numbers = {id(leaf): number for number, leaf in enumerate(leaves)}
    values = [*OrderedDict.values(made)]
    if [numbers.get(id(value)) for value in values] != [*range(len(leaves))]:
        return None
    own = vars(made)
    places = [(name, numbers[id(value)]) for name, value in own.items() if id(value) in numbers]
    fields = {name: value for name, value in own.items() if id(value) not in numbers}
    if any(isinstance(value, list | dict | set | torch.Tensor) for value in fields.values()):
        return None
    return _Mold(type(made), [*OrderedDict.keys(made)], fields, places)
