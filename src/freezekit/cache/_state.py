"""What modules hold besides parameters, buffers and modules: values that a pass may depend on."""

from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any

import torch
from torch import nn

_OWN = frozenset(("_parameters", "_buffers", "_modules", "training", "_non_persistent_buffers_set"))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SIMPLE = (
    nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ModuleList, nn.Sequential,
)  # fmt: skip
"""Modules that hold nothing of their own that anyone changes."""
_GONE = object()


class State:
    """Values in the attributes of modules, and in lists, dicts and configurations among them."""

    def __init__(self, named: Iterable[tuple[str, nn.Module]]) -> None:
        """Remembers what some modules hold, by path."""
        self._texts: list[str] = []
        self._places: list[tuple[dict[str, Any], str]] = []
        self._lists: list[tuple[str, Any, list[Any]]] = []
        seen: set[int] = set()
        for path, module in named:
            if type(module) not in _SIMPLE:
                self._read(path, vars(module), seen, 2)
        self._values = [held.get(name, _GONE) for held, name in self._places]

    def _read(self, path: str, held: dict[str, Any], seen: set[int], depth: int) -> None:
        for name, value in held.items():
            place = f"{path}.{name}" if path else str(name)
            if name in _OWN or str(name).startswith("__") or str(name).endswith("hooks"):
                continue
            if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
                self._places.append((held, name))
                self._texts.append(place)
            elif id(value) in seen or isinstance(value, torch.Tensor | nn.Module | type):
                continue
            elif isinstance(value, list | tuple | set | dict):
                seen.add(id(value))
                self._lists.append((place, value, [*_members(value)]))
            elif depth and isinstance(getattr(value, "__dict__", None), dict):
                seen.add(id(value))
                self._read(place, vars(value), seen, depth - 1)

    def holds(self) -> bool:
        """Returns whether nothing has changed."""
        return [held.get(name, _GONE) for held, name in self._places] == self._values and all(
            [_same(value, members) for _, value, members in self._lists]
        )

    def changed(self) -> str:
        """Returns the name of a value that has changed, an empty string if none has."""
        now = (held.get(name, _GONE) for held, name in self._places)
        for text, value, before in zip(self._texts, now, self._values, strict=True):
            if value is not before and value != before:
                return text
        return next((text for text, value, some in self._lists if not _same(value, some)), "")


class Surroundings:
    """What calls of modules go through besides their own forward: hooks, and what is in them."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Remembers the parts of some modules."""
        self._modules = [*modules]
        self._hooks = [getattr(module, name) for module in self._modules for name in _HOOKS]
        self._parts = [(module._modules, [*module._modules.values()]) for module in self._modules]
        self._parts = [(parts, now) for parts, now in self._parts if now]
        self._forwards = [(vars(each), vars(each).get("forward")) for each in self._modules]
        self._sizes = self._count()

    def hold(self) -> bool:
        """Returns whether the parts are the same, and nothing was added to them."""
        return (
            not any(self._hooks)
            and all([[*parts.values()] == before for parts, before in self._parts])
            and all([own.get("forward") is before for own, before in self._forwards])
            and self._count() == self._sizes
        )

    def _count(self) -> list[int]:
        return [len(each._parameters) + len(each._buffers) for each in self._modules]


def _members(value: Any) -> Iterator[Any]:  # noqa: ANN401
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    else:
        yield from value


def _same(value: Any, members: list[Any]) -> bool:  # noqa: ANN401
    now = [*_members(value)]
    return len(now) == len(members) and all(map(is_, now, members))
