"""What modules hold besides parameters, buffers and modules: values that a pass may depend on."""

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_OWN = frozenset(vars(nn.Module())) | {
    "train", "forward", "_freezekit", "_is_hf_initialized",
}  # fmt: skip
"""What every module has, and no forward reads."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SIMPLE = (
    nn.Linear, nn.Dropout, nn.Identity, nn.ModuleList, nn.Sequential,
)  # fmt: skip
"""Modules that hold nothing of their own that anyone changes, but what is put there."""
_KNOWN = _OWN | {"in_features", "out_features", "p", "inplace"}
"""What is in them."""
_DEPTH = 4
"""How deep in objects, lists and dicts values are looked for."""
_GROUPS = (list, tuple, set, frozenset, dict)
_GONE = object()


class State:
    """Values in the attributes of modules, and in lists, dicts and configurations among them."""

    def __init__(self, named: Iterable[tuple[str, nn.Module]]) -> None:
        """Remembers what some modules hold, by path."""
        self._places: list[tuple[str, dict[str, Any], list[str], list[Any]]] = []
        self._lists: list[tuple[str, Any, list[Any]]] = []
        self._mixed: list[tuple[str, dict[str, Any], str, object]] = []
        seen: set[int] = set()
        for path, module in named:
            simple = type(module) in _SIMPLE and not is_idle(module)
            if not simple or not vars(module).keys() <= _KNOWN:
                self._read(path, vars(module), seen, _DEPTH)
        self._getters = [(itemgetter(*names, names[0]), held) for _, held, names, _ in self._places]
        self._values = [(*values, values[0]) for _, _, _, values in self._places]

    def _read(self, path: str, held: dict[str, Any], seen: set[int], depth: int) -> None:
        names = []
        for name, value in held.items():
            place = f"{path}.{name}" if path else str(name)
            if name in _OWN or not isinstance(name, str) or name.startswith("__"):
                continue
            if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
                pass
            elif isinstance(value, torch.Tensor | nn.Module):
                continue
            elif id(value) in seen or isinstance(value, type):
                pass
            elif isinstance(value, _GROUPS) and any(map(_is_tensor, _members(value))):
                self._mixed.append((place, held, name, _bare(value)))
                continue  # As with tensors by themselves: whoever reads them is seen.
            elif isinstance(value, _GROUPS):
                self._read_group(place, value, seen, depth)
            elif isinstance(value, np.ndarray):
                self._lists.append((place, value, [value.tobytes()]))
            elif depth and isinstance(getattr(value, "__dict__", None), dict):
                seen.add(id(value))
                self._read(place, vars(value), seen, depth - 1)
            if not isinstance(value, torch.Tensor | nn.Module):
                names.append(name)  # Another object may have been put in its place.
        if names:
            self._places.append((path, held, names, [held[name] for name in names]))

    def _read_group(self, place: str, value: Any, seen: set[int], depth: int) -> None:  # noqa: ANN401
        """Remembers what is in a list or the like, and in what is in it."""
        seen.add(id(value))
        members = [*_members(value)]
        self._lists.append((place, value, members))
        for each in members if depth else ():
            if id(each) in seen or isinstance(each, torch.Tensor | nn.Module | type):
                continue
            if isinstance(each, _GROUPS) and not any(map(_is_tensor, _members(each))):
                self._read_group(place, each, seen, depth - 1)
            elif isinstance(getattr(each, "__dict__", None), dict):
                seen.add(id(each))
                self._read(place, vars(each), seen, depth - 1)

    def holds(self) -> bool:
        """Returns whether nothing has changed."""
        try:
            same = [getter(held) for getter, held in self._getters] == self._values
        except Exception:  # No longer there, or something that cannot be compared.
            return False
        return (
            same
            and all(_same(value, members) for _, value, members in self._lists)
            and not any(_unlike(_bare(held.get(name)), bare) for _, held, name, bare in self._mixed)
        )

    def told(self) -> Iterator[str]:
        """Yields what is held in words that are the same in another process."""
        for path, _, names, values in self._places:
            for name, value in zip(names, values, strict=True):
                if not name.startswith("_"):
                    yield f"{path}.{name} {_told(value)}"
        for place, value, members in self._lists:
            words = [_told(each) for each in members]
            yield f"{place} {sorted(words) if isinstance(value, set | frozenset) else words}"

    def changed(self) -> str:
        """Returns the name of a value that has changed, an empty string if none has."""
        for path, held, names, values in self._places:
            for name, before in zip(names, values, strict=True):
                value = held.get(name, _GONE)
                if _unlike(value, before):
                    return f"{path}.{name}" if path else name
        for text, held, name, bare in self._mixed:
            if _unlike(_bare(held.get(name)), bare):
                return text
        return next((text for text, value, some in self._lists if not _same(value, some)), "")


class Surroundings:
    """What calls of modules go through besides their own forward: hooks, and what is in them.

    It is looked at before every pass that is answered, while the processor has other things in
    its caches: what counts is how few objects are touched.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Remembers the parts of some modules."""
        some = [*modules]
        self._hooks = [getattr(module, name) for module in some for name in _HOOKS]
        self._had = [(hooks, [*hooks]) for hooks in self._hooks if hooks]
        self._handles = RemovableHandle.next_id
        self._own = [vars(module) for module in some]
        self._parts = [module._modules for module in some if module._modules]
        self._tables = [
            table
            for module in some
            for table in (module._parameters, module._buffers, module._modules)
            if table or type(module) not in _SIMPLE
        ]
        self._sizes = [*map(len, self._tables)]
        self._below = self._below_now()
        self._forwards = self._forwards_now()

    def hold(self) -> bool:
        """Returns whether the parts are the same, and nothing was added to them."""
        return (
            self._has_its_hooks()
            and [*map(len, self._tables)] == self._sizes
            and all(map(is_, self._below_now(), self._below))
            and all(map(is_, self._forwards_now(), self._forwards))
        )

    def _has_its_hooks(self) -> bool:
        """Returns whether the hooks are the same; torch counts all that ever were registered."""
        if any([*hooks] != before for hooks, before in self._had):
            return False
        handles: int = RemovableHandle.next_id
        if handles != self._handles and sum(map(bool, self._hooks)) != len(self._had):
            return False
        self._handles = handles
        return True

    def _below_now(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self._parts))]

    def _forwards_now(self) -> list[Any]:
        return [*map(dict.get, self._own, repeat("forward"))]


def is_idle(module: nn.Module) -> bool:
    """Returns whether a module is dropout that drops nothing, in whichever mode."""
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0


def _told(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return repr(value)
    kind = type(value)
    return f"{getattr(value, '__qualname__', '')} of {kind.__module__}.{kind.__qualname__}"


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _bare(value: object) -> object:
    """Returns what is in a list or the like beside tensors."""
    if not isinstance(value, _GROUPS):
        return value
    return [None if _is_tensor(each) else each for each in _members(value)]


def _unlike(value: object, before: object) -> bool:
    """Returns whether two values differ; those that cannot be compared do."""
    try:
        return value is not before and bool(value != before)
    except Exception:
        return True


def _members(value: Any) -> Iterator[Any]:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    else:
        yield from value


def _same(value: Any, members: list[Any]) -> bool:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return [value.tobytes()] == members
    if isinstance(value, dict):
        return 2 * len(value) == len(members) and all(
            map(is_, chain(value, value.values()), members)
        )
    return len(value) == len(members) and all(map(is_, value, members))
